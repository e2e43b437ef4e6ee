"""The weighted nearest-neighbour classifier: 50,000 x 512 features, 10,000 queries.

  python -m benchmarks.knn

Against scikit-learn's brute force over the same rows, in turns in one process, and with
the most memory that it takes beside the features: far below the 2,000 MB of a [queries,
features] matrix of float32.
"""

import time

import numpy as np
from absl import app, flags

from benchmarks import record
from ressl_keras.evaluation.knn import knn_accuracy

FLAGS = flags.FLAGS
flags.DEFINE_integer("features", 50_000, "Rows that vote.")
flags.DEFINE_integer("queries", 10_000, "Rows that ask.")
flags.DEFINE_integer("length", 512, "Length of a row.")
flags.DEFINE_integer("classes", 10, "Number of classes.")
flags.DEFINE_integer("rounds", 3, "Turns.")
flags.DEFINE_string("results", record.RESULTS, "File to append to.")


def rows(count, seed):
    """Unit rows around one centre for each class, and their classes."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, FLAGS.classes, count)
    centres = np.random.default_rng(7).normal(size=[FLAGS.classes, FLAGS.length])
    found = centres[labels] + 4 * random.normal(size=[count, FLAGS.length])
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found.astype(np.float32), labels


def main(argv):
    from sklearn.neighbors import NearestNeighbors

    train, test = rows(FLAGS.features, 0), rows(FLAGS.queries, 1)
    knn_accuracy(*rows(1000, 2), *rows(1000, 3))  # traced and warm
    memory = record.Memory()
    memory.start()
    ours, theirs = [], []
    for turn in range(FLAGS.rounds):
        start = time.perf_counter()
        accuracy = knn_accuracy(*train, *test)
        ours.append(time.perf_counter() - start)
        if turn == 0:
            megabytes = memory.most - memory.least
        start = time.perf_counter()
        index = NearestNeighbors(n_neighbors=200, algorithm="brute").fit(train[0])
        index.kneighbors(test[0])
        theirs.append(time.perf_counter() - start)
    print(f"here          {min(ours):6.2f} s, {megabytes:.0f} MB beside the features")
    print(f"scikit-learn  {min(theirs):6.2f} s for the neighbours alone")
    print(f"ratio         {min(ours) / min(theirs):6.2f}")
    print(f"top-1 {accuracy['top1']:.2f} %")
    figures = {"seconds": ours, "scikit_learn_seconds": theirs, "megabytes": megabytes}
    sizes = {name: FLAGS[name].value for name in ("features", "queries", "length")}
    record.append("knn", {**figures, **sizes}, FLAGS.results)


if __name__ == "__main__":
    app.run(main)
