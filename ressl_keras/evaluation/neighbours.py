"""A picture of queries and their nearest neighbours."""

import itertools

import numpy as np
from PIL import Image

from ressl_keras.data.images import Subset, spread_indices
from ressl_keras.encoders.encoder import input_size
from ressl_keras.evaluation import pictures
from ressl_keras.evaluation.features import ONE_DEVICE, readable_features


def unit_rows(rows):
    """Rows of length one; those of zeros stay zero."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def nearest(queries, bank, count, block=65536):
    """The nearest rows of a bank, by cosine similarity.

    Args:
        queries: float array [queries, dim].
        bank: float array [rows, dim]; may be a memory map, which is read once.
        count: number of neighbours.
        block: rows compared at once; bounds the memory.

    Returns:
        Tuple of their indices, integer array [queries, count], nearest first, and of
        their similarities, float array of the same shape.
    """
    queries = unit_rows(queries)
    indices = np.zeros([len(queries), 0], np.int64)
    similarities = np.zeros([len(queries), 0], queries.dtype)
    for start in range(0, len(bank), block):
        found = queries @ unit_rows(bank[start : start + block]).T
        own = np.broadcast_to(np.arange(start, start + found.shape[1]), found.shape)
        # Of equally similar rows the earlier stay first.
        indices = np.concatenate([indices, own], axis=1)
        similarities = np.concatenate([similarities, found], axis=1)
        order = np.argsort(-similarities, axis=1, kind="stable")[:, :count]
        indices = np.take_along_axis(indices, order, axis=1)
        similarities = np.take_along_axis(similarities, order, axis=1)
    return indices, similarities


def picture(encoder, queries, bank, path, rows=12, columns=8, scale=None):
    """Draws one row per query: the query at the left, then its nearest images.

    Where there are labels, the queries are spread over the classes, and the frame
    shows whether a neighbour has the query's class (green) or another (orange).

    Args:
        encoder: result of `load_encoder`.
        queries: images to ask about.
        bank: images to find, or the same object; a query does not find itself.
        path: PNG file to write.
        rows: number of queries.
        columns: number of neighbours.
        scale: how many pixels of the picture a pixel of an image takes; None makes
            images of about 64.

    Returns:
        Share of the neighbours drawn that have the query's class, in per cent, or None
        without labels.
    """
    alone = bank is queries
    embedded, bank = readable_features(encoder, bank, ONE_DEVICE)
    if alone:
        own = query_indices(bank, rows)
        asked, wanted = Subset(bank, own), embedded[own]
    else:
        asked = Subset(queries, query_indices(queries, rows))
        wanted, asked = readable_features(encoder, asked, ONE_DEVICE)
    # One more, for the query itself.
    found, _ = nearest(wanted, embedded, columns + 1)
    if alone:
        found = np.stack(
            [row[row != self_][:columns] for row, self_ in zip(found, own)]
        )
    found = found[:, :columns]
    size = input_size(encoder, bank)
    scale = scale or max(round(64 / size), 1)
    canvas, agreement = [], []
    for index, row in enumerate(found):
        images = [
            pictures.squares(asked, [index], size),
            pictures.squares(bank, row, size),
        ]
        colours = [pictures.PLAIN] * (1 + len(row))
        if asked.labels is not None and bank.labels is not None:
            same = bank.labels[row] == asked.labels[index]
            colours[1:] = [pictures.SAME if ok else pictures.OTHER for ok in same]
            agreement.append(same.mean())
        tiles = [
            pictures.framed(image, colour, scale)
            for image, colour in zip(np.concatenate(images), colours)
        ]
        gap = np.full([len(tiles[0]), 12, 3], 255, np.uint8)
        canvas.append(np.concatenate([tiles[0], gap, *tiles[1:]], axis=1))
    pictures.save(Image.fromarray(np.concatenate(canvas)), path)
    return float(100 * np.mean(agreement)) if agreement else None


def query_indices(images, count):
    """Indices of the queries: from each class in turn, or spread evenly.

    Args:
        images: labelled images or others.
        count: number of queries.

    Returns:
        Integer array of at most [count].
    """
    if images.labels is None:
        return spread_indices(images, count)
    by_class = [np.flatnonzero(images.labels == c) for c in np.unique(images.labels)]
    turns = max(len(members) for members in by_class)
    indices = (m[i] for i in range(turns) for m in by_class if i < len(m))
    return np.array(list(itertools.islice(indices, count)))
