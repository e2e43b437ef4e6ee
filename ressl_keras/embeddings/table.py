"""A table of images and their embeddings, in a Parquet file."""

import contextlib
import csv
import dataclasses
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from ressl_keras.encoders.embed import write_npy
from ressl_keras.errors import UsageError, printable
from ressl_keras.files import replacing, writing

# Under this key the file's metadata says what the embeddings are of.
_FACTS = b"ressl_keras"


@dataclasses.dataclass
class Table:
    """Images, and what an encoder makes of them.

    Attributes:
        files: names of the images, list of strings: paths below the folder they were
            read from.
        sets: `train`, `test` or another set of each image, list of strings.
        labels: class name of each image, or None where it has none, list.
        stamps: size in bytes and time of the last change in nanoseconds of each file,
            int64 array [count, 2]; -1 where the images are not files of their own.
        embeddings: float32 array [count, dim]; may be a memory map.
        facts: dict of the encoder's hash, the data set and the version that wrote it.
    """

    files: list
    sets: list
    labels: list
    stamps: np.ndarray
    embeddings: np.ndarray
    facts: dict = dataclasses.field(default_factory=dict)

    def __len__(self):
        return len(self.files)


def write_tables(path, tables, facts, rows=65536):
    """Writes tables one after the other into one file, group of rows by group.

    Args:
        path: file to write, `.parquet`. It appears when it is complete.
        tables: iterable of `Table` of one dim; their embeddings may be memory maps.
        facts: dict of facts about all of them.
        rows: rows of a group, which is what is held in memory.

    Returns:
        Number of rows written.
    """
    count, writer = 0, None
    with replacing(path) as temporary, contextlib.ExitStack() as opened:
        for table in tables:
            if writer is None:
                schema = _schema(table.embeddings.shape[1], facts)
                writer = opened.enter_context(pq.ParquetWriter(temporary, schema))
            for start in range(0, len(table), rows):
                part = slice(start, start + rows)
                writer.write_table(pa.table(_columns(table, part), schema=schema))
            count += len(table)
        if not count:
            raise UsageError("There are no images to embed.")
    return count


def _schema(dim, facts):
    columns = [
        ("file", pa.string()),
        ("set", pa.string()),
        ("label", pa.string()),
        ("bytes", pa.int64()),
        ("modified_ns", pa.int64()),
        ("embedding", pa.list_(pa.float32(), dim)),
    ]
    return pa.schema(columns, metadata={_FACTS: json.dumps(facts)})


def _columns(table, part):
    values = np.asarray(table.embeddings[part], np.float32)
    vectors = pa.FixedSizeListArray.from_arrays(
        pa.array(values.reshape(-1)), values.shape[1]
    )
    stamps = map(pa.array, table.stamps[part].T)
    # A file's name need not be UTF-8.
    files, sets, labels = (names[part] for names in _names(table))
    files = [file.encode("utf-8", "replace").decode() for file in files]
    return [files, sets, labels, *stamps, vectors]


def _names(table):
    return table.files, table.sets, table.labels


def write_arrays(path, tables, facts):
    """Writes the embeddings as a NumPy array, and the names beside it.

    Args:
        path: file to write, `.npy`: float32 array [count, dim]. A `.csv` of the same
            name has a row of file, set and label for each.
        tables: as in `write_tables`.
        facts: not kept.

    Returns:
        Number of rows written.
    """
    names = f"{os.path.splitext(path)[0]}.csv"
    with writing(names, newline="") as file, replacing(path) as temporary:
        writer = csv.writer(file)
        writer.writerow(["file", "set", "label"])

        def parts():
            for table in tables:
                labels = [label or "" for label in table.labels]
                writer.writerows(zip(table.files, table.sets, labels))
                yield table.embeddings

        count = write_npy(temporary, parts())
        if not count:
            raise UsageError("There are no images to embed.")
    return count


def write_records(path, tables, facts):
    """Writes `tf.train.Example` records of file, set, label and embedding.

    Args:
        path: file to write, `.tfrecord`.
        tables: as in `write_tables`.
        facts: not kept.

    Returns:
        Number of rows written.
    """

    def text(value):
        return tf.train.Feature(
            bytes_list=tf.train.BytesList(value=[os.fsencode(value or "")])
        )

    count = 0
    with replacing(path) as temporary, tf.io.TFRecordWriter(temporary) as writer:
        for table in tables:
            for *names, row in zip(*_names(table), table.embeddings):
                keys = zip(("file", "set", "label"), map(text, names))
                row = tf.train.Feature(float_list=tf.train.FloatList(value=row))
                features = tf.train.Features(feature={**dict(keys), "embedding": row})
                example = tf.train.Example(features=features)
                writer.write(example.SerializeToString())
                count += 1
        if not count:
            raise UsageError("There are no images to embed.")
    return count


# The functions that write a table, by the ending of the file.
WRITERS = {".parquet": write_tables, ".npy": write_arrays, ".tfrecord": write_records}


def read_table(path):
    """Reads a table.

    Args:
        path: Parquet file that `write_tables` wrote.

    Returns:
        A `Table`. It takes 4 bytes for each number of an embedding, so 10 GB for 1.28
        million of 2,048.

    Raises:
        UsageError: if there is no such file or it is another.
    """
    try:
        read = pq.read_table(path)
        facts = json.loads((read.schema.metadata or {})[_FACTS])
        vectors = read["embedding"].combine_chunks()
        # One chunk, or none where there are no rows.
        dim = vectors.type.list_size
        values = vectors.flatten().to_numpy(zero_copy_only=False)
        columns = [read[name].to_pylist() for name in ("file", "set", "label")]
        stamps = [read[name].to_numpy() for name in ("bytes", "modified_ns")]
    except FileNotFoundError:
        raise UsageError(f"There is no file {printable(path)}.") from None
    except (OSError, pa.ArrowException, KeyError, AttributeError, ValueError) as error:
        raise UsageError(
            f"{printable(path)} is no table of embeddings; ressl-embed writes one."
        ) from error
    return Table(*columns, np.stack(stamps, axis=1), values.reshape(-1, dim), facts)


def stamp(path):
    """Size in bytes of a file, and the time of its last change in nanoseconds."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns
