"""Program of test_refusals: what train.py says of extreme and of random flags.

Prints a JSON line for each: the words, what was said, seconds, and megabytes above the
imports at their highest.
"""

import contextlib
import io
import json
import os
import pathlib
import resource
import sys
import time

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import hypothesis
import tensorflow as tf
from hypothesis import strategies as st
from options import parse

from ressl_keras.commands import train
from ressl_keras.commands.train import TrainOptions
from ressl_keras.data import datasets
from ressl_keras.errors import UsageError
from ressl_keras.settings import settings_of
from ressl_keras.training import pretrain

EXTREMES = [
    ["--image_size=4096", "--batch_size=5000"],
    ["--crops=4096,4096,4096,4096", "--batch_size=1000"],
    ["--crops=99999999"],
    ["--image_size=1000000"],
    ["--width=4096"],
    ["--width=10000000"],
    ["--queue_size=99999999999"],
    ["--queue_size=16777216", "--embedding_dim=65536"],
    ["--queue_size=16777216", "--batch_size=5000"],
    ["--hidden_dim=65536", "--embedding_dim=65536"],
    ["--predictor_dim=65536", "--embedding_dim=65536"],
    ["--references=batch", "--batch_size=1"],
    ["--devices=100000"],
    ["--batch_size=1000000"],
]


class Started(Exception):
    """The run would be built now."""


def start(*arguments):
    raise Started


def highest():
    """Megabytes of memory at the highest so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def attempt(words, folder):
    """What becomes of a command with these words: "started", or the refusal."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options = parse(TrainOptions, f"--workdir={folder}", "--noevaluate", *words)
        train.run(options)
    except Started:
        return "started"
    except UsageError as error:
        return str(error)
    except SystemExit as end:
        if end.code == 1:
            return said.getvalue().rstrip("\n")
    raise AssertionError("neither started nor refused")


def values(known):
    """Texts of values near the bounds of a setting, and of any other."""
    bounds = known.low or known.above or 0, known.high or 10**12
    right = [*map(str, known.choices), *map(str, bounds), "1", "64", "true"]
    wrong = ["", "-1", "1e30", "nan", "inf", "none", "0x10", "3,4"]
    texts = st.text(st.characters(codec="utf-8"), max_size=8)
    return st.sampled_from(right) | st.sampled_from(right + wrong) | texts


def words():
    """Lists of a few flags with such values."""
    known = settings_of(TrainOptions)
    # Not where it writes, nor what it fetches, nor what TensorFlow fixes at its start.
    fixed = ("workdir", "dataset", "devices", "strategy")
    known = {k: v for k, v in known.items() if k not in fixed}
    one = st.sampled_from(sorted(known)).flatmap(
        lambda name: values(known[name]).map(lambda text: f"--{name}={text}")
    )
    return st.lists(one, min_size=1, max_size=4, unique_by=lambda w: w.split("=")[0])


def main(folder, examples):
    pretrain._Run.prepare = start
    # Drawing the images is no part of what is measured.
    shapes = datasets.load_dataset("shapes")
    datasets.load_dataset = lambda *arguments, **options: shapes
    tf.zeros([])
    attempt([], folder)  # what is imported at the first attempt

    def report(words):
        before, begin = highest(), time.monotonic()
        said = attempt(words, folder)
        seconds, megabytes = time.monotonic() - begin, highest() - before
        print(json.dumps([words, said, seconds, megabytes]), flush=True)

    for extreme in EXTREMES:
        report(extreme)
    settings = hypothesis.settings(
        max_examples=int(examples), database=None, deadline=None, derandomize=True
    )
    settings(hypothesis.given(words())(report))()


if __name__ == "__main__":
    main(*sys.argv[1:])
