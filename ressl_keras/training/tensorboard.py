"""TensorBoard beside the curves: views, similarities, an embedding map."""

import math
import os

import keras
import numpy as np
import tensorflow as tf
from PIL import Image
from tensorboard.plugins import projector

from ressl_keras.augmentation.layers import View
from ressl_keras.augmentation.statistics import statistics
from ressl_keras.data.images import Subset, spread_indices
from ressl_keras.data.pipeline import evaluation_batches
from ressl_keras.errors import naming_disk_errors
from ressl_keras.evaluation import pictures
from ressl_keras.evaluation.features import ONE_DEVICE, readable_features
from ressl_keras.files import replacing, write_lines
from ressl_keras.training.callbacks import StepCallback, is_due

_THUMBNAIL = 32  # side in pixels


class Profiler(StepCallback):
    """Writes a profile of some steps.

    Keras' callback passes the logs of every batch to a summary that is not written,
    which waits for the device, and begins to count anew in every call of `fit`.

    Args:
        folder: of the TensorBoard logs.
        first: first step, counted from the one that this process begins with.
        last: last step; a call of the compiled graph that has it is profiled to its
            end, and no profile goes beyond a call of `fit`.
    """

    def __init__(self, folder, first, last):
        super().__init__()
        self.folder, self.first, self.last = str(folder), first, last
        self._start, self._running = None, False

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        if self._start is None:
            self._start = self.step

    def on_train_batch_begin(self, batch, logs=None):
        done = self.step - self._start
        due = done + self.model.steps_per_execution >= self.first
        if due and done < self.last and not self._running:
            with naming_disk_errors(self.folder):
                tf.profiler.experimental.start(self.folder)
            self._running = True

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        if self._running and self.step - self._start >= self.last:
            self._stop()

    def on_train_end(self, logs=None):
        if self._running:
            self._stop()

    def _stop(self):
        with naming_disk_errors(self.folder):
            tf.profiler.experimental.stop()
        self._running, self.last = False, 0


class StepScalars(StepCallback):
    """Writes the metrics against the number of steps, and the flags as text.

    Within an epoch a metric is its mean since the epoch's begin.

    Args:
        folder: of the TensorBoard logs.
        every: steps between two points; 0: at the end of each epoch only.
        flags: lines of text, such as those of `Config.to_flags`.
    """

    def __init__(self, folder, every=50, flags=()):
        super().__init__()
        self.folder, self.every, self.flags = str(folder), every, list(flags)
        self._writer = None

    def on_train_begin(self, logs=None):
        if self._writer is not None:
            return  # a run may call `fit` several times
        self._writer = tf.summary.create_file_writer(os.path.join(self.folder, "train"))
        with self._writer.as_default(step=0):
            # Indented lines are shown as they are.
            tf.summary.text("flags", "\n".join(f"    {flag}" for flag in self.flags))

    def on_train_batch_end(self, batch, logs=None):
        before = self.step
        super().on_train_batch_end(batch, logs)
        if self.every and self.step // self.every > before // self.every:
            self._write(logs)

    def on_epoch_end(self, epoch, logs=None):
        self._write(logs)

    def on_train_end(self, logs=None):
        with naming_disk_errors(self.folder):
            self._writer.flush()

    def _write(self, logs):
        with naming_disk_errors(self.folder), self._writer.as_default(step=self.step):
            for name, value in (logs or {}).items():
                tf.summary.scalar(name, float(value))


class Dashboard(keras.callbacks.Callback):
    """Writes the views, histograms of the similarities to the queue, and embeddings.

    Args:
        folder: of the TensorBoard logs.
        encoder: `keras.Model` from images in 0-255 to features, which shares its
            weights with the model in training.
        images: images to embed; their labels are shown where they have some.
        class_names: names of the labels; without them they are shown as numbers.
        picture: path of the picture of the views, or None.
        every: epochs between evaluations; 0: after the last epoch only.
        last_epoch: number of the last epoch, which is always evaluated.
        count: images embedded at most; the histograms use 256 of them.
    """

    def __init__(
        self,
        folder,
        encoder,
        images,
        class_names=(),
        picture=None,
        every=1,
        last_epoch=None,
        count=2000,
    ):
        super().__init__()
        self.folder, self.encoder, self.class_names = folder, encoder, class_names
        self.images = Subset(images, spread_indices(images, count))
        self.picture, self.every, self.last_epoch = picture, every, last_epoch
        self._writer = None

    def on_train_begin(self, logs=None):
        if self._writer is not None:
            return  # a run may call `fit` several times
        self._writer = tf.summary.create_file_writer(os.path.join(self.folder, "train"))
        if self.picture is not None:
            with self._writer.as_default(step=0):
                picture = np.asarray(Image.open(self.picture))
                tf.summary.image("views", picture[np.newaxis])

    def on_epoch_end(self, epoch, logs=None):
        if is_due(epoch, self.every, self.last_epoch):
            with naming_disk_errors(self.folder):
                self._write(int(self.model.step.numpy()))

    def _write(self, step):
        with self._writer.as_default(step=step):
            for name, values in self._similarities().items():
                tf.summary.histogram(f"similarities/{name}", values)
        features, images = readable_features(self.encoder, self.images, ONE_DEVICE)
        thumbnails = pictures.squares(images, np.arange(len(images)), _THUMBNAIL)
        labels = images.labels
        write_projector(self.folder, features, thumbnails, labels, self.class_names)

    def on_train_end(self, logs=None):
        with naming_disk_errors(self.folder):
            self._writer.flush()

    def _similarities(self):
        """To the queue, of 256 images as they are, [256, queue size] each."""
        size = self.encoder.input_shape[1]
        batches = evaluation_batches(self.images, size, count=256)
        batch = next(iter(batches))
        images = View([], *statistics(batch.shape[-1]))(batch)
        found = {}
        for name in ("student", "teacher"):
            embeddings = getattr(self.model, name)(images, training=False)
            embeddings = tf.math.l2_normalize(tf.cast(embeddings, tf.float32), -1)
            found[name] = self.model.queue(embeddings)
        return found


def write_projector(folder, features, thumbnails, labels=None, class_names=()):
    """Writes the files of TensorBoard's projector tab.

    Args:
        folder: of the TensorBoard logs; made if absent.
        features: float array [count, dim].
        thumbnails: uint8 array [count, side, side, 3].
        labels: integer array [count], or None.
        class_names: names of the labels; without them they are written as numbers.
    """
    os.makedirs(folder, exist_ok=True)
    config = projector.ProjectorConfig()
    embedding = config.embeddings.add(
        tensor_name="features", tensor_path="features.tsv"
    )
    with replacing(os.path.join(folder, embedding.tensor_path)) as path:
        np.savetxt(path, features, "%.4g", delimiter="\t")
    if labels is not None:
        embedding.metadata_path = "labels.tsv"
        names = [class_names[label] if class_names else label for label in labels]
        # A tab or a line break in a name would be another column or row.
        lines = [" ".join(str(name).split()) for name in names]
        write_lines(os.path.join(folder, embedding.metadata_path), lines)
    embedding.sprite.image_path = "thumbnails.png"
    embedding.sprite.single_image_dim.extend(thumbnails.shape[1:3])
    pictures.save(
        Image.fromarray(_sprite(thumbnails)),
        os.path.join(folder, embedding.sprite.image_path),
    )
    # As `projector.visualize_embeddings` does, but never half a file.
    write_lines(
        os.path.join(folder, "projector_config.pbtxt"), str(config).splitlines()
    )


def _sprite(thumbnails):
    """All thumbnails in one square picture, row by row."""
    count, height, width, _ = thumbnails.shape
    side = math.ceil(math.sqrt(count))
    cells = np.zeros([side * side, height, width, 3], np.uint8)
    cells[:count] = thumbnails
    rows = cells.reshape(side, side, height, width, 3).swapaxes(1, 2)
    return rows.reshape(side * height, side * width, 3)
