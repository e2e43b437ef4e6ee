"""What `fit` does beside the steps: neighbours, speed, warnings, table of metrics."""

import csv
import os
import time

import keras
import numpy as np

from ressl_keras import evaluation, probes, signals
from ressl_keras.errors import UsageError

METRICS_FILE = "metrics.csv"


def is_due(epoch, every, last_epoch):
    """Whether the end of an epoch, counted from 0, is one to look at the encoder.

    Args:
        epoch: number of the epoch, from 0.
        every: epochs between two looks; 0 looks after the last alone.
        last_epoch: number of the last epoch, from 1.
    """
    return epoch + 1 == last_epoch or (every > 0 and (epoch + 1) % every == 0)


class Throughput(keras.callbacks.Callback):
    """Adds `images_per_second`, and the share of the time spent `waiting` for data.

    Both are counted from the start of the epoch. Put it before callbacks that show or
    write the logs.

    Args:
        batch_size: size of the global batch.
        waiting: `data.Waiting` that watches the batches, or None.
    """

    def __init__(self, batch_size, waiting=None):
        super().__init__()
        self.batch_size, self.waiting = batch_size, waiting

    def on_epoch_begin(self, epoch, logs=None):
        self._start, self._images = None, 0

    def on_train_batch_begin(self, batch, logs=None):
        if self._start is None:
            self._start = time.perf_counter()
            self._waited = self.waiting.seconds if self.waiting else 0

    def on_train_batch_end(self, batch, logs=None):
        self._images = (batch + 1) * self.batch_size
        self._report(logs)

    def on_epoch_end(self, epoch, logs=None):
        self._report(logs)

    def _report(self, logs):
        elapsed = time.perf_counter() - self._start
        logs["images_per_second"] = round(self._images / elapsed, 1)
        if self.waiting:
            share = (self.waiting.seconds - self._waited) / elapsed
            logs["waiting"] = round(share, 4)


class Signals(keras.callbacks.Callback):
    """Adds `effective_rank` and `queue_age` to the logs, and warns of a collapse.

    The effective rank is that of the embeddings in the queue, at most 8,192 of them;
    the age is how many steps ago the oldest of them was put there. From the second
    epoch on a warning is given where the embeddings collapse or the relation teaches
    nothing; a network that has not learned yet looks like that, too.

    Args:
        batch_size: size of the global batch.
        relational: whether the student learns from the teacher's relation.
        warn: called with a line of text.
    """

    def __init__(self, batch_size, relational=True, warn=print):
        super().__init__()
        self.batch_size, self.relational, self.warn = batch_size, relational, warn

    def on_epoch_end(self, epoch, logs=None):
        queue = self.model.queue
        steps = int(self.model.optimizer.iterations.numpy())
        rows = queue.features.numpy()[: steps * self.batch_size]
        rows = rows[:: -(-len(rows) // 8192)]
        logs["effective_rank"] = signals.effective_rank(rows)
        logs["queue_age"] = min(-(-queue.size // self.batch_size), steps)
        if not epoch:
            return
        references = self.batch_size - 1
        if self.model.references == "queue":
            references = queue.size
        entropy = logs["teacher_entropy"] if self.relational else None
        for warning in signals.warnings(
            logs["effective_rank"], signals.spread(rows), entropy, references
        ):
            self.warn(f"Warning, epoch {epoch + 1}: {warning}")


class StopOnNaN(keras.callbacks.Callback):
    """Ends a run whose loss is not a number, before a checkpoint can be written of it.

    Raises:
        UsageError: naming the step.
    """

    def on_train_batch_end(self, batch, logs=None):
        if logs and not np.isfinite(logs["loss"]):
            step = int(self.model.optimizer.iterations.numpy())
            raise UsageError(
                f"The loss is not a number, from step {step} on or shortly before. "
                "What usually helps: a lower --learning_rate, more --warmup_epochs, "
                "--precision=mixed_bfloat16 in place of mixed_float16. Checkpoints of "
                "before are kept; with other flags, start in another --workdir."
            )

    def on_epoch_end(self, epoch, logs=None):
        self.on_train_batch_end(None, logs)


class ContinuedEpoch(keras.callbacks.Callback):
    """Lets the metrics of an interrupted epoch count what came before.

    `fit` resets them when it starts an epoch, also one that only goes on.

    Args:
        metrics: the model's metrics, in the state to go on from.
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
        every: epochs between two looks.
        last_epoch: number of the last epoch, which is always looked at.
        train_count: neighbours taken at most.
        test_count: queries taken at most.
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

    def measure(self):
        """Top-1 accuracy now, in per cent."""
        train = evaluation.extract(self.encoder, self.train, self.train_count)
        test = evaluation.extract(self.encoder, self.test, self.test_count)
        return probes.knn(*train, *test)["top1"]

    def on_epoch_end(self, epoch, logs=None):
        if is_due(epoch, self.every, self.last_epoch):
            logs["knn_top1"] = self.measure()


class MetricsTable(keras.callbacks.Callback):
    """Writes one row an epoch to a CSV file, and keeps what is there already.

    Keras' CSVLogger fixes its columns by the first epoch, in which the neighbours may
    not have been looked at, and appends blindly when a run is continued.

    Args:
        path: file to write.
    """

    first_columns = ("epoch", "step", "loss", "knn_top1")

    def __init__(self, path):
        super().__init__()
        self.path = path

    def on_epoch_end(self, epoch, logs=None):
        step = int(self.model.optimizer.iterations.numpy())
        row = {"epoch": epoch + 1, "step": step}
        row |= {name: f"{value:.8g}" for name, value in logs.items()}
        rows = [old for old in self.read(self.path) if int(old["epoch"]) <= epoch]
        names = {name: None for old in [*rows, row] for name in old}
        columns = dict.fromkeys([*self.first_columns, *names])
        aside = f"{self.path}.writing"
        with open(aside, "w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows([*rows, row])
        os.replace(aside, self.path)

    @staticmethod
    def read(path):
        """Rows of a table, a list of dicts of strings; empty without a file."""
        if not os.path.exists(path):
            return []
        with open(path, newline="") as file:
            return list(csv.DictReader(file))

    @classmethod
    def last(cls, path, column):
        """The last number of a column that has one, or None."""
        numbers = [row[column] for row in cls.read(path) if row[column]]
        return float(numbers[-1]) if numbers else None
