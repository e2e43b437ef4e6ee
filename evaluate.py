"""Judges an encoder by its neighbours and by a linear probe.

  python evaluate.py --encoder=runs/cifar10/encoder.keras --dataset=cifar10

Accuracies are printed, and written as JSON, beside those of the same encoder untrained.
"""

import os
import sys

# Before TensorFlow is imported; see train.py.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

from absl import app, flags, logging

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "encoder", None, "The encoder's .keras file, or the work directory of its run."
)
flags.DEFINE_string(
    "dataset",
    "shapes",
    "Labelled images: 'shapes', 'folder' (with --data_dir), or the name of a "
    "TensorFlow Datasets image set.",
)
flags.DEFINE_string(
    "data_dir", None, "The image folder, or where TensorFlow Datasets keeps its data."
)
flags.DEFINE_bool("download", True, "Whether TensorFlow Datasets may download.")
flags.DEFINE_list("protocol", ["knn", "linear"], "Any of knn and linear.")
flags.DEFINE_string(
    "output", None, "JSON file to write. Default: evaluation.json beside the encoder."
)
flags.DEFINE_integer("seed", 0, "Seed of the untrained encoder.")
flags.mark_flag_as_required("encoder")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Not a flag: {' '.join(argv[1:])}")
    from ressl_keras import UsageError

    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # TFDS tells of every file it opens
    try:
        run()
    except UsageError as error:
        print(f"evaluate.py: error: {error}", file=sys.stderr)
        sys.exit(1)


def run():
    import keras

    from ressl_keras import data, evaluation, export

    encoder = export.load_encoder(FLAGS.encoder)
    dataset = data.load(FLAGS.dataset, FLAGS.data_dir, FLAGS.download)
    keras.utils.set_random_seed(FLAGS.seed)
    results = evaluation.evaluate(encoder, dataset, FLAGS.protocol)
    at = FLAGS.encoder
    folder = at if os.path.isdir(at) else os.path.dirname(at)
    output = FLAGS.output or os.path.join(folder, "evaluation.json")
    export.write_json(output, results)
    print(evaluation.table(results))
    print(f"Written to {output}.")


if __name__ == "__main__":
    app.run(main)
