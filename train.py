"""Pretrains an encoder on images without labels.

  python train.py --flagfile=flags/quickstart.flags
  python train.py --flagfile=flags/cifar10.flags --workdir=runs/cifar10
  python train.py --dataset=folder --data_dir=my_images --workdir=runs/mine

The same command again goes on where an interrupted run stopped.
"""

import os
import shlex
import sys

# Before TensorFlow is imported. oneDNN's kernels make a ResNet step 1.7 times as fast
# on CPUs where TensorFlow leaves them off.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

from absl import app, flags, logging

FLAGS = flags.FLAGS

flags.DEFINE_string("workdir", "runs/ressl", "Folder of the run's files.")
flags.DEFINE_string(
    "dataset",
    "shapes",
    "What to learn from: 'shapes' (drawn, needs no files), 'folder' (a tree of images "
    "under --data_dir), or the name of a TensorFlow Datasets image set.",
)
flags.DEFINE_string(
    "data_dir", None, "The image folder, or where TensorFlow Datasets keeps its data."
)
flags.DEFINE_bool("download", True, "Whether TensorFlow Datasets may download.")
flags.DEFINE_bool(
    "check_images", True, "Decode every image of a folder once before training."
)
flags.DEFINE_enum(
    "method",
    "ressl",
    ["ressl", "moco_v2"],
    "moco_v2 is the baseline: InfoNCE over the same queue, both views strong.",
)
flags.DEFINE_string(
    "backbone",
    "resnet18_small",
    "Encoder: resnet10_small, resnet18_small or resnet34_small for images of up to "
    "about 96 pixels; resnet18, resnet34, resnet50, resnet101; or a keras.applications "
    "network such as MobileNetV3Small.",
)
flags.DEFINE_integer(
    "width", 64, "Channels of the first stage of a small ResNet.", lower_bound=1
)
flags.DEFINE_integer(
    "image_size",
    None,
    "Side of the views in pixels. Default: the images' own, 224 where they vary.",
    lower_bound=8,
)
flags.DEFINE_list(
    "crops",
    None,
    "Sides of the student's crops in pixels, such as 224,192,160,128,96; the loss is "
    "the mean over them. Default: one of --image_size.",
)
flags.DEFINE_enum(
    "teacher_view",
    None,
    ["weak", "strong"],
    "Augmentation of the teacher's images. Default: weak for ressl, strong for "
    "moco_v2.",
)
flags.DEFINE_integer(
    "hidden_dim", 512, "Width of the projector's hidden layer.", lower_bound=1
)
flags.DEFINE_integer("embedding_dim", 128, "Length of the embeddings.", lower_bound=1)
flags.DEFINE_integer(
    "predictor_dim",
    0,
    "Width of the hidden layer of a predictor that only the student has (arXiv "
    "2203.08717); 0: none.",
    lower_bound=0,
)
flags.DEFINE_enum(
    "references",
    "queue",
    ["queue", "batch"],
    "What embeddings are compared with: the queue or, to do without one, the teacher's "
    "embeddings of the other images of the batch.",
)
flags.DEFINE_integer(
    "queue_size", 4096, "Teacher embeddings remembered, K in the paper.", lower_bound=1
)
flags.DEFINE_float(
    "momentum",
    0.99,
    "Share of the old teacher kept at each step, m in the paper.",
    lower_bound=0,
    upper_bound=1,
)
flags.DEFINE_float("student_temperature", 0.1, "Temperature of the student's relation.")
flags.DEFINE_float(
    "teacher_temperature",
    0.04,
    "Temperature of the teacher's relation; below the student's to sharpen the target.",
)
flags.DEFINE_float(
    "info_nce_epochs",
    0,
    "Epochs of InfoNCE at the start (arXiv 2203.08717), which help short runs. 0 is "
    "the original method.",
    lower_bound=0,
)
flags.DEFINE_float(
    "info_nce_temperature", 0.2, "Temperature of InfoNCE, in moco_v2 too."
)
flags.DEFINE_integer("epochs", 200, "Passes over the data set.", lower_bound=1)
flags.DEFINE_integer(
    "max_steps", None, "Stop after so many steps, if that is sooner.", lower_bound=1
)
flags.DEFINE_integer("batch_size", 256, "Images a step.", lower_bound=1)
flags.DEFINE_float(
    "learning_rate",
    0.06,
    "Peak learning rate for a batch of 256; scaled with the batch size.",
    lower_bound=0,
)
flags.DEFINE_float(
    "weight_decay",
    5e-4,
    "Added to the gradient; biases and batch-norm scales are left out.",
    lower_bound=0,
)
flags.DEFINE_float(
    "warmup_epochs", 5, "Epochs of linear warm-up of the learning rate.", lower_bound=0
)
flags.DEFINE_integer(
    "knn_every", 5, "Epochs between two looks at the neighbours; 0: never.", 0
)
flags.DEFINE_integer(
    "checkpoint_every", 500, "Steps between two checkpoints.", lower_bound=1
)
flags.DEFINE_integer("keep_checkpoints", 2, "Checkpoints kept.", lower_bound=1)
flags.DEFINE_enum(
    "strategy",
    "auto",
    ["auto", "one_device", "mirrored", "multi_worker"],
    "Where to compute. auto: the machines that TF_CONFIG names, else all GPUs of this "
    "one. See docs/distributed.md.",
)
flags.DEFINE_integer(
    "devices",
    0,
    "How many GPUs to use; 0: all. Without a GPU: into how many logical devices to "
    "divide the CPU, to try distribution out.",
    lower_bound=0,
)
flags.DEFINE_enum(
    "batch_norm",
    "per_replica",
    ["per_replica", "shuffled", "synchronized"],
    "What batch norms take their statistics from: the images of one replica; the same, "
    "with the teacher's batch shuffled over the replicas; or the global batch.",
)
flags.DEFINE_enum(
    "precision",
    "float32",
    ["float32", "mixed_bfloat16", "mixed_float16"],
    "Dtype policy of the networks. Relations, queue and loss stay in float32.",
)
flags.DEFINE_bool(
    "jit_compile", None, "Compile the step with XLA. Default: on a GPU only."
)
flags.DEFINE_integer("seed", 0, "Seed of weights, order and views.")
flags.DEFINE_bool(
    "evaluate", True, "Evaluate the encoder at the end, where there are labels."
)
flags.DEFINE_bool(
    "preview",
    False,
    "Draw images and their views to views.png in --workdir, and stop.",
)

for _name in ("student_temperature", "teacher_temperature", "info_nce_temperature"):
    flags.register_validator(_name, lambda value: value > 0, "must be positive")
flags.register_validator(
    "crops",
    lambda value: all(side.isdigit() and int(side) > 7 for side in value or []),
    "must be integers of at least 8",
)

# What a continued run may change without becoming another run.
_FREE = {
    "workdir",
    "data_dir",
    "download",
    "check_images",
    "epochs",
    "max_steps",
    "knn_every",
    "checkpoint_every",
    "keep_checkpoints",
    "strategy",
    "devices",
    "evaluate",
    "preview",
}


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Not a flag: {' '.join(argv[1:])}")
    import tensorflow as tf

    from ressl_keras import UsageError, checkpoints

    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # TFDS tells of every file it opens
    try:
        run()
    except UsageError as error:
        fail(error)
    except checkpoints.Stopped as stopped:
        print(f"{stopped} The same command goes on from there.")
        sys.exit(128 + stopped.signal_number)
    except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
        fail(
            f"Another worker was lost or cannot be reached ({type(error).__name__}). "
            "Start all workers again to go on from the last checkpoint."
        )


def fail(message):
    print(f"train.py: error: {message}", file=sys.stderr, flush=True)
    # Not sys.exit: with a lost worker TensorFlow's own shutdown would wait for it.
    os._exit(1)


def run():
    from ressl_keras import data, distribution, encoders, evaluation, training

    # First of all: TensorFlow takes no more devices or machines once it has started.
    strategy = distribution.make_strategy(FLAGS.strategy, FLAGS.devices)
    chief = distribution.is_chief(strategy)
    say = print if chief else lambda line: None
    if chief:
        training.prepare_workdir(FLAGS.workdir)
    if chief and not FLAGS.preview:
        keep_flags(os.path.join(FLAGS.workdir, "flags.txt"))
    dataset = data.load(
        FLAGS.dataset, FLAGS.data_dir, FLAGS.download, FLAGS.check_images
    )
    if dataset.skipped and chief:
        listing = os.path.join(FLAGS.workdir, "skipped.txt")
        with open(listing, "w") as file:
            file.writelines(f"{path}\n" for path in dataset.skipped)
        print(f"{len(dataset.skipped)} unreadable images skipped, listed in {listing}:")
        print("\n".join(f"  {path}" for path in dataset.skipped[:5]))
    outside = ("workdir", "dataset", "data_dir", "download", "check_images")
    outside += ("strategy", "devices", "evaluate", "preview")
    arguments = {
        flag.name: flag.value for flag in own_flags() if flag.name not in outside
    }
    arguments["crops"] = [int(side) for side in FLAGS.crops or []] or None
    if FLAGS.preview:
        chosen = ("method", "image_size", "crops", "teacher_view", "seed")
        chosen = {name: arguments[name] for name in chosen}
        if chief:
            path = training.preview(dataset, FLAGS.workdir, **chosen)
            print(f"The views are in {path}.")
        return
    encoder = training.pretrain(
        dataset,
        FLAGS.workdir,
        **arguments,
        strategy=strategy,
        verbose=1 if sys.stdout.isatty() else 2,
        progress=say,
    )
    if chief:
        if FLAGS.evaluate and dataset.labelled:
            results = evaluation.evaluate(encoders.load_encoder(encoder), dataset)
            output = os.path.join(FLAGS.workdir, "evaluation.json")
            encoders.write_json(output, results)
            print(evaluation.table(results))
        print(f"The encoder is {encoder}. To evaluate it:")
        command = ["python", "evaluate.py", f"--encoder={encoder}"]
        command += [
            FLAGS[name].serialize()
            for name in ("dataset", "data_dir")
            if FLAGS[name].value is not None
        ]
        print("  " + shlex.join(command), flush=True)
    distribution.agree(strategy, 0)  # the others wait for the chief


def own_flags():
    """The flags of this file, not those of the libraries."""
    return FLAGS.get_key_flags_for_module(sys.modules[__name__])


def keep_flags(path):
    """Writes the effective flags as a flagfile, if they go with what is there.

    Raises:
        UsageError: if the folder holds checkpoints of another run.
    """
    from ressl_keras import UsageError

    lines = [flag.serialize() for flag in own_flags() if flag.value is not None]
    checkpoints = os.path.join(os.path.dirname(path), "checkpoints")
    if os.path.exists(path) and os.path.isdir(checkpoints):
        with open(path) as file:
            before = set(file.read().split("\n"))

        def of_the_method(flag_lines):
            return sorted(
                line
                for line in flag_lines
                if line
                and line.lstrip("-").removeprefix("no").split("=")[0] not in _FREE
            )

        then = of_the_method(before - set(lines))
        now = of_the_method(set(lines) - before)
        if then or now:
            raise UsageError(
                f"{os.path.dirname(path)} holds a run with other flags: there "
                f"{' '.join(then) or 'nothing'}, here {' '.join(now) or 'nothing'}. "
                "Give another --workdir, or the flags of that run."
            )
    with open(path, "w") as file:
        file.writelines(f"{line}\n" for line in lines)


if __name__ == "__main__":
    app.run(main)
