"""A small run as the command makes it, and whether two runs ended the same.

Programs import this before TensorFlow has started; it sets what must be set then.
"""

import os
import pathlib
import sys

os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # HDF5 and TensorFlow print what they raise
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import h5py
import keras
import numpy as np
import tensorflow as tf
import tiny
from PIL import Image

from ressl_keras.augmentation.layers import View
from ressl_keras.config import Config
from ressl_keras.data import shapes
from ressl_keras.data.datasets import Dataset
from ressl_keras.data.images import ArrayImages
from ressl_keras.evaluation import pictures, report
from ressl_keras.files import write_json
from ressl_keras.run_folder import RunFolder
from ressl_keras.training import build
from ressl_keras.training import pretrain as module

SETTINGS = dict(
    hidden_dim=16,
    embedding_dim=8,
    queue_size=20,
    warmup_epochs=1,
    batch_size=16,
    checkpoint_every=3,
    knn_every=0,
)


def dataset():
    """Five steps an epoch."""
    return Dataset("shapes", ArrayImages(*shapes.render(80, 0, size=8)))


class Interrupt(keras.callbacks.Callback):
    """Ends a run at once after a step, as a second Ctrl-C does."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if self.model.step.numpy() == self.step:
            raise KeyboardInterrupt


def run(folder, epochs, simple_views=False, log=lambda line: None, callbacks=()):
    """Trains deterministically for epochs of five steps, and writes the report.

    Args:
        folder: work directory.
        epochs: epochs in all.
        simple_views: whether to leave the views' operations and their picture out,
            which take most of the time.
        log: called with a line of text.
        callbacks: further Keras callbacks.
    """
    tf.config.experimental.enable_op_determinism()
    build.build_backbone = tiny.build_backbone
    if simple_views:
        build.build_views = lambda *_, **__: (View([]), [View([])])
        module.preview = lambda dataset, workdir, config, **_: pictures.save(
            Image.new("RGB", (8, 8)), RunFolder(workdir).views
        )
    images = dataset()
    config = Config(epochs=epochs, **SETTINGS)
    module.pretrain(images, folder, config, callbacks=callbacks, verbose=False, log=log)
    files = RunFolder(folder)
    write_json(files.evaluation, {"knn": {"top1": 50.0}})
    report.write(files.report, run=str(folder), dataset=images)


def arrays(folder):
    """Everything in a run's newest checkpoint: model, queue and optimizer."""
    found = {}

    def keep(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    newest = max(pathlib.Path(folder, "checkpoints").glob("step-*"))
    with h5py.File(newest) as file:
        file.visititems(keep)
    assert len(found) > 20
    return found


def same_state(one, other):
    """Same model, queue and optimizer in the newest checkpoints, bit for bit."""
    contents = [arrays(folder) for folder in (one, other)]
    assert set(contents[0]) == set(contents[1])
    for name, array in contents[0].items():
        np.testing.assert_array_equal(array, contents[1][name], err_msg=name)


def same_metrics(one, other):
    """Same table of metrics, the clock's columns aside."""
    tables = [RunFolder(folder).read_metrics() for folder in (one, other)]
    for row in [*tables[0], *tables[1]]:
        row.pop("images_per_second", None)  # which the start has not
        row.pop("waiting", None)  # which a deterministic run has not
    assert tables[0] == tables[1]
