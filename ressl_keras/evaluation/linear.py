"""A linear classifier on features that are extracted once."""

import keras
import numpy as np
import tensorflow as tf

from ressl_keras.data.pipeline import shuffled_indices
from ressl_keras.data.plain import plain
from ressl_keras.evaluation.knn import accuracies


def linear_probe(
    train_features,
    train_labels,
    test_features,
    test_labels,
    epochs=100,
    batch_size=1024,
    learning_rate=0.01,
    seed=0,
    keep=None,
):
    """Accuracy of a linear classifier on features that are extracted once.

    The features are standardised, then a softmax regression is trained on them with
    Adam, large batches and cosine decay. It takes seconds where `online_linear_probe`,
    the paper's protocol, takes as long as a hundred passes over the images.

    Of memory maps only a batch or a block of rows is read at a time.

    Args:
        train_features: float array [train, dim].
        train_labels: integer array [train].
        test_features: float array [test, dim].
        test_labels: integer array [test].
        epochs: passes over the training features.
        batch_size: features per step.
        learning_rate: at the start; decays to zero.
        seed: integer seed of order and initialisation.
        keep: called with the kernel and the bias of the layer on features as they are,
            and scores and labels of the test images; or None.

    Returns:
        Dict of `top1` and `top5`, in per cent.
    """
    mean, std = moments(train_features)
    count, dim = train_features.shape
    batch_size = min(batch_size, count)
    steps = epochs * (count // batch_size)
    classes = class_count(train_labels, test_labels)
    head = keras.Sequential(
        [keras.Input([dim]), keras.layers.Dense(classes, kernel_initializer="zeros")]
    )
    decay = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    head.compile(
        keras.optimizers.Adam(decay),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
        steps_per_execution=max(count // batch_size, 1),
    )
    rows, labels = _standardised(train_features, mean, std), tf.constant(train_labels)
    indices = shuffled_indices(count, batch_size, seed, 0, steps)
    head.fit(
        indices.map(plain(lambda i: (rows(i), tf.gather(labels, i)))).prefetch(2),
        steps_per_epoch=count // batch_size,
        epochs=epochs,
        shuffle=False,
        verbose=0,
    )
    scores = [
        head.predict(_scaled(block, mean, std), batch_size=4096, verbose=0)
        for block in blocks(test_features)
    ]
    scores = np.concatenate(scores)
    if keep:
        kernel, bias = head.get_weights()
        kernel = kernel / std[:, np.newaxis]
        keep(kernel, bias - mean @ kernel, scores, test_labels)
    return accuracies(scores, test_labels)


def blocks(rows, size=16384):
    """The rows of an array or a memory map, a block at a time."""
    return (rows[i : i + size] for i in range(0, len(rows), size))


def moments(rows):
    """Mean and standard deviation of each column, plus a little; one pass."""
    if len(rows) <= 65536:
        return rows.mean(0), rows.std(0) + 1e-6
    # About the mean of the first rows, so that the squares lose no digits.
    origin = rows[:16384].mean(0, dtype=np.float64)
    total, squares = np.zeros_like(origin), np.zeros_like(origin)
    for block in blocks(rows):
        block = block - origin
        total += block.sum(0)
        squares += (block**2).sum(0)
    mean = total / len(rows)
    variance = np.maximum(squares / len(rows) - mean**2, 0)
    mean, std = origin + mean, np.sqrt(variance)
    return mean.astype(np.float32), std.astype(np.float32) + np.float32(1e-6)


def _scaled(rows, mean, std):
    return ((rows - mean) / std).astype(np.float32)


def _standardised(features, mean, std):
    """A function from indices to standardised rows, in a graph.

    Of a memory map only the rows of a batch are read.
    """
    if not isinstance(features, np.memmap):
        kept = tf.constant(_scaled(features, mean, std))
        return lambda indices: tf.gather(kept, indices)

    def read(indices):
        return _scaled(features[indices], mean, std)

    def rows(indices):
        found = tf.numpy_function(read, [indices], tf.float32, stateful=False)
        return tf.ensure_shape(found, [indices.shape[0], features.shape[1]])

    return rows


def class_count(*labels):
    """Number of classes in all of the labels together."""
    return int(max(array.max() for array in labels)) + 1
