"""The start of a run on a folder of very many images: seconds and memory.

  python -m benchmarks.million --count=1000000

The folder is made of hard links to a few hundred drawn JPEGs, a thousand to a class.
Listing and loading the folder, and the time to the end of the first step, are measured
with a small network. File names and directories are in the cache of the operating
system, since they were just made; a cold disk or a network disk takes longer.
"""

import os
import tempfile
import time

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_integer("count", 1000000, "Images of the folder.")
flags.DEFINE_integer("classes", 1000, "Classes of the folder.")
flags.DEFINE_integer("sources", 300, "Different images among them.")
flags.DEFINE_integer("knn_every", 5, "As of ressl-train; 0: no kNN before the step.")
flags.DEFINE_string("folder", None, "Made and used again; default: a temporary one.")
flags.DEFINE_string("results", "benchmarks/results.jsonl", "File to append to.")

NETWORK = {
    "backbone": "resnet10_small",
    "width": 8,
    "image_size": 64,
    "batch_size": 64,
    "queue_size": 4096,
}


def make_links(root, count, classes, sources):
    """Hard links to images of photographs' size, unless the folder is there."""
    import numpy as np
    from PIL import Image

    if os.path.isdir(root):
        return
    random, files = np.random.default_rng(0), []
    os.makedirs(f"{root}-sources", exist_ok=True)
    for i in range(sources):
        height, width = (int(random.integers(330, 500)) for _ in range(2))
        pixels = random.integers(0, 256, [height // 8, width // 8, 3]).astype(np.uint8)
        files.append(f"{root}-sources/{i}.jpg")
        image = Image.fromarray(pixels).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        image.save(files[-1], quality=90)
    for label in range(classes):
        folder = os.path.join(root, f"n{label:08d}")
        os.makedirs(folder)
        for i in range(label, count, classes):
            name = f"n{label:08d}_{i:07d}.JPEG"
            os.link(files[i % sources], os.path.join(folder, name))


class Measured:
    """Seconds of a phase, and the megabytes that it adds at most and in the end."""

    def __init__(self, name, figures):
        self.name, self.figures = name, figures

    def __enter__(self):
        from benchmarks.record import Memory

        self.memory = Memory()
        self.memory.start()
        self.start, self.cpu = time.monotonic(), time.process_time()

    def __exit__(self, *error):
        seconds = time.monotonic() - self.start
        cpu = time.process_time() - self.cpu
        most = self.memory.most - self.memory.least
        kept = self.memory.now() - self.memory.least
        self.figures[self.name] = [seconds, cpu, most, kept]
        print(f"{self.name:16}{seconds:8.1f} s{cpu:8.1f} s CPU", end="")
        print(f"{most:8.0f} MB at most{kept:8.0f} MB kept", flush=True)


def first_step(dataset, folder):
    """A run up to the end of its first step."""
    import keras

    from ressl_keras.config import Config
    from ressl_keras.training.pretrain import pretrain

    class Reached(Exception):
        pass

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise Reached

    config = Config(**NETWORK, knn_every=FLAGS.knn_every, precision="float32")
    try:
        pretrain(dataset, folder, config, callbacks=[Stop()], verbose=False)
    except Reached:
        return
    raise RuntimeError("the run ended before its first step")


def main(argv):
    import tensorflow as tf

    from benchmarks import record
    from ressl_keras.data import folders
    from ressl_keras.data.datasets import load_dataset

    tf.zeros([])  # TensorFlow itself has started
    figures = {}
    with tempfile.TemporaryDirectory() as temporary:
        root = FLAGS.folder or os.path.join(temporary, "images")
        make_links(root, FLAGS.count, FLAGS.classes, FLAGS.sources)
        with Measured("listing", figures):
            folders.list_images(root)
        with Measured("loading", figures):
            dataset = load_dataset("folder", root)
        with Measured("first step", figures):
            first_step(dataset, os.path.join(temporary, "run"))
    figures["peak_mb"] = _peak()
    print(f"peak of the process {figures['peak_mb']:.0f} MB")
    options = {name: FLAGS[name].value for name in ("count", "classes", "knn_every")}
    record.append("million", {**figures, "options": options}, FLAGS.results)


def _peak():
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    app.run(main)
