"""Checkpoints of a run: complete, verified, and only the last few kept.

Keras' ModelCheckpoint and BackupAndRestore write in place, verify nothing when they
read, and restart an interrupted epoch. Here a file replaces nothing until it is
complete, and its name holds its step and checksum. Batches, views and what networks
draw are functions of (seed, step), so the step is enough to resume exactly.

Training waits while the state is copied to memory; a thread writes the copy to disk.
"""

import concurrent.futures
import hashlib
import os
import re
import signal
import threading
import time

import numpy as np

from ressl_keras.errors import UsageError, naming_disk_errors
from ressl_keras.files import replace_on_disk, set_aside, writing_beside
from ressl_keras.keras_private import weights_in_memory
from ressl_keras.training.callbacks import StepCallback

_NAME = re.compile(r"step-(\d{9})-([0-9a-f]{16})\.weights\.h5")


def found(folder):
    """(step, checksum, path) of the checkpoints in a folder, newest first."""
    if not os.path.isdir(folder):
        return []
    names = [_NAME.fullmatch(name) for name in os.listdir(folder)]
    files = [
        (int(m[1]), m[2], os.path.join(folder, m.string))
        for m in names
        if m is not None
    ]
    return sorted(files, reverse=True)


def checksum(path):
    """Sixteen digits of a file's SHA-256, as the name of a checkpoint holds them."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def save(model, folder, step, keep=2):
    """Writes a checkpoint and removes all but the last few.

    Args:
        model: built and compiled `keras.Model`; its optimizer and queue are included.
        folder: folder to write into; made if absent.
        step: training steps completed.
        keep: number of checkpoints to keep.

    Returns:
        Path of the checkpoint.
    """
    return write(weights_in_memory(model), folder, step, keep)


def write(state, folder, step, keep):
    """Writes a copied state as `save` does. It uses neither TensorFlow nor HDF5.

    Args:
        state: `weights_in_memory` of the model.
        folder: folder to write into; made if absent.
        step: step of the state.
        keep: number of checkpoints to keep.

    Returns:
        Path of the checkpoint, which is on the disk.
    """
    os.makedirs(folder, exist_ok=True)
    digest = hashlib.sha256(state).hexdigest()[:16]
    path = os.path.join(folder, f"step-{step:09d}-{digest}.weights.h5")
    unnamed = os.path.join(folder, "checkpoint.weights.h5")
    with naming_disk_errors(unnamed), writing_beside(unnamed) as temporary:
        with open(temporary, "wb") as file:
            file.write(state)
        replace_on_disk(temporary, path)
    for _, _, old in found(folder)[keep:]:
        if old != path:
            os.remove(old)
    return path


def last_step(folder):
    """The step of the newest checkpoint in a folder, 0 where there is none."""
    return max((step for step, _, _ in found(folder)), default=0)


def restore(model, folder):
    """Loads the newest undamaged checkpoint.

    A damaged one is renamed, so that it never counts as one of the last few.

    Args:
        model: built and compiled `keras.Model` of the same shape, its optimizer
            built too.
        folder: folder to look in; need not exist.

    Returns:
        The step of the checkpoint, or 0 where there is none.

    Raises:
        UsageError: if an undamaged checkpoint is of a model of another shape.
    """
    for step, expected, path in found(folder):
        if os.path.isfile(path) and checksum(path) == expected:
            _load(model, path)
            model.step.assign(step)  # 0.1.0 did not save it
            return step
        set_aside(path)
        print("Trying the checkpoint before.", flush=True)
    return 0


def _load(model, path):
    try:
        model.load_weights(path)
    except ValueError as error:
        raise UsageError(
            f"The checkpoint {path} is of another model than these flags make. Give "
            "the flags of that run, or another --workdir."
        ) from error


def check_finite(model):
    """Checks that the student's weights are finite numbers.

    Raises:
        UsageError: naming what usually helps.
    """
    if all(np.isfinite(weight).all() for weight in model.student.get_weights()):
        return
    raise UsageError(
        f"At step {int(model.step.numpy())} the weights are not finite numbers; they "
        "are not saved. What usually helps: a lower --learning_rate, more "
        "--warmup_epochs. Earlier checkpoints are kept; with other flags, start in "
        "another --workdir."
    )


class Stopped(Exception):
    """The run was asked to stop and has saved its state."""

    def __init__(self, step, signal_number):
        super().__init__(f"Stopped at step {step}, which is saved.")
        self.step, self.signal_number = step, signal_number


class Checkpoints(StepCallback):
    """Saves by steps and by time, at the end, and on SIGTERM and SIGINT.

    A thread writes while training goes on; one checkpoint at a time, so that there is
    never more than one copy of the state. What it could not write is raised at the next
    step, or at the end.

    SIGTERM and SIGINT let the current step finish, save it, and raise `Stopped`. It
    belongs after callbacks that write at the end of an epoch: a checkpoint of an
    epoch's last step implies that these have written.

    Args:
        folder: folder to write into.
        every: steps between two checkpoints; 0: none by steps.
        keep: number of checkpoints to keep.
        steps_per_epoch: steps of an epoch.
        minutes: minutes between two checkpoints; 0: none by time.
        clock: callable that returns the time in seconds.
    """

    def __init__(
        self, folder, every, keep, steps_per_epoch, minutes=0, clock=time.monotonic
    ):
        super().__init__()
        self.folder, self.every, self.keep = folder, every, keep
        self.steps_per_epoch = steps_per_epoch
        self.minutes, self.clock = minutes, clock
        self._saved = self._signal = self._writing = None
        self._handlers = {}

    def on_train_begin(self, logs=None):
        self.step = int(self.model.step.numpy())
        if self._saved is None:
            self._saved, self._saved_at = self.step, self.clock()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._handlers[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number, frame):
        self._signal = number
        # A second Ctrl-C stops at once.
        signal.signal(signal.SIGINT, self._handlers[signal.SIGINT])

    def _release(self):
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        if self._writing and self._writing.done():
            self._finish_writing()
        if self.step % self.steps_per_epoch:
            self._save_if_due()

    def on_epoch_end(self, epoch, logs=None):
        self._save_if_due()

    def on_train_end(self, logs=None):
        self._save()
        self._finish_writing()
        self._stop_if_told()
        self._release()

    def save_and_release(self):
        """Saves the state that an error between two steps left, and frees the signals.

        Returns:
            The step that is saved, 0 where nothing is.
        """
        self._release()
        if self._saved is None:  # training has not begun
            return 0
        self.step = int(self.model.step.numpy())
        self._save()
        self._finish_writing()
        return self.step

    def close(self):
        """Lets a write under way end, whatever ended the run, and frees the signals."""
        self._release()
        if self._writing:
            concurrent.futures.wait([self._writing])

    def _save_if_due(self):
        if self._signal or self._is_due():
            self._save()
        if self._signal:
            self._finish_writing()
        self._stop_if_told()

    def _is_due(self):
        # Not every step is seen where an execution runs several.
        if self.every and self.step // self.every > self._saved // self.every:
            return True
        seconds = self.clock() - self._saved_at
        return self.minutes > 0 and seconds >= 60 * self.minutes

    def _stop_if_told(self):
        if self._signal:
            self._release()
            raise Stopped(self.step, self._signal)

    def _save(self):
        if self._saved != self.step:
            self._finish_writing()
            check_finite(self.model)
            state = weights_in_memory(self.model)
            self._writing = _in_thread(write, state, self.folder, self.step, self.keep)
            self._saved, self._saved_at = self.step, self.clock()

    def _finish_writing(self):
        """Waits for the thread, and raises what it raised."""
        writing, self._writing = self._writing, None
        if writing:
            writing.result()


def _in_thread(function, *arguments):
    """Starts a function in a thread that ends with it; returns its future."""
    executor = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
    try:
        return executor.submit(function, *arguments)
    finally:
        executor.shutdown(wait=False)
