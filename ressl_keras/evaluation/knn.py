"""The weighted nearest-neighbour classifier, and accuracies of class scores."""

import numpy as np
import tensorflow as tf


def knn_accuracy(train_features, train_labels, test_features, test_labels, **options):
    """Accuracy of the weighted nearest-neighbour classifier.

    Args:
        train_features: float array [train, dim]; need not be normalised.
        train_labels: integer array [train].
        test_features: float array [test, dim].
        test_labels: integer array [test].
        **options: further arguments of `knn_votes`.

    Returns:
        Dict of `top1` and `top5`, in per cent.
    """
    votes = knn_votes(train_features, train_labels, test_features, **options)
    return accuracies(votes, test_labels)


def knn_votes(
    train_features,
    train_labels,
    test_features,
    k=200,
    temperature=0.1,
    block=1024,
):
    """Class scores of each test image by its nearest training images.

    Each of the k nearest, by cosine similarity, votes for its class with weight
    exp(similarity / temperature) (arXiv 1805.01978, section 3.4).

    Args:
        train_features: float array [train, dim]; need not be normalised.
        train_labels: integer array [train].
        test_features: float array [test, dim].
        k: number of neighbours, at most [train] of them.
        temperature: positive number.
        block: test images compared at once; bounds the memory.

    Returns:
        float32 array [test, classes], as many as the training labels have.
    """
    bank = tf.math.l2_normalize(tf.cast(train_features, tf.float32), axis=-1)
    queries = tf.math.l2_normalize(tf.cast(test_features, tf.float32), axis=-1)
    bank_labels = tf.cast(train_labels, tf.int32)
    classes = int(train_labels.max()) + 1
    k = min(k, len(train_labels))

    votes = [
        _vote(queries[i : i + block], bank, bank_labels, k, temperature, classes)
        for i in range(0, len(queries), block)
    ]
    return np.concatenate(votes)


@tf.function(reduce_retracing=True)
def _vote(queries, bank, labels, k, temperature, classes):
    """Votes [queries, classes]; traced once for all evaluations of a run."""
    similarities = tf.matmul(queries, bank, transpose_b=True)
    nearest, indices = tf.math.top_k(similarities, k)
    return tf.math.bincount(
        tf.gather(labels, indices),
        tf.exp((nearest - 1) / temperature),
        minlength=classes,
        maxlength=classes,
        axis=-1,
    )


def accuracies(scores, labels):
    """Top-1 and top-5 accuracy of class scores.

    Args:
        scores: float array [count, classes].
        labels: integer array [count].

    Returns:
        Dict of `top1` and `top5`, in per cent.
    """
    order = np.argsort(-scores, axis=-1, kind="stable")[:, :5]
    hits = order == np.asarray(labels)[:, np.newaxis]
    return {
        "top1": float(100 * hits[:, 0].mean()),
        "top5": float(100 * hits.any(axis=-1).mean()),
    }
