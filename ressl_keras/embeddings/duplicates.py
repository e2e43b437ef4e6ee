"""Groups of near-duplicates among embeddings, inside one table or between two."""

import dataclasses

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ressl_keras.embeddings.search import nearest_in


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two images that are nearly the same.

    Attributes:
        first: index of the one, in the first table.
        second: index of the other, in the second table.
        similarity: cosine of their embeddings.
    """

    first: int
    second: int
    similarity: float


def pairs_within(embeddings, similarity, neighbours=16, index="exact"):
    """Pairs of rows that are more alike than a limit.

    Args:
        embeddings: float array [count, dim].
        similarity: cosine similarity from which two images count as near-duplicates.
        neighbours: nearest rows of each that are looked at.
        index: as in `nearest_in`.

    Returns:
        List of `Pair`, the most alike first; of each pair the smaller index is first.
    """
    found, similarities = nearest_in(embeddings, embeddings, neighbours + 1, index)
    return _pairs(found, similarities, similarity, within=True)


def pairs_between(first, second, similarity, neighbours=16, index="exact"):
    """The same of pairs of a row of one array and a row of another."""
    found, similarities = nearest_in(first, second, neighbours, index)
    return _pairs(found, similarities, similarity, within=False)


def groups(pairs, count):
    """Images that are connected by pairs.

    Args:
        pairs: result of `pairs_within`.
        count: number of images.

    Returns:
        List of integer arrays of two indices or more, the largest group first.
    """
    rows = [pair.first for pair in pairs]
    columns = [pair.second for pair in pairs]
    graph = coo_array((np.ones(len(pairs)), (rows, columns)), shape=(count, count))
    _, group = connected_components(graph, directed=False)
    order = np.argsort(group, kind="stable")
    borders = np.flatnonzero(np.diff(group[order])) + 1
    several = [part for part in np.split(order, borders) if len(part) > 1]
    return sorted(several, key=lambda part: (-len(part), part[0]))


def _pairs(found, similarities, least, within):
    # The cosine of two equal rows is 1 only but for rounding.
    rows, places = np.nonzero(similarities >= least - 1e-6)
    best = {}
    for row, place in zip(rows, places):
        first, second = int(row), int(found[row, place])
        if within:
            first, second = sorted((first, second))
            if first == second:
                continue
        best[first, second] = float(similarities[row, place])
    listed = [Pair(*key, value) for key, value in best.items()]
    return sorted(listed, key=lambda pair: (-pair.similarity, pair.first, pair.second))
