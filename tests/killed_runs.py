"""Program of test_checkpoints: one run undisturbed, and one killed again and again.

  python tests/killed_runs.py FOLDER [KILLS] [EPOCHS]

Children are forked from a process that has imported TensorFlow but not started it,
which saves most of a start.
"""

import os
import pathlib
import random
import signal
import sys
import time

os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import tensorflow as tf
import tiny

from ressl_keras.config import Config
from ressl_keras.data import shapes
from ressl_keras.data.datasets import Dataset
from ressl_keras.data.images import ArrayImages
from ressl_keras.training import build, callbacks, checkpoints
from ressl_keras.training.pretrain import pretrain

STEPS_AFTER_WHICH_TO_KILL = 11


def run(folder, epochs, report=None, die_while_writing=False):
    tf.config.experimental.enable_op_determinism()
    build.build_backbone = tiny.build_backbone
    if report is not None:
        begin = callbacks.Throughput.on_train_batch_begin

        def on_train_batch_begin(self, batch, logs=None):
            os.write(report, b".")
            begin(self, batch, logs)

        callbacks.Throughput.on_train_batch_begin = on_train_batch_begin
    if die_while_writing:

        def half_written(path):
            with open(path, "r+b") as file:
                file.truncate(os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

        checkpoints._checksum = half_written
    images = ArrayImages(*shapes.render(80, 0, size=8))
    pretrain(
        Dataset("shapes", images),
        folder,
        Config(
            hidden_dim=16,
            embedding_dim=8,
            queue_size=20,
            epochs=epochs,
            warmup_epochs=1,
            batch_size=16,
            checkpoint_every=3,
            knn_every=0,
        ),
        verbose=False,
    )


def child(*arguments):
    """Forks a run; returns its process."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            run(*arguments)
            status = 0
        finally:
            os._exit(status)
    return process


def main(folder, kills=10, epochs=40):
    kills, epochs = int(kills), int(epochs)
    moments = random.Random(0)
    killed = os.path.join(folder, "killed")
    for attempt in range(kills):
        source, sink = os.pipe()
        process = child(killed, epochs, sink, attempt == 5)
        os.close(sink)
        for _ in range(STEPS_AFTER_WHICH_TO_KILL):
            if not os.read(source, 1):
                break
        else:
            time.sleep(moments.uniform(0, 0.05))
            os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        os.close(source)
        if not os.WIFSIGNALED(status):
            sys.exit(f"attempt {attempt} ended by itself, status {status}")
    for name in ("killed", "undisturbed"):
        _, status = os.waitpid(child(os.path.join(folder, name), epochs), 0)
        if status:
            sys.exit(f"the run in {name} failed, status {status}")


if __name__ == "__main__":
    main(*sys.argv[1:])
