"""Checkpoints of a run in training: whole, checked, and the last few kept.

Keras' ModelCheckpoint and BackupAndRestore write in place, check nothing when they
read, and start an interrupted epoch anew. Here a file is written aside and renamed,
carries its checksum in its name, and the step it belongs to; since batches and views
are functions of (seed, step), the step is all that is needed to go on exactly.
"""

import hashlib
import os
import re
import signal
import threading

import keras

_NAME = re.compile(r"step-(\d{9})-([0-9a-f]{16})\.weights\.h5")


def _found(folder):
    """(step, checksum, path) of the checkpoints in a folder, newest first."""
    if not os.path.isdir(folder):
        return []
    names = [_NAME.fullmatch(name) for name in os.listdir(folder)]
    found = [
        (int(m[1]), m[2], os.path.join(folder, m.string))
        for m in names
        if m is not None
    ]
    return sorted(found, reverse=True)


def _checksum(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def save(model, folder, step, keep=2):
    """Writes a checkpoint and removes all but the last few.

    Args:
        model: built and compiled `keras.Model`; its optimizer and queue are included.
        folder: folder to write into; made if absent.
        step: optimizer steps taken.
        keep: number of checkpoints to keep.

    Returns:
        Path of the checkpoint.
    """
    os.makedirs(folder, exist_ok=True)
    aside = os.path.join(folder, "writing.weights.h5")
    model.save_weights(aside, overwrite=True)
    name = f"step-{step:09d}-{_checksum(aside)}.weights.h5"
    path = os.path.join(folder, name)
    os.replace(aside, path)
    for _, _, old in _found(folder)[keep:]:
        os.remove(old)
    return path


def last_step(folder):
    """The step of the newest checkpoint in a folder, 0 where there is none."""
    return max((step for step, _, _ in _found(folder)), default=0)


def restore(model, folder):
    """Loads the newest undamaged checkpoint.

    Args:
        model: built and compiled `keras.Model` of the same shape, its optimizer
            built too.
        folder: folder to look in; need not exist.

    Returns:
        The step of the checkpoint, or 0 where there is none.
    """
    for step, checksum, path in _found(folder):
        if _checksum(path) == checksum:
            model.load_weights(path)
            return step
        print(f"Checkpoint {path} is damaged; trying the one before.", flush=True)
    return 0


class Stopped(Exception):
    """The run was asked to stop and has saved its state."""

    def __init__(self, step, signal_number):
        super().__init__(f"Stopped at step {step}, which is saved.")
        self.step, self.signal_number = step, signal_number


class Checkpoints(keras.callbacks.Callback):
    """Saves every few steps, at the end, and when the process is told to stop.

    SIGTERM and SIGINT let the step in progress finish and raise `Stopped` once its
    state is saved. Put it after callbacks that write at the end of an epoch: a
    checkpoint of an epoch's last step says that these have written, too.

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
        if self._saved is None:
            self._saved = self._step()
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
        if self._step() % self.steps_per_epoch:
            self._save_if_due()

    def on_epoch_end(self, epoch, logs=None):
        self._save_if_due()

    def on_train_end(self, logs=None):
        self._save()
        self._stop_if_told()
        self._release()

    def _save_if_due(self):
        # Not every step is seen where an execution runs several.
        if self._step() // self.every > self._saved // self.every or self._signal:
            self._save()
        self._stop_if_told()

    def _stop_if_told(self):
        if self._signal:
            self._release()
            raise Stopped(self._step(), self._signal)

    def _save(self):
        if self._saved != self._step():
            self._saved = self._step()
            save(self.model, self.folder, self._saved, self.keep)

    def _step(self):
        return int(self.model.optimizer.iterations.numpy())
