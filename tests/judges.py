"""Program of test_judging: features, probe and fine-tuning on some devices.

  python tests/judges.py FOLDER STRATEGY DEVICES [EPOCH TO DIE IN]

Leaves features.npy, and the last states of both trainings in FOLDER/work.
"""

import os
import pathlib
import signal
import sys

os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import keras
import numpy as np
import tiny

from ressl_keras import devices
from ressl_keras.data import shapes
from ressl_keras.data.images import ArrayImages
from ressl_keras.encoders.building import build_encoder
from ressl_keras.evaluation import classifiers, features, keeping


def images(count, seed=0):
    return ArrayImages(*shapes.render(count, seed, size=8))


def encoder():
    """Always the same; its batch norm sees the whole batch on any devices."""
    keras.utils.set_random_seed(1)
    return build_encoder(tiny.build_backbone(synchronized=True))


def dying(epoch):
    """Kills the process in the middle of an epoch."""

    def on_train_batch_begin(self, batch, logs=None):
        if self.seen == epoch and batch == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_epoch_begin(self, epoch, logs=None):
        self.seen = epoch

    keeping.Keeper.on_train_batch_begin = on_train_batch_begin
    keeping.Keeper.on_epoch_begin = on_epoch_begin


def judge(folder, strategy):
    with strategy.scope():
        model = encoder()
    resources = features.Resources(strategy, work=f"{folder}/work", log=print)
    found, _ = features.readable_features(model, images(100), resources, 16)
    if resources.chief:
        np.save(f"{folder}/features.npy", found)
    sets = images(80), images(40, 1)
    for judge in (classifiers.online_linear_probe, classifiers.finetune):
        result = judge(model, *sets, epochs=4, batch_size=16, resources=resources)
        assert (result is None) != resources.chief


def main(folder, strategy_name, count, epoch=None):
    strategy = devices.make_strategy(strategy_name, int(count))
    keeping.SECONDS = 0  # saves after every epoch
    if epoch:
        dying(int(epoch))
    judge(folder, strategy)
    devices.barrier(strategy)


if __name__ == "__main__":
    main(*sys.argv[1:])
