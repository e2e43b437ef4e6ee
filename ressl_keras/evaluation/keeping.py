"""Keeps the state of a classifier in training, so that an interruption loses little."""

import os
import time

import keras
import numpy as np

from ressl_keras.files import replacing

SECONDS = 60  # between two saves, and between two lines of progress


class Keeper(keras.callbacks.Callback):
    """Saves weights, optimizer and random states at the ends of epochs.

    Keras' `BackupAndRestore` would start the batches from the first epoch again, and
    does not work with several machines.

    Args:
        name: of the training, for the file and for lines of progress.
        identity: string; a state of another identity is not taken up.
        epochs: epochs of the training.
        resources: `features.Resources`; without a folder `work` nothing is kept.
    """

    def __init__(self, name, identity, epochs, resources):
        super().__init__()
        self.name, self.identity = name, identity
        self.epochs, self.resources = epochs, resources
        self._last = time.monotonic()

    @property
    def _path(self):
        work = self.resources.work
        return work and os.path.join(work, f"{self.name.replace(' ', '-')}.npz")

    def restore(self, model):
        """Takes up the state that is kept; returns the epoch to go on with."""
        epoch = 0
        if self._path and os.path.exists(self._path):
            with np.load(self._path) as kept:
                if str(kept["identity"]) == self.identity:
                    epoch = int(kept["epoch"])
                    for number, variable in enumerate(_variables(model)):
                        variable.assign(kept[f"variable{number}"])
        if len(self.resources.gather(epoch)) > 1:
            raise RuntimeError(f"The workers read different states from {self._path}.")
        if epoch:
            self.resources.log(f"{self.name}: epoch {epoch} of {self.epochs} is kept")
        return epoch

    def on_epoch_end(self, epoch, logs=None):
        elapsed = time.monotonic() - self._last
        due = elapsed >= SECONDS or epoch + 1 == self.epochs
        # The clocks of several workers differ, and all take part in a save.
        if max(self.resources.gather(int(due))):
            self._last = time.monotonic()
            self.resources.log(
                f"{self.name}: epoch {epoch + 1} of {self.epochs}, "
                f"loss {float(logs['loss']):.4f}"
            )
            self._save(epoch + 1)

    def _save(self, epoch):
        if not self._path:
            return
        arrays = {
            f"variable{i}": v.numpy() for i, v in enumerate(_variables(self.model))
        }
        if not self.resources.chief:
            return
        os.makedirs(self.resources.work, exist_ok=True)
        with replacing(self._path) as temporary:
            np.savez(temporary, identity=self.identity, epoch=epoch, **arrays)


def _variables(model):
    """Weights, random states and optimizer; metrics start anew with every epoch."""
    metrics = {id(variable) for variable in model.metrics_variables}
    own = [v for v in model.variables if id(v) not in metrics]
    return [*own, *model.optimizer.variables]
