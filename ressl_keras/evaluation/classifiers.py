"""Classifiers that learn on images: the paper's linear probe and fine-tuning."""

import dataclasses
import hashlib

import keras
import numpy as np
import tensorflow as tf

from ressl_keras import devices
from ressl_keras.data.images import Subset, stratified
from ressl_keras.data.pipeline import labelled_crops
from ressl_keras.data.plain import plain
from ressl_keras.encoders.embed import encode
from ressl_keras.encoders.encoder import clone_encoder, input_size, is_frozen
from ressl_keras.errors import UsageError
from ressl_keras.evaluation.features import (
    ONE_DEVICE,
    Resources,
    fingerprint,
    readable_features,
)
from ressl_keras.evaluation.keeping import Keeper
from ressl_keras.evaluation.knn import accuracies
from ressl_keras.evaluation.linear import blocks, class_count
from ressl_keras.weights import copy_weights


def online_linear_probe(
    encoder,
    train,
    test,
    epochs=100,
    batch_size=256,
    learning_rate=0.3,
    seed=0,
    resources=ONE_DEVICE,
    name="linear",
    keep=None,
):
    """Accuracy of a linear classifier on crops and flips, with the encoder frozen.

    The protocol of the paper's `linear_eval.py`: a layer that starts from normal draws
    of deviation 0.01 and a bias of zero; SGD with momentum 0.9, no weight decay, cosine
    decay; crops of 8 to 100 % of the area and flips; features as they are. Evaluated is
    the last epoch, on central squares.

    Args:
        encoder: `keras.Model` from images in 0-255 to features [batch, dim].
        train: labelled images to learn from.
        test: labelled images to evaluate on.
        epochs: passes over the training images.
        batch_size: images per step, on all devices together.
        learning_rate: for a batch of 256, scaled with the batch size; decays to zero.
        seed: integer seed of initialisation, order, crops and flips.
        resources: `features.Resources`: devices, and where the state is kept.
        name: names the state and the lines of progress.
        keep: as in `linear.linear_probe`.

    Returns:
        Dict of `top1` and `top5`, in per cent; None on workers other than the chief.
    """
    size = input_size(encoder, train)
    plan = _Plan(train, batch_size, epochs, size, seed, (0.08, 1.0), resources)
    with resources.scope():
        start = keras.initializers.RandomNormal(stddev=0.01, seed=seed)
        head = keras.layers.Dense(
            class_count(train.labels, test.labels), kernel_initializer=start
        )
        frozen = keras.layers.Lambda(
            # The closure keeps the encoder out of the model: it is not trained.
            lambda images: tf.stop_gradient(encoder(images, training=False)),
            output_shape=encoder.output_shape[1:],
        )
        images = keras.Input([size, size, train.channels])
        probe = keras.Sequential([images, frozen, head])
    plan.train(probe, learning_rate * plan.batch_size / 256, name, encoder)
    features, test = readable_features(encoder, test, resources)
    if features is None:
        return None
    kernel, bias = head.get_weights()
    scores = np.concatenate([block @ kernel + bias for block in blocks(features)])
    if keep:
        keep(kernel, bias, scores, test.labels)
    return accuracies(scores, test.labels)


def finetune(
    encoder,
    train,
    test,
    epochs=None,
    batch_size=64,
    learning_rate=0.05,
    seed=0,
    resources=ONE_DEVICE,
    name="finetune",
    early_stopping=None,
    class_weights=False,
    keep=None,
):
    """Accuracy of a classifier that starts from an encoder's weights.

    A linear head is put on the encoder, and all weights are trained on random crops and
    flips: SGD with momentum 0.9 and cosine decay. On several devices a batch norm takes
    the statistics of each device's part of the batch.

    Args:
        encoder: `keras.Model` from images in 0-255 to features [batch, dim]; its own
            weights stay as they are.
        train: labelled images to learn from.
        test: labelled images to evaluate on.
        epochs: passes over `train`; None takes 10, or as many as make 1000 steps.
        batch_size: images per step, on all devices together.
        learning_rate: for a batch of 64, scaled with `batch_size`; decays to zero.
        seed: integer seed of head, order, crops and flips.
        resources: `features.Resources`: devices, and where the state is kept.
        name: names the state and the lines of progress.
        early_stopping: epochs without a better accuracy on a held-out tenth of `train`
            after which it stops; the best epoch counts. None trains to the end on all
            of `train`.
        class_weights: whether all classes of `train` weigh the same in the loss.
        keep: as in `linear.linear_probe`, called with the fine-tuned encoder, too.

    Returns:
        Dict of `top1` and `top5`, in per cent; None on workers other than the chief.

    Raises:
        UsageError: if the encoder is a SavedModel, which cannot be trained; or of
            several machines one is to stop early.
    """
    if is_frozen(encoder):
        raise UsageError(
            "A SavedModel cannot be fine-tuned: its weights are frozen. Give the "
            ".keras file."
        )
    keras.utils.set_random_seed(seed)
    size, callbacks, held_out = input_size(encoder, train), [], None
    if early_stopping:
        train, held_out = _held_out(train, seed, resources)
    plan = _Plan(train, batch_size, epochs, size, seed, (0.2, 1.0), resources)
    if class_weights:
        plan.weights = balanced(train.labels)
    with resources.scope():
        network = clone_encoder(encoder)
        copy_weights(encoder, network)
        classes = class_count(train.labels, test.labels)
        classifier = keras.Sequential(
            [
                keras.Input([size, size, train.channels]),
                network,
                keras.layers.Dense(classes, name="head"),
            ]
        )
    if held_out is not None:
        callbacks = [_HeldOut(held_out), _stopping(early_stopping)]
    plan.train(classifier, learning_rate * batch_size / 64, name, encoder, callbacks)
    uncached = dataclasses.replace(resources, cache=None)
    scores, test = readable_features(classifier, test, uncached)
    if scores is None:
        return None
    if keep:
        keep(*classifier.layers[-1].get_weights(), scores, test.labels, network)
    return accuracies(scores, test.labels)


def balanced(labels):
    """Weights of the classes with which all of them count the same.

    Args:
        labels: integer array [count].

    Returns:
        float32 array [classes], of mean 1 over the images; 0 for a class without any.
    """
    counts = np.bincount(labels)
    weights = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return np.where(counts > 0, weights, 0).astype(np.float32)


def _held_out(train, seed, resources):
    """The labelled images to learn from, and a tenth of the classes' to stop by."""
    if resources.place[1] > 1:
        raise UsageError("--early_stopping is for one machine.")
    # The only image of a class is learned from.
    several = np.flatnonzero(np.bincount(train.labels)[train.labels] > 1)
    if not len(several):
        raise UsageError("--early_stopping needs two labelled images of a class.")
    held_out = several[stratified(Subset(train, several), 0.1, seed).indices.numpy()]
    rest = np.setdiff1d(np.arange(len(train)), held_out)
    return Subset(train, rest), Subset(train, held_out)


class _HeldOut(keras.callbacks.Callback):
    """Adds the accuracy on held-out images to the logs of an epoch."""

    def __init__(self, images):
        super().__init__()
        self.images = images

    def on_epoch_end(self, epoch, logs=None):
        scores = encode(self.images, self.model, verbose=0)
        logs["held_out_top1"] = accuracies(scores, self.images.labels)["top1"]


def _stopping(patience):
    return keras.callbacks.EarlyStopping(
        "held_out_top1", mode="max", patience=patience, restore_best_weights=True
    )


@dataclasses.dataclass
class _Plan:
    """The batches of a classifier's training and how it is carried out."""

    train_images: object
    batch_size: int
    epochs: int | None
    size: int
    seed: int
    scale: tuple
    resources: Resources
    weights: np.ndarray | None = None

    def __post_init__(self):
        strategy = self.resources.strategy
        replicas = strategy.num_replicas_in_sync if strategy else 1
        most = min(self.batch_size, len(self.train_images))
        # In equal parts for the replicas.
        self.batch_size = max(most // replicas, 1) * replicas
        self.steps_per_epoch = len(self.train_images) // self.batch_size
        if not self.steps_per_epoch:
            raise UsageError(
                f"{len(self.train_images)} labelled images are too few for {replicas} "
                "devices; give --strategy=one_device."
            )
        self.epochs = self.epochs or max(10, -(-1000 // self.steps_per_epoch))

    def train(self, classifier, learning_rate, name, encoder, callbacks=()):
        """Trains a classifier, or the rest of it where a state is kept.

        With further callbacks, which have a state of their own, none is kept.
        """
        steps = self.epochs * self.steps_per_epoch
        strategy = self.resources.strategy or tf.distribute.get_strategy()
        with self.resources.scope():
            decay = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
            optimizer = keras.optimizers.SGD(decay, 0.9)
            classifier.compile(
                optimizer,
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                jit_compile=False,
            )
            optimizer.build(classifier.trainable_variables)
        identity = f"{fingerprint(encoder, self.train_images)} {steps} {learning_rate} "
        identity += f"{self.batch_size} {self.size} {self.seed} {self.scale}"
        of_labels = hashlib.sha256(np.array(self.train_images.labels, np.int64))
        identity += f" {of_labels.hexdigest()} {classifier.output_shape[-1]}"
        identity += f" {self.weights is not None}"
        kept = dataclasses.replace(self.resources, work=None)
        kept = kept if callbacks else self.resources
        keeper = Keeper(name, identity, self.epochs, kept)
        first = keeper.restore(classifier)
        if first == self.epochs:
            return

        def batches(worker, workers):
            return self._weighted(crops(worker, workers))

        def crops(worker, workers):
            return labelled_crops(
                self.train_images,
                self.batch_size,
                self.epochs,
                self.size,
                self.seed,
                self.scale,
                first,
                worker,
                workers,
            )

        devices.fit(
            classifier,
            batches,
            strategy=strategy,
            initial_epoch=first,
            epochs=self.epochs,
            steps_per_epoch=self.steps_per_epoch,
            callbacks=keras.callbacks.CallbackList(
                [*callbacks, keeper], True, model=classifier
            ),
        )

    def _weighted(self, batches):
        """The same batches with a weight for each image, where classes have some."""
        if self.weights is None:
            return batches
        weights = tf.constant(self.weights)
        return batches.map(plain(lambda x, y: (x, y, tf.gather(weights, y))))
