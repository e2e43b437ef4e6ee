"""Checkpoints of a run: complete, verified, and only the last few kept.

Keras' ModelCheckpoint and BackupAndRestore write in place, verify nothing when they
read, and restart an interrupted epoch. Here a file replaces nothing until it is
complete, and its name holds its step and checksum. Batches and views are functions of
(seed, step), so the step is enough to resume exactly.
"""

import hashlib
import math
import os
import re
import signal
import threading

import numpy as np
import tensorflow as tf

from ressl_keras.errors import UsageError, disk_error, naming_disk_errors
from ressl_keras.keras_private import keep_saving_cache
from ressl_keras.run_folder import set_aside, writing_beside
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
    os.makedirs(folder, exist_ok=True)
    unnamed = os.path.join(folder, "checkpoint.weights.h5")
    with naming_disk_errors(unnamed), writing_beside(unnamed) as temporary:
        _reserve(temporary, model)
        model.save_weights(temporary, overwrite=True)
        keep_saving_cache()
        name = f"step-{step:09d}-{checksum(temporary)}.weights.h5"
        path = os.path.join(folder, name)
        os.replace(temporary, path)
    for _, _, old in found(folder)[keep:]:
        if old != path:
            os.remove(old)
    return path


def _reserve(path, model):
    """Checks that there is room for a checkpoint.

    HDF5 does not survive a disk that is full when it closes a file.

    Raises:
        OSError: as writing would.
    """
    variables = [*model.variables, *model.optimizer.variables]
    size = sum(math.prod(v.shape) * tf.as_dtype(v.dtype).size for v in variables)
    size += 2**20 + 2**13 * len(variables)  # HDF5's own structures
    with open(path, "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if disk_error(error):  # else the file system cannot tell
                raise


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
    """Saves every few steps, at the end, and on SIGTERM and SIGINT.

    SIGTERM and SIGINT let the current step finish, save it, and raise `Stopped`. It
    belongs after callbacks that write at the end of an epoch: a checkpoint of an
    epoch's last step implies that these have written.

    Args:
        folder: folder to write into.
        every: steps between two checkpoints.
        keep: number of checkpoints to keep.
        steps_per_epoch: steps of an epoch.
    """

    def __init__(self, folder, every, keep, steps_per_epoch):
        super().__init__()
        self.folder, self.every, self.keep = folder, every, keep
        self.steps_per_epoch = steps_per_epoch
        self._saved = self._signal = None
        self._handlers = {}

    def on_train_begin(self, logs=None):
        self.step = int(self.model.step.numpy())
        if self._saved is None:
            self._saved = self.step
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
        if self.step % self.steps_per_epoch:
            self._save_if_due()

    def on_epoch_end(self, epoch, logs=None):
        self._save_if_due()

    def on_train_end(self, logs=None):
        self._save()
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
        return self.step

    def _save_if_due(self):
        # Not every step is seen where an execution runs several.
        if self.step // self.every > self._saved // self.every or self._signal:
            self._save()
        self._stop_if_told()

    def _stop_if_told(self):
        if self._signal:
            self._release()
            raise Stopped(self.step, self._signal)

    def _save(self):
        if self._saved != self.step:
            check_finite(self.model)
            save(self.model, self.folder, self.step, self.keep)
            self._saved = self.step
