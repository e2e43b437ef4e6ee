"""Judges of frozen features: neighbours and linear classifiers."""

import keras
import numpy as np
import tensorflow as tf

from ressl_keras import data, labelled
from ressl_keras.encoders import encode, input_side


def knn(train_features, train_labels, test_features, test_labels, **options):
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
    """What the neighbours say of each test image.

    The vote of each of the k nearest training images, by cosine similarity, weighs
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

    @tf.function(input_signature=[tf.TensorSpec([None, bank.shape[1]])])
    def vote(block_queries):
        similarities = tf.matmul(block_queries, bank, transpose_b=True)
        nearest, places = tf.math.top_k(similarities, k)
        weights = tf.exp((nearest - 1) / temperature)
        return tf.math.bincount(
            tf.gather(bank_labels, places),
            weights,
            minlength=classes,
            maxlength=classes,
            axis=-1,
        )

    votes = [vote(queries[i : i + block]) for i in range(0, len(queries), block)]
    return np.concatenate(votes)


def linear_probe(
    train_features,
    train_labels,
    test_features,
    test_labels,
    epochs=100,
    batch_size=1024,
    learning_rate=0.01,
    seed=0,
):
    """Accuracy of a linear classifier trained on features extracted once.

    The features are standardised, then a softmax regression is trained on them with
    Adam, large batches and cosine decay: seconds where `online_linear_probe`, the
    paper's protocol, takes as long as a hundred passes over the images.

    Args:
        train_features: float array [train, dim].
        train_labels: integer array [train].
        test_features: float array [test, dim].
        test_labels: integer array [test].
        epochs: passes over the training features.
        batch_size: features a step.
        learning_rate: at the start; decays to zero.
        seed: integer seed of order and initialisation.

    Returns:
        Dict of `top1` and `top5`, in per cent.
    """
    mean, std = train_features.mean(0), train_features.std(0) + 1e-6
    train_features = ((train_features - mean) / std).astype(np.float32)
    test_features = ((test_features - mean) / std).astype(np.float32)
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    count, dim = train_features.shape
    batch_size = min(batch_size, count)
    steps = epochs * (count // batch_size)
    head = keras.Sequential(
        [keras.Input([dim]), keras.layers.Dense(classes, kernel_initializer="zeros")]
    )
    head.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(learning_rate, steps)
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
        steps_per_execution=max(count // batch_size, 1),
    )
    features, labels = tf.constant(train_features), tf.constant(train_labels)
    indices = data.shuffled_indices(count, batch_size, seed, 0, steps)
    head.fit(
        indices.map(lambda i: (tf.gather(features, i), tf.gather(labels, i))),
        steps_per_epoch=count // batch_size,
        epochs=epochs,
        shuffle=False,
        verbose=0,
    )
    scores = head.predict(test_features, batch_size=4096, verbose=0)
    return accuracies(scores, test_labels)


def online_linear_probe(
    encoder,
    train,
    test,
    epochs=100,
    batch_size=256,
    learning_rate=0.1,
    seed=0,
    verbose=0,
):
    """Accuracy of a linear classifier trained on crops and flips, the encoder frozen.

    The paper's protocol: SGD with momentum, cosine decay, 100 epochs, no weight decay.
    Features are standardised, by the statistics of some of the uncropped images, so
    that one learning rate serves encoders of any scale.

    Args:
        encoder: `keras.Model` from images in 0-255 to features [batch, dim].
        train: labelled images to learn from.
        test: labelled images to be judged on.
        epochs: passes over the training images.
        batch_size: images a step.
        learning_rate: for a batch of 256, scaled with the batch size; decays to zero.
        seed: integer seed of order, crops and flips.
        verbose: as in `keras.Model.fit`.

    Returns:
        Dict of `top1` and `top5`, in per cent.
    """
    size = input_side(encoder, train)
    batch_size = min(batch_size, len(train))
    steps = epochs * (len(train) // batch_size)
    classes = int(max(train.labels.max(), test.labels.max())) + 1
    normalization = keras.layers.Normalization()
    sample = labelled.Selection(train, data.evaluation_indices(train, 4096))
    normalization.adapt(encode(sample, encoder, verbose=0))
    head = keras.Sequential(
        [
            keras.Input(encoder.output_shape[1:]),
            normalization,
            keras.layers.Dense(classes, kernel_initializer="zeros"),
        ]
    )
    head.compile(
        keras.optimizers.SGD(
            keras.optimizers.schedules.CosineDecay(
                learning_rate * batch_size / 256, steps
            ),
            momentum=0.9,
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )

    def features(images, labels):
        return encoder(images, training=False), labels

    batches = labelled.crops(train, batch_size, epochs, size, seed)
    head.fit(
        batches.map(features).prefetch(tf.data.AUTOTUNE),
        steps_per_epoch=len(train) // batch_size,
        epochs=epochs,
        shuffle=False,
        verbose=verbose,
    )
    scores = head.predict(encode(test, encoder, verbose=0), verbose=0)
    return accuracies(scores, test.labels)


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
