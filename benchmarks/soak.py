"""Whether a long run stays flat: its memory, open files and threads over time.

  python -m benchmarks.soak --minutes=30

Small epochs follow each other in one process, each with checkpoints, kNN and
TensorBoard, so that whatever an epoch leaves behind adds up. The slope is that of the
last three quarters; in the first one TensorFlow traces and fills its caches.
"""

import gc
import os
import tempfile
import time

import keras
import numpy as np
from absl import app, flags, logging

from benchmarks import record
from ressl_keras.config import Config
from ressl_keras.data import shapes
from ressl_keras.data.datasets import Dataset
from ressl_keras.data.images import ArrayImages
from ressl_keras.training.pretrain import pretrain

FLAGS = flags.FLAGS
flags.DEFINE_float("minutes", 30, "How long to train.")
flags.DEFINE_integer("images", 160, "Images of the data set.")
flags.DEFINE_integer("batch_size", 16, "Images a step.")
flags.DEFINE_integer("lines", 12, "Lines of the table.")
flags.DEFINE_float("allowed_mb", 15, "Growth of the memory that counts as flat.")
flags.DEFINE_string("results", record.RESULTS, "File to append a JSON line to.")

QUANTITIES = ("megabytes", "files", "threads", "objects")


class Watch(keras.callbacks.Callback):
    """Notes what the process holds after each epoch, and ends the run in time."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.rows = seconds, []
        self._start = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        elapsed = time.monotonic() - self._start
        self.rows.append((elapsed, epoch + 1, *held()))
        self.model.stop_training = elapsed > self.seconds


def held():
    """What this process holds, in the order of `QUANTITIES`."""
    return (
        record.Memory.now(),
        len(os.listdir("/proc/self/fd")),
        len(os.listdir("/proc/self/task")),
        len(gc.get_objects()),
    )


def soak(folder, watch):
    """Trains in a folder until the watch ends the run."""
    count = FLAGS.images
    train, test = (ArrayImages(*shapes.render(count, seed, size=16)) for seed in (0, 1))
    pretrain(
        Dataset("shapes", train, train, test, list(shapes.CLASS_NAMES)),
        folder,
        Config(
            backbone="resnet10_small",
            width=4,
            hidden_dim=16,
            embedding_dim=8,
            queue_size=64,
            batch_size=FLAGS.batch_size,
            epochs=1000000,
            learning_rate=0.01,
            checkpoint_every=4,
            knn_every=1,
        ),
        callbacks=[watch],
        verbose=False,
        log=lambda line: None,
    )


def slopes(rows):
    """Growth of each quantity over the whole time, as a line through the last three
    quarters has it."""
    rows = np.array(rows)
    seconds, _, *quantities = rows[len(rows) // 4 :].T
    span = rows[-1, 0] - rows[0, 0]
    return [np.polyfit(seconds, values, 1)[0] * span for values in quantities]


def main(argv):
    logging.set_verbosity(logging.ERROR)  # an export tells its every step
    watch = Watch(60 * FLAGS.minutes)
    with tempfile.TemporaryDirectory() as folder:
        soak(folder, watch)
    rows = watch.rows
    grown = dict(zip(QUANTITIES, slopes(rows)))
    flat = (
        grown["megabytes"] < FLAGS.allowed_mb
        and grown["files"] < 1
        and grown["threads"] < 1
    )
    print(f"{'minutes':>8}{'epochs':>8}" + "".join(f"{n:>11}" for n in QUANTITIES))
    shown = np.linspace(0, len(rows) - 1, FLAGS.lines).astype(int)
    for seconds, epoch, *values in (rows[i] for i in sorted(set(shown))):
        numbers = "".join(f"{value:11.0f}" for value in values)
        print(f"{seconds / 60:8.1f}{epoch:8}{numbers}")
    growth = ", ".join(f"{name} {value:+.1f}" for name, value in grown.items())
    print(f"growth over the whole time: {growth}: {'flat' if flat else 'NOT FLAT'}")
    figures = {
        "minutes": rows[-1][0] / 60,
        "epochs": rows[-1][1],
        "growth": grown,
        "flat": bool(flat),
        "rows": [rows[i] for i in sorted(set(shown))],
    }
    record.append("soak", figures, FLAGS.results)


if __name__ == "__main__":
    app.run(main)
