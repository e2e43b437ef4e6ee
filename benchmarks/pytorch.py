"""The training step against that of the paper's public script, in PyTorch.

  python -m benchmarks.pytorch --python=PYTHON_WITH_TORCH --networks=resnet10_16

Ours is `fit` itself: batches from the pipeline, views, both encoders, queue, loss,
metrics, optimizer. Theirs is the bare step on images that are ready: no pipeline and no
views. Each measurement is a process of its own, and the two take turns, so that their
ratio means something on a machine that others use, too.
"""

import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from benchmarks import record
from ressl_keras import SGD, ReSSL, build_backbone, views
from ressl_keras.data.images import ArrayImages
from ressl_keras.data.pipeline import training_batches

ROOT = pathlib.Path(__file__).parents[1]
# The step's networks under ours and theirs of their options.
NETWORKS = {
    "resnet18_64": {
        "ours": {"backbone": "resnet18_small", "width": 64},
        "theirs": {"blocks": "2,2,2,2", "width": 64},
        "size": 32,
        "batch_size": 256,
    },
    "resnet10_16": {
        "ours": {"backbone": "resnet10_small", "width": 16},
        "theirs": {"blocks": "1,1,1,1", "width": 16},
        "size": 32,
        "batch_size": 256,
    },
    "resnet50_224": {
        "ours": {"backbone": "resnet50"},
        "theirs": {"blocks": "3,4,6,3"},
        "size": 224,
        "batch_size": 8,
    },
}
# Keras' dtype policy, and the scripts' word for it.
DTYPES = {"float32": ("float32", "fp32"), "bfloat16": ("mixed_bfloat16", "bf16")}

FLAGS = flags.FLAGS
flags.DEFINE_string("python", sys.executable, "The Python that has PyTorch.")
# In a folder of its own, since a script sees its neighbours first, and `queue` here
# would hide Python's from PyTorch.
flags.DEFINE_string(
    "script",
    "benchmarks/peers/pytorch_step.py",
    "PyTorch's step; a relative path starts at the repository.",
)
flags.DEFINE_list("networks", list(NETWORKS), f"Some of {', '.join(NETWORKS)}.")
flags.DEFINE_list("dtypes", list(DTYPES), f"Some of {', '.join(DTYPES)}.")
for name, known in (("networks", NETWORKS), ("dtypes", DTYPES)):
    flags.register_validator(
        name,
        lambda chosen, known=known: set(chosen) <= set(known),
        f"known are {', '.join(known)}",
    )
flags.DEFINE_integer("batch_size", 0, "Images a step, 0 for each network's own.")
flags.DEFINE_integer("rounds", 3, "Turns of ours and theirs.")
flags.DEFINE_integer("steps", 4, "Steps of one turn; ours are calls of the graph.")
flags.DEFINE_integer("steps_per_execution", 1, "Ours in one call of the graph.")
flags.DEFINE_bool("jit_compile", False, "Compile ours with XLA.")
flags.DEFINE_string("results", record.RESULTS, "File to append JSON lines to.")
flags.DEFINE_bool("one", False, "Measure ours in this process and print milliseconds.")


class NoPeer(Exception):
    """There is nothing to compare with."""


def ours(network, dtype, batch_size):
    """Best milliseconds of a step of `fit`, in a process of its own."""
    (best,) = record.in_a_process(
        "pytorch",
        networks=network,
        dtypes=dtype,
        batch_size=batch_size,
        steps=FLAGS.steps,
        jit_compile=FLAGS.jit_compile,
        steps_per_execution=FLAGS.steps_per_execution,
    )
    return best


def theirs(network, dtype, batch_size):
    """Best milliseconds of PyTorch's step, in a process of its own."""
    settings = NETWORKS[network]
    options = {
        **settings["theirs"],
        "batch": batch_size,
        "size": settings["size"],
        "dtype": DTYPES[dtype][1],
        "steps": FLAGS.steps,
        "threads": len(os.sched_getaffinity(0)),
    }
    if tf.config.list_physical_devices("GPU"):
        options["device"] = "cuda"
    command = [FLAGS.python, ROOT / FLAGS.script]
    command += [f"--{name}={value}" for name, value in options.items()]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(output.stdout.splitlines()[-1])["best_ms"]


def check_the_peer():
    """Raises NoPeer with the reason where PyTorch's step cannot run."""
    script = ROOT / FLAGS.script
    if not script.exists():
        raise NoPeer(f"There is no {script}; name it by --script.")
    try:
        subprocess.run(
            [FLAGS.python, "-c", "import torch"], capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        raise NoPeer(
            f"{FLAGS.python} has no PyTorch; name a Python that has it by --python."
        ) from None


def measure_ours():
    """Milliseconds of a step, in each call of the graph after the first three."""
    (network,), (dtype,) = FLAGS.networks, FLAGS.dtypes
    settings = NETWORKS[network]
    size = settings["size"]
    batch_size = FLAGS.batch_size or settings["batch_size"]
    keras.config.set_dtype_policy(DTYPES[dtype][0])
    network = dict(settings["ours"])
    model = ReSSL(
        build_backbone(network.pop("backbone"), (size, size, 3), **network),
        teacher_view=views.weak_view(size),
        student_view=views.strong_view(size),
    )
    together = FLAGS.steps_per_execution
    model.compile(
        SGD(0.01, l2=5e-4),
        jit_compile=FLAGS.jit_compile,
        steps_per_execution=together,
    )
    model.optimizer.build(model.trainable_variables)
    pixels = np.random.default_rng(0).integers(
        0, 256, [4 * batch_size, size, size, 3], np.uint8
    )
    steps = (FLAGS.steps + 3) * together
    batches = training_batches(ArrayImages(pixels), batch_size, 0, 0, steps)
    clock = Clock()
    model.fit(
        batches, steps_per_epoch=steps, shuffle=False, callbacks=[clock], verbose=0
    )
    return [call / together for call in clock.milliseconds[2:]]


class Clock(keras.callbacks.Callback):
    """Milliseconds from the end of one call of the graph to the next."""

    def on_train_begin(self, logs=None):
        self.ends = []

    def on_train_batch_end(self, batch, logs=None):
        float(logs["loss"])  # waits for the device
        self.ends.append(time.perf_counter())

    @property
    def milliseconds(self):
        return [1e3 * (end - start) for start, end in itertools.pairwise(self.ends)]


def main(argv):
    if FLAGS.one:
        print(min(measure_ours()))
        return 0
    try:
        check_the_peer()
    except NoPeer as reason:
        print(reason, file=sys.stderr)
        return 1
    print(f"{'network':14} {'precision':10} {'ours':>10} {'PyTorch':>10}  ours/PyTorch")
    for network in FLAGS.networks:
        batch_size = FLAGS.batch_size or NETWORKS[network]["batch_size"]
        for dtype in FLAGS.dtypes:
            setting = (network, dtype, batch_size)
            rounds = [(ours(*setting), theirs(*setting)) for _ in range(FLAGS.rounds)]
            ratios = [one / other for one, other in rounds]
            figures = {
                "network": network,
                "dtype": dtype,
                "batch_size": batch_size,
                "jit_compile": FLAGS.jit_compile,
                "steps_per_execution": FLAGS.steps_per_execution,
                "ours_milliseconds": min(one for one, _ in rounds),
                "pytorch_milliseconds": min(other for _, other in rounds),
                "ratio_median": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
            }
            print(
                f"{network:14} {dtype:10} {figures['ours_milliseconds']:7.0f} ms "
                f"{figures['pytorch_milliseconds']:7.0f} ms  "
                f"{figures['ratio_median']:.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f})",
                flush=True,
            )
            record.append("pytorch", figures, FLAGS.results)
    return 0


if __name__ == "__main__":
    app.run(main)
