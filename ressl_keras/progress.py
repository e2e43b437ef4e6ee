"""What a run says of itself: a table when it starts, and how far it has come."""

import shutil
import sys
import time

import keras
import tensorflow as tf


def overview(dataset, image_size, model, backbone, steps, steps_per_epoch, batch_size):
    """What will be trained on what, as lines of a table.

    Args:
        dataset: `data.Dataset`.
        image_size: side of the views in pixels.
        model: `ReSSL`, made in the scope of the strategy.
        backbone: name of its backbone.
        steps: steps of the whole run.
        steps_per_epoch: steps of an epoch.
        batch_size: images a step, on all devices together.

    Returns:
        Lines of text.
    """
    strategy = model.distribute_strategy
    replicas = strategy.num_replicas_in_sync
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    size, dim = model.queue.size, model.queue.dim
    classes = f", {len(dataset.class_names)} classes" if dataset.labelled else ""
    lines = {
        "data": f"{dataset.name}, {len(dataset.pretrain)} images of {image_size} "
        f"pixels{classes}, {dataset.pretrain.storage}",
        "model": f"{backbone}, {model.backbone.count_params():,} parameters, "
        f"{model.backbone.output_shape[-1]} features",
        "steps": f"{steps} of {batch_size} images, {steps_per_epoch} an epoch",
        "devices": f"{replicas} {kind}, {batch_size // replicas} images each",
        "precision": model.backbone.dtype_policy.name,
        "queue": f"{size} x {dim} float32, {size * dim * 4 / 2**20:.1f} MiB on each "
        "device",
    }
    return "\n".join(f"{name:<11}{line}" for name, line in lines.items())


class Progress(keras.callbacks.Callback):
    """One line an epoch, and in between how far it is.

    In a terminal that is a line that replaces itself. Elsewhere, in a log file or a
    notebook, it is a line now and then, without control characters.

    Keras' own bar shows every metric there is, which no line holds, and nothing within
    an epoch where the output is a file.

    Args:
        steps: steps of the whole run.
        steps_per_epoch: steps of an epoch.
        stream: where to write; None takes `sys.stdout`.
        every: seconds between two lines; in a terminal half a second is used.
        clock: callable that returns the time in seconds.
    """

    def __init__(
        self, steps, steps_per_epoch, stream=None, every=30, clock=time.monotonic
    ):
        super().__init__()
        self.steps, self.steps_per_epoch = steps, steps_per_epoch
        self.stream, self.clock = stream or sys.stdout, clock
        self.replaces = self.stream.isatty()
        self.every = 0.5 if self.replaces else every
        self._said = clock()
        self._first = None  # (time, step) after the first step, which is slow

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        now = self.clock()
        if self._first is None:
            self._first = now, self._step()
        last = batch + 1 >= self.params["steps"]
        if now - self._said >= self.every and not last:
            step = self._step() - self._epoch * self.steps_per_epoch
            self._say(f", step {step}/{self.steps_per_epoch}", logs)
        elif last and self.replaces:
            self.stream.write("\r\033[K")  # what follows is for the whole epoch

    def on_epoch_end(self, epoch, logs=None):
        self._say("", logs, stays=True)

    def _say(self, where, logs, stays=False):
        self._said = self.clock()
        epochs = -(-self.steps // self.steps_per_epoch)
        facts = [text for text in (*_facts(logs or {}), self._left()) if text]
        if "waiting" in (logs or {}):
            facts.append(f"waiting {100 * logs['waiting']:.0f} %")
        line = f"Epoch {self._epoch + 1}/{epochs}{where}: {', '.join(facts)}"
        if self.replaces:
            columns = shutil.get_terminal_size().columns
            line = f"\r\033[K{line if stays else line[: columns - 1]}"
        self.stream.write(line if self.replaces and not stays else f"{line}\n")
        self.stream.flush()

    def _left(self):
        """How long the rest will take, at the speed of this process so far."""
        step = self._step()
        since, first = self._first
        if step == first or step >= self.steps:
            return None
        seconds = (self.clock() - since) / (step - first) * (self.steps - step)
        return f"{duration(seconds)} left"

    def _step(self):
        return int(self.model.optimizer.iterations.numpy())


def _facts(logs):
    """The few metrics that fit into a line."""
    if "loss" in logs:
        yield f"loss {float(logs['loss']):.3f}"
    if "knn_top1" in logs:
        yield f"kNN {logs['knn_top1']:.2f} %"
    if "images_per_second" in logs:
        yield f"{logs['images_per_second']:.0f} images/s"


def duration(seconds):
    """Seconds in words, as exact as one plans by: `45 s`, `14 min`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes / 60 / 24:.1f} days"
