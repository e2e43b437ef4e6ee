"""Signs of collapse, which a falling loss does not show."""

import math

import numpy as np

# Below one of these the embeddings have collapsed.
LEAST_RANK = 2
LEAST_STD = 0.1


def effective_rank(embeddings):
    """Number of dimensions that the embeddings use (RankMe, arXiv 2210.02885).

    The exponential of the entropy of the normalised singular values: 1 if all
    embeddings point one way, `dim` if they spread evenly over all dimensions.

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


def relative_std(embeddings):
    """Standard deviation of unit embeddings, relative to that of random directions.

    Args:
        embeddings: float array [count, dim], unit rows.

    Returns:
        Near 0 if all are equal, about 1 if they point in all directions.
    """
    embeddings = np.asarray(embeddings, np.float64)
    return float(embeddings.std(axis=0).mean() * math.sqrt(embeddings.shape[1]))


def has_collapsed(rank, std):
    """Whether all images get nearly the same embedding.

    Args:
        rank: `effective_rank` of the embeddings.
        std: `relative_std` of the embeddings.
    """
    return rank < LEAST_RANK or std < LEAST_STD


def warnings(rank, std, teacher_entropy=None, references=None):
    """Signs of collapse in plain words, each with the flag that usually helps.

    Args:
        rank: `effective_rank` of the embeddings.
        std: `relative_std` of the embeddings.
        teacher_entropy: of the teacher's relation, in nats; None if the loss does not
            use it.
        references: number of references of a relation.

    Returns:
        List of strings, empty where all is well.
    """
    found = []
    if has_collapsed(rank, std):
        found.append(
            "The embeddings collapse: all images get nearly the same embedding "
            f"(effective rank {rank:.1f}, relative standard deviation {std:.2f}). "
            "What usually helps: a --teacher_temperature well below "
            "--student_temperature, a higher --momentum, a lower --learning_rate."
        )
    if teacher_entropy is None:
        return found
    if teacher_entropy > 0.99 * math.log(references):
        found.append(
            f"The teacher's relation is nearly uniform ({teacher_entropy:.2f} of "
            f"{math.log(references):.2f} nats): it carries no information. "
            "What usually helps: a lower --teacher_temperature."
        )
    elif teacher_entropy < 0.05:
        found.append(
            f"The teacher's relation is nearly one-hot ({teacher_entropy:.2f} "
            "nats). What usually helps: a higher --teacher_temperature."
        )
    return found
