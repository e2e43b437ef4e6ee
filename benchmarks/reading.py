"""How fast images come from files, records of TFDS, packed records and tar shards.

  python -m benchmarks.reading

JPEG files of 500 by 375 pixels, about 110 kB. First the bytes alone, in random order,
then pairs of crops of 224 pixels as training reads them, and, from files, the same
crops by a map that knows no replacement of broken images. All take turns in one process
on one core; the times are the processor's, so that the ratios mean something on a
machine that others use, too. The start of a pipeline, a second, does not count. The
files are in the page cache: disks are not measured. Then how long the index takes.
"""

import math
import os
import tempfile
import time
from functools import partial

from absl import app, flags

from benchmarks import record, views

FLAGS = flags.FLAGS
flags.DEFINE_integer("images", 512, "Images of each kind.")
flags.DEFINE_integer("batch_size", 32, "Images a batch.")
flags.DEFINE_integer("steps", 16, "Batches of a turn.")
flags.DEFINE_integer("quality", 90, "Quality of the JPEG files.")


def write_folder(folder, count):
    """Writes photographs of two classes; returns their mean size in bytes."""
    import io

    from PIL import Image

    drawn = []
    for pixels in views.drawn_pixels(min(count, 16), 375, 500):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=FLAGS.quality)
        drawn.append(file.getvalue())
    for number in range(count):
        place = os.path.join(folder, "ab"[number % 2])
        os.makedirs(place, exist_ok=True)
        with open(os.path.join(place, f"{number:05}.jpg"), "wb") as file:
            file.write(drawn[number % len(drawn)])
    return sum(map(len, drawn)) / len(drawn)


def prepare_tfds(folder, images):
    """Prepares the same as a data set of TFDS, `photographs`."""
    import tensorflow_datasets as tfds

    class Photographs(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(num_classes=2),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            paths = [path.decode() for path in images.sources.numpy()]
            for number, path in enumerate(paths):
                yield number, {"image": path, "label": number % 2}

    tfds.builder("photographs", data_dir=folder).download_and_prepare()


def make_sets(folder):
    """Dict from kind to a set of the same images, and their mean size in bytes."""
    from ressl_keras.data import packing
    from ressl_keras.data.datasets import load_dataset

    def quiet(line):
        del line

    def load(name, place):
        return load_dataset(
            name, place, download=False, check=False, memory_limit=0, log=quiet
        )

    place = os.path.join(folder, "images")
    mean_bytes = write_folder(place, FLAGS.images)
    files = load("folder", place)
    sets = {"files": files.pretrain}
    for kind in packing.KINDS:
        output = os.path.join(folder, kind)
        packing.pack(files, place, output, kind, 2**26, log=quiet)
        sets[f"packed {kind}"] = load("packed", output).pretrain
    prepare_tfds(os.path.join(folder, "tfds"), files.pretrain)
    sets["TFDS"] = load("photographs", os.path.join(folder, "tfds")).pretrain
    return sets, mean_bytes


def read_bytes(images):
    """Reads the bytes of every image in random order; returns how many it read."""
    import tensorflow as tf

    from ressl_keras.data.pipeline import shuffled_order

    def size(position):
        index = shuffled_order(position, 0, 0, len(images))
        return tf.strings.length(images.encoded(index))

    for _ in tf.data.Dataset.range(len(images)).map(size, 1).batch(64):
        pass
    return len(images)


def read_crops(images, steps):
    """Batches of pairs of crops as training reads them."""
    from ressl_keras.data.pipeline import training_batches

    return training_batches(images, FLAGS.batch_size, 0, 0, steps, size=224)


def read_crops_plainly(images, steps):
    """The same batches; an image that cannot be read would be an error."""
    import tensorflow as tf

    from ressl_keras.augmentation import bundle
    from ressl_keras.data import pipeline

    views = bundle.GeometricViews(224)
    size = FLAGS.batch_size

    def rows(step):
        indices = pipeline.step_indices(step, len(images), size, 0)
        return indices, views.draws(step, size)

    def crops(index, draws):
        encoded = images.encoded(index)
        found = pipeline.read_crops(encoded, views.operations, draws, images.decoder)
        return bundle.pack(found)

    read = tf.data.Dataset.range(steps).map(rows).unbatch().map(crops, tf.data.AUTOTUNE)
    return read.batch(size).prefetch(tf.data.AUTOTUNE)


def seconds_of_crops(read, images):
    """Seconds of the processor for an image, without those of a pipeline's start."""
    taken = []
    for steps in (4, 4 + FLAGS.steps):
        start = time.process_time()
        for _ in read(images, steps):
            pass
        taken.append(time.process_time() - start)
    return (taken[1] - taken[0]) / (FLAGS.steps * FLAGS.batch_size)


def seconds_of_bytes(images):
    """Seconds of the processor for the bytes of an image."""
    start = time.process_time()
    count = read_bytes(images)
    return (time.process_time() - start) / count


def rates(measures):
    """Images per second of one core.

    Args:
        measures: dict from a name to a function that returns the seconds of an image.
    """
    fastest = dict.fromkeys(measures, math.inf)
    for turn in range(FLAGS.rounds + 1):
        for name, measure in measures.items():
            taken = measure()
            if turn:  # the first warms up
                fastest[name] = min(fastest[name], taken)
    return {name: 1 / taken for name, taken in fastest.items()}


def indexing(sets, mean_bytes):
    """Records and megabytes per second of one core, by kind of shards."""
    from ressl_keras.data import record_index

    found = {}
    for kind, images in sets.items():
        if kind == "files":
            continue
        start = time.process_time()
        count = len(record_index.build(images.index.paths))
        rate = count / (time.process_time() - start)
        found[kind] = {"records": rate, "megabytes": rate * mean_bytes / 1e6}
    return found


def main(argv):
    del argv
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sets, mean_bytes = make_sets(folder)
        crops = {
            kind: partial(seconds_of_crops, read_crops, sets[kind]) for kind in sets
        }
        crops["files, plainly"] = partial(
            seconds_of_crops, read_crops_plainly, sets["files"]
        )
        measures = {kind: partial(seconds_of_bytes, sets[kind]) for kind in sets}
        figures = {
            "bytes": rates(measures),
            "crops": rates(crops),
            "index": indexing(sets, mean_bytes),
        }
    print(f"images of {mean_bytes / 1000:.0f} kB a second of one core")
    print(f"{'':16}{'bytes':>8}{'crops':>8}{'index':>8}")
    for kind in crops:
        index = figures["index"].get(kind, {}).get("records", math.nan)
        read = figures["bytes"].get(kind, math.nan)
        columns = read, figures["crops"][kind], index
        print(f"{kind:16}" + "".join(f"{value:8.0f}" for value in columns))
    sizes = {"images": FLAGS.images, "mean_bytes": mean_bytes}
    record.append("reading", {**sizes, **figures}, FLAGS.results or record.RESULTS)


if __name__ == "__main__":
    app.run(main)
