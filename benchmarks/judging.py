"""Memory of kNN and of the fast probe on features in a file: N rows, and ten times N.

  python -m benchmarks.judging --features=80000

Each number and protocol in a process of its own. What counts is anonymous memory: the
pages of the file that are mapped belong to the system's cache, which takes them back
when it needs them. Up to 65,536 rows kNN takes all at once, so start above.
"""

import os
import tempfile
import time

import numpy as np
from absl import app, flags

from benchmarks import record

FLAGS = flags.FLAGS
flags.DEFINE_integer("features", 80_000, "Rows, and ten times as many.")
flags.DEFINE_integer("queries", 2_000, "Rows that are classified.")
flags.DEFINE_integer("length", 512, "Length of a row.")
flags.DEFINE_integer("classes", 100, "Number of classes.")
flags.DEFINE_integer("probe_epochs", 1, "Epochs of the probe.")
flags.DEFINE_string("folder", None, "Folder for the file; a temporary one by default.")
flags.DEFINE_string("results", record.RESULTS, "File to append to.")
flags.DEFINE_enum("protocol", "knn", ["knn", "probe"], "What --one measures.")
flags.DEFINE_bool("one", False, "Measure --features rows in this process.")


class Anonymous(record.Memory):
    """Watches the anonymous memory of this process, in megabytes."""

    @staticmethod
    def now():
        with open("/proc/self/status") as file:
            (line,) = (line for line in file if line.startswith("RssAnon"))
        return int(line.split()[1]) / 1024


def write(path, rows, seed):
    """A file of random rows around one centre for each class; returns the classes."""
    labels = np.random.default_rng(seed).integers(0, FLAGS.classes, rows)
    shape = [FLAGS.classes, FLAGS.length]
    centres = np.random.default_rng(7).normal(size=shape).astype(np.float32)
    file = np.lib.format.open_memmap(path, "w+", "float32", (rows, FLAGS.length))
    random = np.random.default_rng([seed, 1])
    for start in range(0, rows, 4096):
        own = labels[start : start + 4096]
        noise = random.standard_normal([len(own), FLAGS.length], np.float32)
        file[start : start + 4096] = centres[own] + 4 * noise
    file.flush()
    return labels


def measure(folder):
    """Prints seconds, the anonymous megabytes at most, and how many at the start."""
    from ressl_keras.evaluation import knn, linear

    parts = []
    for seed, count in enumerate((FLAGS.features, FLAGS.queries)):
        path = os.path.join(folder, f"rows-{FLAGS.features}-{seed}.npy")
        labels = write(path, count, seed)
        parts += [np.load(path, mmap_mode="r"), labels]
    small = [part[:1000] for part in parts]
    if FLAGS.protocol == "knn":
        judge = knn.knn_accuracy
        judge(*small)  # TensorFlow has started
    else:

        def judge(*parts):
            return linear.linear_probe(*parts, epochs=FLAGS.probe_epochs)

        judge(*map(np.array, small))
    memory = Anonymous()
    memory.start()
    start = time.perf_counter()
    judge(*parts)
    print(time.perf_counter() - start, memory.most, memory.least)


def main(argv):
    if FLAGS.one:
        with tempfile.TemporaryDirectory(dir=FLAGS.folder) as folder:
            measure(folder)
        return
    # Else each thread's allocator keeps some of what was freed, more with more blocks.
    os.environ["MALLOC_ARENA_MAX"] = "1"
    names = ("queries", "length", "classes", "probe_epochs")
    options = {name: FLAGS[name].value for name in names}
    if FLAGS.folder:
        options["folder"] = FLAGS.folder
    figures = {}
    print("protocol       rows   seconds   anonymous MB at most   at the start")
    for protocol in ("knn", "probe"):
        peaks = []
        for rows in (FLAGS.features, 10 * FLAGS.features):
            found = record.in_a_process(
                "judging", features=rows, protocol=protocol, **options
            )
            figures[f"{protocol} {rows}"] = found
            seconds, most, least = found
            peaks.append(most)
            print(f"{protocol:8} {rows:10,} {seconds:9.1f} {most:22.0f} {least:14.0f}")
        print(f"{protocol:8} ratio of the peaks {peaks[1] / peaks[0]:.2f}")
    record.append("judging", {**figures, **options}, FLAGS.results)


if __name__ == "__main__":
    app.run(main)
