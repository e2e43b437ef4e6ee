"""When, on what and how long a run trained, in a file of its folder."""

import contextlib
import datetime
import time

from ressl_keras.evaluation.machine import devices
from ressl_keras.files import read_json, write_json
from ressl_keras.training.callbacks import StepCallback

_EVERY = 60  # seconds between two writes within an epoch


class History(StepCallback):
    """Writes a part of the run's history: dates, steps, seconds, devices.

    A resumed run has a part for each process that trained. As a context it also writes
    where the training is stopped.

    Args:
        folder: `RunFolder` of the run.
        first_step: step that this process starts from; at 0 a new history begins.
        plan: `Plan`.
        batch_size: size of the global batch.
        knn_images: numbers of neighbours and of test images of the kNN monitor, or
            None.
        images: number of images to learn from.
        clock: callable that returns the time in seconds.
    """

    def __init__(
        self,
        folder,
        first_step,
        plan,
        batch_size,
        knn_images=None,
        images=None,
        clock=time.monotonic,
    ):
        super().__init__()
        self.folder, self.clock = folder, clock
        self.history = {
            "total_steps": plan.total_steps,
            "steps_per_epoch": plan.steps_per_epoch,
            "batch_size": batch_size,
            "images": images,
            "knn_images": knn_images,
            "parts": read_parts(folder) if first_step else [],
        }
        self.part = {"first_step": first_step, "last_step": first_step}
        self._start = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # What stopped the training is the error to report.
        with contextlib.suppress(OSError):
            self.write()

    def on_train_begin(self, logs=None):
        if self._start is not None:
            return  # a run may call `fit` several times
        self._start = self._written = self.clock()
        self.part["started"] = _now()
        self.part["devices"] = devices(self.model.distribute_strategy)
        self.history["parts"].append(self.part)

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        self.part["last_step"] = self.step
        if self.clock() - self._written >= _EVERY:
            self.write()

    def on_epoch_end(self, epoch, logs=None):
        self.write()

    def write(self):
        """Writes the history as it is now; nothing before the training has begun."""
        if self._start is None:
            return
        self._written = self.clock()
        self.part["ended"] = _now()
        self.part["seconds"] = round(self._written - self._start, 1)
        write_json(self.folder.history, self.history)


def read_parts(folder):
    """The parts of a run's history so far, a list of dicts."""
    parts = read_json(folder.history).get("parts")
    return parts if isinstance(parts, list) else []


def _now():
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
