"""Program of test_distribution: a short run on this worker or these devices."""

import contextlib
import os
import pathlib
import signal
import sys

os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import numpy as np
import tiny

from ressl_keras import devices
from ressl_keras.config import Config
from ressl_keras.data import shapes
from ressl_keras.data.datasets import Dataset
from ressl_keras.data.images import ArrayImages
from ressl_keras.training import build, callbacks, checkpoints
from ressl_keras.training.pretrain import pretrain

STEPS = 20


def signal_at(step):
    begin = callbacks.Throughput.on_train_batch_begin

    def on_train_batch_begin(self, batch, logs=None):
        if batch + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        begin(self, batch, logs)

    callbacks.Throughput.on_train_batch_begin = on_train_batch_begin


def main(folder, strategy_name, count, stop):
    """A run of STEPS steps, told to stop after `stop`."""
    strategy = devices.make_strategy(strategy_name, int(count))
    build.build_backbone = tiny.build_backbone
    models, fit = [], devices.fit

    def keeping_the_model(model, *arguments, **options):
        models.append(model)
        fit(model, *arguments, **options)

    devices.fit = keeping_the_model
    if int(stop) < STEPS:
        signal_at(int(stop))
    images = ArrayImages(*shapes.render(24 * STEPS, 0, size=8))
    with contextlib.suppress(checkpoints.Stopped):
        pretrain(
            Dataset("shapes", images),
            folder,
            Config(
                hidden_dim=16,
                embedding_dim=8,
                queue_size=100,
                epochs=1,
                warmup_epochs=0,
                batch_size=24,
                learning_rate=0.3,
                knn_every=0,
                batch_norm="synchronized",
            ),
            strategy=strategy,
            verbose=False,
        )
    copies = strategy.experimental_local_results(models[0].queue._features.value)
    worker = os.environ.get("WORKER", "0")
    np.save(f"{folder}/queue-{worker}.npy", [copy.numpy() for copy in copies])
    devices.barrier(strategy)


if __name__ == "__main__":
    main(*sys.argv[1:])
