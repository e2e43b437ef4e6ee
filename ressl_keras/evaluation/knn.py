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
    bank_block=None,
):
    """Class scores of each test image by its nearest training images.

    Each of the k nearest, by cosine similarity, votes for its class with weight
    exp(similarity / temperature) (arXiv 1805.01978, section 3.4).

    The features may be memory maps. Those of training are read once, block by block;
    each test image keeps the k nearest seen so far. A block of training features, its
    unit rows and its similarities are all that is on the device beside those.

    Args:
        train_features: float array [train, dim]; need not be normalised.
        train_labels: integer array [train].
        test_features: float array [test, dim].
        k: number of neighbours, at most [train] of them.
        temperature: positive number.
        block: test images compared at once; bounds the memory.
        bank_block: training images compared at once; None takes all up to 65,536, of
            more 4,096 at a time, which bounds the memory.

    Returns:
        float32 array [test, classes], as many as the training labels have.
    """
    classes = int(train_labels.max()) + 1
    k = min(k, len(train_labels))
    bank_block = bank_block or (65536 if len(train_labels) <= 65536 else 4096)
    starts = range(0, len(test_features), block)
    nearest = []
    for start in starts:
        none = [min(block, len(test_features) - start), 0]
        nearest.append((tf.zeros(none), tf.zeros(none, tf.int32)))
    for first in range(0, len(train_features), bank_block):
        bank = _unit(train_features[first : first + bank_block])
        labels = tf.cast(train_labels[first : first + bank_block], tf.int32)
        for number, start in enumerate(starts):
            queries = _unit(test_features[start : start + block])
            nearest[number] = _nearest(queries, bank, labels, *nearest[number], k)
        del bank, labels  # before the next block is read
    return np.concatenate([_vote(*each, temperature, classes) for each in nearest])


def _unit(rows):
    return tf.math.l2_normalize(tf.cast(rows, tf.float32), axis=-1)


@tf.function(reduce_retracing=True)
def _nearest(queries, bank, labels, before, labels_before, k):
    """Similarities and labels [queries, k] of the nearest, also of those before.

    Traced once for all evaluations of a run. Of equally similar ones the earlier win.
    """
    similarities = tf.matmul(queries, bank, transpose_b=True)
    found, indices = tf.math.top_k(similarities, tf.minimum(k, tf.shape(bank)[0]))
    found_labels = tf.gather(labels, indices)
    merged = tf.concat([before, found], axis=1)
    nearest, indices = tf.math.top_k(merged, tf.minimum(k, tf.shape(merged)[1]))
    merged_labels = tf.concat([labels_before, found_labels], axis=1)
    return nearest, tf.gather(merged_labels, indices, batch_dims=1)


@tf.function(reduce_retracing=True)
def _vote(nearest, labels, temperature, classes):
    """Votes [queries, classes] of the nearest."""
    return tf.math.bincount(
        labels,
        tf.exp((nearest - 1) / temperature),
        minlength=classes,
        maxlength=classes,
        axis=-1,
    )


def accuracies(scores, labels, block=8192):
    """Top-1 and top-5 accuracy of class scores.

    Args:
        scores: float array [count, classes].
        labels: integer array [count].
        block: rows sorted at once; bounds the memory.

    Returns:
        Dict of `top1` and `top5`, in per cent.
    """
    hits = []
    for start in range(0, len(scores), block):
        rows = slice(start, start + block)
        order = np.argsort(-scores[rows], axis=-1, kind="stable")[:, :5]
        hits.append(order == np.asarray(labels[rows])[:, np.newaxis])
    hits = np.concatenate(hits)
    return {
        "top1": float(100 * hits[:, 0].mean()),
        "top5": float(100 * hits.any(axis=-1).mean()),
    }
