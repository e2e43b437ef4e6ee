"""Judges an encoder: neighbours, a linear probe, fine-tuning, a picture.

  python evaluate.py --encoder=runs/cifar10/encoder.keras --dataset=cifar10
  python evaluate.py --encoder=runs/cifar10 --dataset=cifar10 \\
      --protocol=finetune --label_fraction=0.01
  python evaluate.py --encoder=runs/cifar10 --dataset=cifar10 \\
      --protocol=neighbours

Accuracies are printed, and written as JSON, beside those of the same encoder
untrained.
"""

import os

from absl import flags

import ressl_command

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "encoder",
    None,
    "The encoder: a .keras file, a SavedModel folder (not for finetune), or the work "
    "directory of its run. Any image encoder will do.",
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
flags.DEFINE_list(
    "protocol",
    ["knn", "linear"],
    "Any of knn, linear, finetune, and neighbours, which draws a picture.",
)
flags.DEFINE_float(
    "label_fraction",
    1.0,
    "Share of the training labels used, the same of every class: 0.01 and 0.1 in the "
    "semi-supervised protocol.",
)
flags.DEFINE_enum(
    "probe",
    "fast",
    ["fast", "paper"],
    "How the linear probe learns: on features extracted once, in seconds, or on crops "
    "and flips for 100 epochs, as in the paper.",
)
flags.DEFINE_integer(
    "finetune_epochs",
    None,
    "Epochs of fine-tuning. Default: 10, or as many as make 1000 steps.",
    lower_bound=1,
)
flags.DEFINE_enum(
    "preprocessing",
    "none",
    ["none", "tf", "torch", "caffe"],
    "What an encoder from elsewhere wants done to images in 0-255; the names are those "
    "of keras.applications. Encoders made here do it themselves.",
)
flags.DEFINE_string(
    "feature_cache", None, "Folder that keeps extracted features for the next time."
)
flags.DEFINE_string(
    "output", None, "JSON file to write. Default: evaluation.json beside the encoder."
)
flags.DEFINE_integer(
    "seed", 0, "Seed of the untrained encoder, the share of labels, and all learning."
)
flags.register_validator(
    "encoder", lambda value: value is not None, "give the encoder to judge"
)

# What --help shows: those that matter first, and the others.
GROUPS = {
    "Encoder": ("encoder", "preprocessing"),
    "Data": ("dataset data_dir label_fraction", "download"),
    "Protocol": ("protocol probe", "finetune_epochs seed"),
    "Output": ("output", "feature_cache"),
}


def main(_):
    from ressl_keras import data, encoders, evaluation, report, training

    encoder = encoders.load_encoder(FLAGS.encoder, FLAGS.preprocessing)
    at = FLAGS.encoder.rstrip("/")
    beside = encoders.is_frozen(encoder) or not os.path.isdir(at)
    folder = os.path.dirname(at) if beside else at
    output = FLAGS.output or os.path.join(folder, "evaluation.json")
    training.prepare_workdir(os.path.dirname(output) or ".")
    dataset = data.load(FLAGS.dataset, FLAGS.data_dir, FLAGS.download)
    picture = os.path.join(os.path.dirname(output), evaluation.PICTURE_FILE)
    evidence = evaluation.Evidence()
    results = evaluation.evaluate(
        encoder,
        dataset,
        FLAGS.protocol,
        label_fraction=FLAGS.label_fraction,
        probe=FLAGS.probe,
        finetune_epochs=FLAGS.finetune_epochs,
        seed=FLAGS.seed,
        cache=FLAGS.feature_cache,
        picture=picture,
        evidence=evidence,
    )
    encoders.write_json(output, results)
    print(evaluation.table(results))
    print(f"Written to {output}.")
    if "neighbours" in results:
        print(f"The neighbours are in {picture}.")
    report.try_to_write(
        os.path.join(os.path.dirname(output), _page_name(output)),
        title=at,
        run=folder if os.path.exists(os.path.join(folder, "flags.txt")) else None,
        encoder=encoder,
        dataset=dataset,
        results=results,
        evidence=evidence,
        command=ressl_command.typed(),
    )


def _page_name(output):
    """report.html beside evaluation.json, else the JSON's own name."""
    from ressl_keras import report

    stem = os.path.splitext(os.path.basename(output))[0]
    return report.REPORT_FILE if stem == "evaluation" else f"{stem}.html"


if __name__ == "__main__":
    ressl_command.run(main, GROUPS)
