"""Callbacks of a run: speed, kNN, signs of collapse, the metrics table."""

import time

import keras
import numpy as np

from ressl_keras.errors import UsageError
from ressl_keras.evaluation import collapse, knn
from ressl_keras.evaluation.features import extract


def is_due(epoch, every, last_epoch):
    """Whether to evaluate the encoder at the end of an epoch.

    Args:
        epoch: number of the epoch, from 0.
        every: epochs between evaluations; 0: after the last epoch only.
        last_epoch: number of the last epoch, from 1.
    """
    return epoch + 1 == last_epoch or (every > 0 and (epoch + 1) % every == 0)


class StepCallback(keras.callbacks.Callback):
    """Counts the steps of an epoch on the host.

    Reading the model's counter waits for the device; it is read once an epoch. A
    subclass that overrides a method used here calls it first.

    Attributes:
        step: training steps completed, from the first epoch's begin on.
    """

    lazy = True  # see `LazyCallbacks`

    def on_epoch_begin(self, epoch, logs=None):
        self.step = self._epoch_start = int(self.model.step.numpy())

    def on_train_batch_end(self, batch, logs=None):
        self.step = self._epoch_start + batch + 1


class LazyCallbacks(keras.callbacks.CallbackList):
    """Callbacks whose logs stay on the device until one of them reads a value.

    Keras' list converts all logs to numbers after every batch, which waits for the
    device. Here that happens only if a callback overrides `on_train_batch_end` and has
    no attribute `lazy`, so that callbacks from elsewhere get numbers as usual.
    """

    def __init__(self, callbacks, **options):
        super().__init__(callbacks, add_history=True, **options)
        default = keras.callbacks.Callback
        self._lazy = all(
            getattr(callback, "lazy", False)
            or type(callback).on_train_batch_end is default.on_train_batch_end
            for callback in self.callbacks
        )

    def on_train_batch_end(self, batch, logs=None):
        if not self._lazy:
            super().on_train_batch_end(batch, logs)
            return
        logs = dict(logs or {})  # callbacks add to them
        for callback in self.callbacks:
            callback.on_train_batch_end(batch, logs)


class Throughput(keras.callbacks.Callback):
    """Adds `images_per_second`, and the share of the time spent `waiting` for data.

    Both are counted from the start of the epoch. Put it before callbacks that show or
    write the logs.

    Args:
        batch_size: size of the global batch.
        timer: `InputTimer` that watches the batches, or None.
    """

    lazy = True  # see `LazyCallbacks`

    def __init__(self, batch_size, timer=None):
        super().__init__()
        self.batch_size, self.timer = batch_size, timer

    def on_epoch_begin(self, epoch, logs=None):
        self._start, self._images = None, 0

    def on_train_batch_begin(self, batch, logs=None):
        if self._start is None:
            self._start = time.perf_counter()
            self._waited = self.timer.seconds if self.timer else 0

    def on_train_batch_end(self, batch, logs=None):
        self._images = (batch + 1) * self.batch_size
        self._report(logs)

    def on_epoch_end(self, epoch, logs=None):
        self._report(logs)

    def _report(self, logs):
        elapsed = time.perf_counter() - self._start
        logs["images_per_second"] = round(self._images / elapsed, 1)
        if self.timer:
            share = (self.timer.seconds - self._waited) / elapsed
            logs["waiting"] = round(share, 4)


class CollapseMonitor(StepCallback):
    """Adds `effective_rank` and `queue_age` to the logs, and warns of a collapse.

    The effective rank is that of at most 8,192 embeddings in the queue; the age is the
    number of steps since the oldest was enqueued. From the second epoch on it warns if
    the embeddings collapse or the relation carries no information; in the first epoch
    an untrained network looks the same.

    Args:
        batch_size: size of the global batch.
        relational: whether the loss uses the teacher's relation.
        warn: called with a line of text.
    """

    def __init__(self, batch_size, relational=True, warn=print):
        super().__init__()
        self.batch_size, self.relational, self.warn = batch_size, relational, warn

    def on_epoch_end(self, epoch, logs=None):
        queue = self.model.queue
        steps = max(self.step, 1)
        rows = queue.features.numpy()[: steps * self.batch_size]
        rows = rows[:: -(-len(rows) // 8192)]
        logs["effective_rank"] = collapse.effective_rank(rows)
        logs["queue_age"] = min(-(-queue.size // self.batch_size), steps)
        if not epoch:
            return
        references = self.batch_size - 1
        if self.model.references == "queue":
            references = queue.size
        entropy = logs["teacher_entropy"] if self.relational else None
        for warning in collapse.warnings(
            logs["effective_rank"], collapse.relative_std(rows), entropy, references
        ):
            self.warn(f"Warning, epoch {epoch + 1}: {warning}")


class StopOnNaN(StepCallback):
    """Stops a run whose loss is not a number.

    It reads the loss every hundred steps and at the end of an epoch: each time waits
    for the device.

    Raises:
        UsageError: naming the step.
    """

    every = 100

    def on_train_batch_end(self, batch, logs=None):
        before = self.step // self.every
        super().on_train_batch_end(batch, logs)
        if self.step // self.every > before:
            self._check(logs)

    def on_epoch_end(self, epoch, logs=None):
        self._check(logs)

    def _check(self, logs):
        if logs and not np.isfinite(logs["loss"]):
            raise UsageError(
                f"The loss is not a number, from step {self.step} or shortly before. "
                "What usually helps: a lower --learning_rate, more --warmup_epochs, "
                "--precision=mixed_bfloat16 in place of mixed_float16. Earlier "
                "checkpoints are kept; with other flags, start in another --workdir."
            )


class ResumedEpoch(keras.callbacks.Callback):
    """Restores the metrics of an interrupted epoch after `fit` has reset them.

    Args:
        metrics: the model's metrics, in the state to resume from.
    """

    def __init__(self, metrics):
        super().__init__()
        self._kept = [(v, v.numpy()) for metric in metrics for v in metric.variables]

    def on_epoch_begin(self, epoch, logs=None):
        while self._kept:
            variable, value = self._kept.pop()
            variable.assign(value)


class KNNMonitor(keras.callbacks.Callback):
    """Adds `knn_top1` of the backbone to the logs every few epochs.

    Args:
        encoder: `keras.Model` from images in 0-255 to features, which shares its
            weights with the model in training.
        train: labelled images, the neighbours.
        test: labelled images, the queries.
        every: epochs between evaluations.
        last_epoch: number of the last epoch, which is always evaluated.
        train_count: training images used at most.
        test_count: test images used at most.
    """

    def __init__(
        self,
        encoder,
        train,
        test,
        every=1,
        last_epoch=None,
        train_count=10000,
        test_count=2000,
    ):
        super().__init__()
        self.encoder, self.train, self.test = encoder, train, test
        self.every, self.last_epoch = every, last_epoch
        self.train_count, self.test_count = train_count, test_count

    @property
    def counts(self):
        """Numbers of neighbours and of test images that are used, a list."""
        train = min(self.train_count, len(self.train))
        return [train, min(self.test_count, len(self.test))]

    def measure(self):
        """Top-1 accuracy now, in per cent."""
        train = extract(self.encoder, self.train, self.train_count)
        test = extract(self.encoder, self.test, self.test_count)
        return knn.knn_accuracy(*train, *test)["top1"]

    def on_epoch_end(self, epoch, logs=None):
        if is_due(epoch, self.every, self.last_epoch):
            logs["knn_top1"] = self.measure()


class MetricsTable(StepCallback):
    """Writes one row an epoch to the run's metrics table, and keeps earlier rows.

    Row 0 is that of the encoder before the first step, with its kNN accuracy alone.

    Keras' CSVLogger fixes its columns by the first epoch, in which kNN may not have
    been evaluated, and appends blindly when a run is resumed.

    Args:
        folder: `RunFolder` of the run.
    """

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def on_epoch_end(self, epoch, logs=None):
        self.write(epoch + 1, self.step, logs)

    def write(self, epoch, step, logs):
        """Writes a row in place of those of the same and of later epochs.

        Args:
            epoch: number of the epoch, from 1; 0: before the first step.
            step: training steps completed.
            logs: dict of numbers.
        """
        row = {"epoch": epoch, "step": step}
        row |= {name: f"{value:.8g}" for name, value in logs.items()}
        earlier = [
            old for old in self.folder.read_metrics() if int(old["epoch"]) < epoch
        ]
        first_columns = ("epoch", "step", "loss", "knn_top1")
        self.folder.write_metrics([*earlier, row], first_columns)
