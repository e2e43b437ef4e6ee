"""Classifiers that evaluate an encoder: linear probes and fine-tuning."""

import keras
import numpy as np
import tensorflow as tf

from ressl_keras.data.images import Subset, spread_indices
from ressl_keras.data.pipeline import labelled_crops, shuffled_indices
from ressl_keras.encoders.embed import batches_of, encode
from ressl_keras.encoders.encoder import input_size, is_frozen
from ressl_keras.errors import UsageError
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
):
    """Accuracy of a linear classifier on features that are extracted once.

    The features are standardised, then a softmax regression is trained on them with
    Adam, large batches and cosine decay. It takes seconds where `online_linear_probe`,
    the paper's protocol, takes as long as a hundred passes over the images.

    Args:
        train_features: float array [train, dim].
        train_labels: integer array [train].
        test_features: float array [test, dim].
        test_labels: integer array [test].
        epochs: passes over the training features.
        batch_size: features per step.
        learning_rate: at the start; decays to zero.
        seed: integer seed of order and initialisation.

    Returns:
        Dict of `top1` and `top5`, in per cent.
    """
    mean, std = train_features.mean(0), train_features.std(0) + 1e-6
    train_features = ((train_features - mean) / std).astype(np.float32)
    test_features = ((test_features - mean) / std).astype(np.float32)
    count, dim = train_features.shape
    batch_size = min(batch_size, count)
    steps = epochs * (count // batch_size)
    classes = _class_count(train_labels, test_labels)
    head = keras.Sequential(
        [keras.Input([dim]), keras.layers.Dense(classes, kernel_initializer="zeros")]
    )
    features, labels = tf.constant(train_features), tf.constant(train_labels)
    indices = shuffled_indices(count, batch_size, seed, 0, steps)
    _train(
        head,
        indices.map(lambda i: (tf.gather(features, i), tf.gather(labels, i))),
        keras.optimizers.Adam(_cosine(learning_rate, steps)),
        epochs,
        steps_per_epoch=count // batch_size,
        steps_per_execution=max(count // batch_size, 1),
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
    """Accuracy of a linear classifier on crops and flips, with the encoder frozen.

    The paper's protocol: SGD with momentum, cosine decay, 100 epochs, no weight decay.
    Features are standardised, by the statistics of some of the uncropped images, so
    that one learning rate serves encoders of any scale.

    Args:
        encoder: `keras.Model` from images in 0-255 to features [batch, dim].
        train: labelled images to learn from.
        test: labelled images to evaluate on.
        epochs: passes over the training images.
        batch_size: images per step.
        learning_rate: for a batch of 256, scaled with the batch size; decays to zero.
        seed: integer seed of order, crops and flips.
        verbose: as in `keras.Model.fit`.

    Returns:
        Dict of `top1` and `top5`, in per cent.
    """
    size = input_size(encoder, train)
    batch_size = min(batch_size, len(train))
    steps_per_epoch = len(train) // batch_size
    normalization = keras.layers.Normalization()
    sample = Subset(train, spread_indices(train, 4096))
    normalization.adapt(encode(sample, encoder, verbose=0))
    classes = _class_count(train.labels, test.labels)
    head = keras.Sequential(
        [
            keras.Input(encoder.output_shape[1:]),
            normalization,
            keras.layers.Dense(classes, kernel_initializer="zeros"),
        ]
    )

    def features(images, labels):
        return encoder(images, training=False), labels

    batches = labelled_crops(train, batch_size, epochs, size, seed)
    peak = learning_rate * batch_size / 256
    _train(
        head,
        batches.map(features).prefetch(tf.data.AUTOTUNE),
        keras.optimizers.SGD(_cosine(peak, epochs * steps_per_epoch), momentum=0.9),
        epochs,
        steps_per_epoch,
        verbose=verbose,
    )
    scores = head.predict(encode(test, encoder, verbose=0), verbose=0)
    return accuracies(scores, test.labels)


def finetune(
    encoder,
    train,
    test,
    epochs=None,
    batch_size=64,
    learning_rate=0.05,
    seed=0,
    verbose=0,
):
    """Accuracy of a classifier that starts from an encoder's weights.

    A linear head is put on the encoder, and all weights are trained on random crops and
    flips: SGD with momentum 0.9 and cosine decay.

    Args:
        encoder: `keras.Model` from images in 0-255 to features [batch, dim]; its own
            weights stay as they are.
        train: labelled images to learn from.
        test: labelled images to evaluate on.
        epochs: passes over `train`; None takes 10, or as many as make 1000 steps.
        batch_size: images per step.
        learning_rate: at the start; decays to zero.
        seed: integer seed of head, order, crops and flips.
        verbose: as in `keras.Model.fit`.

    Returns:
        Dict of `top1` and `top5`, in per cent.

    Raises:
        UsageError: if the encoder is a SavedModel, which cannot be trained.
    """
    if is_frozen(encoder):
        raise UsageError(
            "A SavedModel cannot be fine-tuned: its weights are frozen. Give the "
            ".keras file."
        )
    keras.utils.set_random_seed(seed)
    size = input_size(encoder, train)
    batch_size = min(batch_size, len(train))
    steps_per_epoch = len(train) // batch_size
    epochs = epochs or max(10, -(-1000 // steps_per_epoch))
    network = keras.models.clone_model(encoder)
    network.set_weights(encoder.get_weights())
    classes = _class_count(train.labels, test.labels)
    classifier = keras.Sequential(
        [
            keras.Input([size, size, train.channels]),
            network,
            keras.layers.Dense(classes, name="head"),
        ]
    )
    schedule = _cosine(learning_rate, epochs * steps_per_epoch)
    _train(
        classifier,
        labelled_crops(train, batch_size, epochs, size, seed),
        keras.optimizers.SGD(schedule, momentum=0.9),
        epochs,
        steps_per_epoch,
        verbose=verbose,
    )
    scores = np.concatenate(
        [classifier(batch, training=False) for batch in batches_of(test, size)]
    )
    return accuracies(scores, test.labels)


def _class_count(*labels):
    """Number of classes in all of the labels together."""
    return int(max(array.max() for array in labels)) + 1


def _cosine(learning_rate, steps):
    return keras.optimizers.schedules.CosineDecay(learning_rate, steps)


def _train(
    classifier,
    batches,
    optimizer,
    epochs,
    steps_per_epoch,
    steps_per_execution=1,
    verbose=0,
):
    """Trains a classifier on batches of (inputs, labels), in their order."""
    classifier.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
        steps_per_execution=steps_per_execution,
    )
    classifier.fit(
        batches,
        steps_per_epoch=steps_per_epoch,
        epochs=epochs,
        shuffle=False,
        verbose=verbose,
    )
