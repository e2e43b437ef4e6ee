"""Pretrains an encoder on images without labels.

  python train.py --flagfile=flags/quickstart.flags
  python train.py --flagfile=flags/cifar10.flags --workdir=runs/cifar10
  python train.py --dataset=folder --data_dir=my_images --workdir=runs/mine

The same command again goes on where an interrupted run stopped.
"""

import copy
import functools
import os
import shlex
import signal
import sys

from absl import flags

import ressl_command

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
flags.DEFINE_integer(
    "steps_per_execution",
    1,
    "Steps run by one call of the graph; more cost less of Python's time. It must "
    "divide the steps of an epoch.",
    lower_bound=1,
)
flags.DEFINE_list(
    "profile",
    None,
    "First and last step to profile for TensorBoard, such as 20,30; counted from where "
    "this call starts.",
)
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
flags.register_validator(
    "profile",
    lambda value: not value or [side.isdigit() for side in value] == [True, True],
    "must be two step numbers, such as 20,30",
)

# What --help shows: those that matter first, and the others.
GROUPS = {
    "Data": ("dataset data_dir image_size", "download check_images crops"),
    "Model": ("backbone", "width hidden_dim embedding_dim predictor_dim batch_norm"),
    "Method": (
        "queue_size momentum",
        "method teacher_view references student_temperature teacher_temperature "
        "info_nce_epochs info_nce_temperature",
    ),
    "Training": (
        "epochs batch_size learning_rate",
        "warmup_epochs max_steps weight_decay seed",
    ),
    "Devices": ("precision", "strategy devices jit_compile steps_per_execution"),
    "Output": (
        "workdir preview evaluate",
        "knn_every checkpoint_every keep_checkpoints profile",
    ),
}

# What a continued run may change without becoming another run.
_FREE = {
    "workdir",
    "data_dir",
    "download",
    "epochs",
    "max_steps",
    "knn_every",
    "checkpoint_every",
    "keep_checkpoints",
    "steps_per_execution",
    "profile",
    "strategy",
    "devices",
    "evaluate",
    "preview",
}


def main(_):
    import tensorflow as tf

    from ressl_keras import checkpoints

    try:
        run()
    except checkpoints.Stopped as stopped:
        print(f"\n{stopped} To go on from there:\n  {ressl_command.typed()}")
        sys.exit(128 + stopped.signal_number)
    except KeyboardInterrupt:
        step = checkpoints.last_step(os.path.join(FLAGS.workdir, "checkpoints"))
        saved = f" Step {step} is saved. To go on from there:" if step else ""
        again = saved or " Nothing was learned yet. To start again:"
        print(f"\nStopped.{again}\n  {ressl_command.typed()}")
        sys.exit(128 + signal.SIGINT)
    except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
        ressl_command.say_error(
            f"Another worker was lost or cannot be reached ({type(error).__name__}). "
            "Start all workers again to go on from the last checkpoint."
        )
        ressl_command.leave(1)


def run():
    from ressl_keras import data, distribution, encoders, evaluation, report, training

    # First of all: TensorFlow takes no more devices or machines once it has started.
    strategy = distribution.make_strategy(FLAGS.strategy, FLAGS.devices)
    chief = distribution.is_chief(strategy)
    # Flushed, since a log file would show nothing for a long time.
    say = functools.partial(print, flush=True) if chief else lambda line: None
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
    arguments["profile"] = tuple(map(int, FLAGS.profile or ())) or None
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
        progress=say,
    )
    if chief:
        judged, results, evidence = None, None, evaluation.Evidence()
        if FLAGS.evaluate:
            judged = encoders.load_encoder(encoder)
        if FLAGS.evaluate and dataset.labelled:
            results = evaluation.evaluate(judged, dataset, evidence=evidence)
            output = os.path.join(FLAGS.workdir, "evaluation.json")
            encoders.write_json(output, results)
            print(evaluation.table(results))
        report.try_to_write(
            os.path.join(FLAGS.workdir, report.REPORT_FILE),
            run=FLAGS.workdir,
            encoder=judged,
            dataset=dataset,
            results=results,
            evidence=evidence,
            command=ressl_command.typed(),
        )
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

    folder = os.path.dirname(path)
    if os.path.exists(path) and os.path.isdir(os.path.join(folder, "checkpoints")):
        # What the file does not name had its default, also in runs of older versions.
        before = copy.deepcopy(FLAGS)
        before.unparse_flags()
        try:
            before(["train.py", f"--flagfile={path}"], known_only=True)
        except flags.Error as error:
            raise UsageError(f"{path} cannot be read: {error}.") from error
        changed = [
            flag
            for flag in own_flags()
            if flag.name not in _FREE and flag.value != before[flag.name].value
        ]
        if changed:
            then = " ".join(_written(before[flag.name]) for flag in changed)
            now = " ".join(map(_written, changed))
            raise UsageError(
                f"{folder} holds a run with other flags: there {then}, here {now}. "
                "Give another --workdir, or the flags of that run."
            )
    lines = [flag.serialize() for flag in own_flags() if flag.value is not None]
    with open(path, "w") as file:
        file.writelines(f"{line}\n" for line in lines)


def _written(flag):
    return flag.serialize() or f"no --{flag.name}"


if __name__ == "__main__":
    ressl_command.run(main, GROUPS)
