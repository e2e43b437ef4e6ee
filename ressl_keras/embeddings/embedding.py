"""Embedding the images of a data set into tables."""

import os

import numpy as np

from ressl_keras.data.images import Subset, name_of
from ressl_keras.embeddings.table import Table, stamp
from ressl_keras.evaluation.features import readable_features


def embed(encoder, dataset, resources, root=None, known=None, log=print):
    """Embeds all images of a data set, each once.

    Args:
        encoder: result of `load_encoder`.
        dataset: `Dataset`, with labels or without.
        resources: `evaluation.features.Resources`.
        root: folder that the names of image files are relative to, or None.
        known: `Table` of an earlier call with the same encoder, or None. Files whose
            size and time are as they were are not embedded again.
        log: called with a line of text.

    Yields:
        A `Table` for each set of the data set. On workers other than the chief its
        embeddings are None.
    """
    labelled = []
    for name, images in _sets(dataset):
        rows = _rows(name, images, dataset.class_names, root)
        if name == "train":
            labelled = rows.files
        if not name:
            new = _without(images, rows.files, dataset.train, labelled)
            if len(new) < len(rows):
                images, rows = Subset(images, new), _take(rows, new)
        if len(rows) and known is None:
            yield _embedded(encoder, images, rows, resources)
        elif len(rows):
            yield _updated(encoder, images, rows, resources, known, log)


def _sets(dataset):
    """(name, images) of the sets of a data set."""
    sets = [("train", dataset.train), ("test", dataset.test)]
    if dataset.pretrain is not dataset.train:
        sets.append(("", dataset.pretrain))
    return [(name, images) for name, images in sets if images is not None]


def _without(images, files, labelled, labelled_files):
    """Indices of the images to learn from that are not among the labelled ones."""
    if isinstance(labelled, Subset) and labelled.images is images:
        # Names need not be unique in the shards of others.
        return np.setdiff1d(np.arange(len(images)), labelled.indices.numpy())
    taken = set(labelled_files)
    return [i for i, file in enumerate(files) if file not in taken]


def _rows(set_name, images, class_names, root):
    """A table of a set's images without their embeddings."""
    count = len(images)
    digits = len(str(count))
    files = [
        name_of(images, i) or f"{set_name or 'image'}/{i:0{digits}}"
        for i in range(count)
    ]
    labels = [None] * count
    if images.labels is not None and class_names:
        labels = [class_names[label] if label >= 0 else None for label in images.labels]
    stamps = np.full([count, 2], -1, np.int64)
    for index, file in enumerate(files if root else []):
        path = os.path.join(root, file)
        if os.path.isfile(path):
            stamps[index] = stamp(path)
    return Table(files, [set_name] * count, labels, stamps, None)


def _embedded(encoder, images, rows, resources):
    """The rows with embeddings, without those of images that cannot be read."""
    features, readable = readable_features(encoder, images, resources)
    if readable is not images:
        rows = _take(rows, readable.indices.numpy())
    rows.embeddings = features
    return rows


def _updated(encoder, images, rows, resources, known, log):
    """The rows with embeddings, those of unchanged files taken from a table."""
    place = {file: index for index, file in enumerate(known.files)}
    old = np.array([place.get(file, -1) for file in rows.files])
    same = (old >= 0) & (rows.stamps[:, 0] >= 0)
    same &= (rows.stamps == known.stamps[old]).all(axis=1)
    log(f"{same.sum():,} of {len(rows):,} images are unchanged.")
    kept, todo = np.flatnonzero(same), np.flatnonzero(~same)
    table = _take(rows, kept)
    table.embeddings = known.embeddings[old[kept]]
    if not len(todo):
        return table
    new = _embedded(encoder, Subset(images, todo), _take(rows, todo), resources)
    return _joined(table, new)


def _take(table, indices):
    """Some rows of a table without embeddings."""
    names = table.files, table.sets, table.labels
    taken = [[column[i] for i in indices] for column in names]
    return Table(*taken, table.stamps[indices], None)


def _joined(first, second):
    return Table(
        first.files + second.files,
        first.sets + second.sets,
        first.labels + second.labels,
        np.concatenate([first.stamps, second.stamps]),
        np.concatenate([first.embeddings, second.embeddings]),
    )
