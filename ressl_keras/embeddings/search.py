"""The nearest embeddings: exact, or through an index for millions."""

import importlib.util

import numpy as np

from ressl_keras.errors import UsageError
from ressl_keras.evaluation.neighbours import nearest


def nearest_in(queries, bank, count, index="exact", block=1024):
    """The nearest rows of a bank, by cosine similarity.

    Args:
        queries: float array [queries, dim].
        bank: float array [rows, dim].
        count: number of neighbours, at most the rows of the bank.
        index: `exact`, which compares each query with every row; or `hnsw`, the
            approximate graph index of faiss (arXiv 1603.09320), for millions of rows.
        block: queries that are compared at a time.

    Returns:
        Tuple of their indices, integer array [queries, count], nearest first, and of
        their similarities, float32 array of the same shape. An index is -1, and its
        similarity below -1, where `hnsw` finds fewer.

    Raises:
        UsageError: if faiss is asked for and not installed.
    """
    count = min(count, len(bank))
    if index == "hnsw":
        return _by_faiss(queries, bank, count)
    parts = [
        nearest(queries[start : start + block], bank, count)
        for start in range(0, len(queries), block)
    ]
    found, similarities = (np.concatenate(each) for each in zip(*parts))
    return found, similarities


def _by_faiss(queries, bank, count):
    if not importlib.util.find_spec("faiss"):
        raise UsageError("--index=hnsw needs faiss: pip install faiss-cpu")
    import faiss

    index = faiss.IndexHNSWFlat(bank.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efSearch = max(64, 2 * count)
    unit = np.array(bank, np.float32)
    faiss.normalize_L2(unit)
    index.add(unit)
    asked = unit if queries is bank else np.array(queries, np.float32)
    if queries is not bank:
        faiss.normalize_L2(asked)
    similarities, found = index.search(asked, count)
    return found, similarities
