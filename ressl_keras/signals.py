"""Signs of health and of collapse, since a falling loss can be either."""

import math

import numpy as np


def effective_rank(embeddings):
    """How many dimensions the embeddings make use of (RankMe, arXiv 2210.02885).

    The exponential of the entropy of their singular values, as shares of the sum: 1
    where all point one way, `dim` where they spread over all dimensions evenly.

    Args:
        embeddings: float array [count, dim].

    Returns:
        A number from 1 to `min(count, dim)`; 0 where all embeddings are zero.
    """
    embeddings = np.asarray(embeddings, np.float64)
    # Squares of the singular values, at the cost of a [dim, dim] matrix.
    squares = np.linalg.eigvalsh(embeddings.T @ embeddings)
    # What rounding makes of zero must not count, also after the root.
    squares[squares < 1e-12 * max(squares.max(), 0)] = 0
    values = np.sqrt(np.maximum(squares, 0))
    if not values.any():
        return 0.0
    shares = values[values > 0] / values.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def spread(embeddings):
    """Standard deviation of unit embeddings, against that of random directions.

    Args:
        embeddings: float array [count, dim], unit rows.

    Returns:
        Near 0 where all are the same, about 1 where they point everywhere.
    """
    embeddings = np.asarray(embeddings, np.float64)
    return float(embeddings.std(axis=0).mean() * math.sqrt(embeddings.shape[1]))


def warnings(rank, spread, teacher_entropy=None, references=None):
    """What is going wrong, in plain words, with the flag that usually helps.

    Args:
        rank: `effective_rank` of the embeddings.
        spread: `spread` of the embeddings.
        teacher_entropy: of the relation, in nats; None where nothing learns from it.
        references: how many a relation is over.

    Returns:
        List of strings, empty where all is well.
    """
    found = []
    if rank < 2 or spread < 0.1:
        found.append(
            "The embeddings collapse: all images get nearly the same one (effective "
            f"rank {rank:.1f}, spread {spread:.2f} of 1). What usually helps: a "
            "--teacher_temperature well below --student_temperature, a higher "
            "--momentum, a lower --learning_rate."
        )
    if teacher_entropy is None:
        return found
    if teacher_entropy > 0.99 * math.log(references):
        found.append(
            f"The teacher's relation is nearly uniform ({teacher_entropy:.2f} of "
            f"{math.log(references):.2f} nats): it teaches nothing. What usually "
            "helps: a lower --teacher_temperature."
        )
    elif teacher_entropy < 0.05:
        found.append(
            f"The teacher's relation names one neighbour only ({teacher_entropy:.2f} "
            "nats). What usually helps: a higher --teacher_temperature."
        )
    return found
