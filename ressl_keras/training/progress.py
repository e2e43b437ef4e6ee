"""What a run prints: a table when it starts, and its progress."""

import shutil
import sys
import time

import tensorflow as tf

from ressl_keras.evaluation.page import duration
from ressl_keras.training.callbacks import StepCallback


def overview(dataset, model, config, plan):
    """What will be trained on what, as lines of a table.

    Args:
        dataset: `Dataset`.
        model: `ReSSL`, made in the scope of the strategy.
        config: `Config`.
        plan: `Plan`.

    Returns:
        Lines of text.
    """
    strategy = model.distribute_strategy
    replicas, batch_size = strategy.num_replicas_in_sync, config.batch_size
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    size, dim = model.queue.size, model.queue.dim
    parameters = f"{model.backbone.count_params():,} parameters"
    lines = {
        "data": f"{dataset.name}, {len(dataset.pretrain)} images of "
        f"{plan.image_size} pixels, {dataset.pretrain.storage}",
        "labels": _labels(dataset),
        "model": f"{config.backbone}, {parameters}, "
        f"{model.backbone.output_shape[-1]} features",
        "steps": f"{plan.total_steps} of {batch_size} images, "
        f"{plan.steps_per_epoch} per epoch{_passes(plan)}",
        "devices": f"{replicas} {kind}, {batch_size // replicas} images each",
        "precision": model.backbone.dtype_policy.name,
        "queue": f"{size} x {dim} float32, {size * dim * 4 / 2**20:.1f} MiB on each "
        "device",
    }
    return "\n".join(f"{name:<11}{line}" for name, line in lines.items())


def _passes(plan):
    passes = plan.passes_per_epoch
    return f" of {passes} passes over the images" if passes > 1 else ""


def _labels(dataset, most=3):
    """The classes, and what is held out to evaluate the encoder on."""
    if not dataset.labelled:
        return "none, all images are learned from"
    names = [str(name) for name in dataset.class_names]
    shown = ", ".join(names[:most] + ["..."] * (len(names) > most))
    return f"{len(names)} classes ({shown}), {len(dataset.test)} images held out"


class Progress(StepCallback):
    """One line per epoch, and the progress within it.

    In a terminal the line replaces itself. In a log file or a notebook there is a new
    line now and then, without control characters. Keras' own bar shows all metrics,
    too many for a line, and writes nothing within an epoch to a file.

    Args:
        steps: steps of the whole run.
        steps_per_epoch: steps of an epoch.
        stream: where to write; None takes `sys.stdout`.
        every: seconds between lines; in a terminal it is half a second.
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
        self._shown = clock()
        self._first = None  # (time, step) after the first step, which is slow

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        now = self.clock()
        if self._first is None:
            self._first = now, self.step
        last = batch + 1 >= self.params["steps"]
        if now - self._shown >= self.every and not last:
            step = self.step - self._epoch * self.steps_per_epoch
            self._show(f", step {step}/{self.steps_per_epoch}", logs)
        elif last and self.replaces:
            self.stream.write("\r\033[K")  # what follows is for the whole epoch

    def on_epoch_end(self, epoch, logs=None):
        self._show("", logs, stays=True)

    def _show(self, where, logs, stays=False):
        self._shown = self.clock()
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
        """Time for the remaining steps at the speed of this process."""
        since, first = self._first
        if self.step in (first, self.steps):
            return None
        seconds = (self.clock() - since) / (self.step - first)
        seconds *= self.steps - self.step
        return f"{duration(seconds)} left"


def _facts(logs):
    """The metrics that fit into a line."""
    if "loss" in logs:
        yield f"loss {float(logs['loss']):.3f}"
    if "knn_top1" in logs:
        yield f"kNN {logs['knn_top1']:.2f} %"
    if "images_per_second" in logs:
        yield f"{logs['images_per_second']:.0f} images/s"
