"""What a run says, with a clock that the tests turn."""

import io
import types

import keras
import pytest

from ressl_keras import ReSSL
from ressl_keras.config import Config
from ressl_keras.data import shapes
from ressl_keras.data.datasets import Dataset
from ressl_keras.data.images import ArrayImages
from ressl_keras.training import progress
from ressl_keras.training.build import Plan


class Terminal(io.StringIO):
    """Text that was written to a terminal."""

    def isatty(self):
        return True

    def shown(self):
        """The lines as a person sees them in the end."""
        return [line.split("\r\033[K")[-1] for line in self.getvalue().split("\n")]


@pytest.fixture
def train():
    """Pretends to train: each step of 10 images takes some seconds."""

    def train(stream, epochs, steps_per_epoch, seconds, first_step=0):
        clock = types.SimpleNamespace(now=0.0)
        callback = progress.Progress(
            epochs * steps_per_epoch,
            steps_per_epoch,
            stream,
            clock=lambda: clock.now,
        )
        counter = keras.Variable(first_step, dtype="int64")
        callback.set_model(types.SimpleNamespace(step=counter))
        for epoch in range(first_step // steps_per_epoch, epochs):
            done = first_step % steps_per_epoch
            first_step = 0
            callback.set_params({"steps": steps_per_epoch - done})
            callback.on_epoch_begin(epoch)
            logs = {"images_per_second": 10 / seconds, "waiting": 0.031}
            for batch in range(steps_per_epoch - done):
                clock.now += seconds
                counter.assign_add(1)
                callback.on_train_batch_end(batch, {"loss": 7.0 - epoch, **logs})
            callback.on_epoch_end(
                epoch, {"loss": 6.5 - epoch, "knn_top1": 40.123, **logs}
            )

    return train


def test_a_log_has_a_line_an_epoch_and_now_and_then_one_between(train):
    log = io.StringIO()
    train(log, epochs=2, steps_per_epoch=10, seconds=10)
    assert log.getvalue() == (
        "Epoch 1/2, step 3/10: loss 7.000, 1 images/s, 3 min left, waiting 3 %\n"
        "Epoch 1/2, step 6/10: loss 7.000, 1 images/s, 2 min left, waiting 3 %\n"
        "Epoch 1/2, step 9/10: loss 7.000, 1 images/s, 2 min left, waiting 3 %\n"
        "Epoch 1/2: loss 6.500, kNN 40.12 %, 1 images/s, 2 min left, waiting 3 %\n"
        "Epoch 2/2, step 3/10: loss 6.000, 1 images/s, 1 min left, waiting 3 %\n"
        "Epoch 2/2, step 6/10: loss 6.000, 1 images/s, 40 s left, waiting 3 %\n"
        "Epoch 2/2, step 9/10: loss 6.000, 1 images/s, 10 s left, waiting 3 %\n"
        "Epoch 2/2: loss 5.500, kNN 40.12 %, 1 images/s, waiting 3 %\n"
    )


def test_a_continued_run_counts_from_where_it_was(train):
    log = io.StringIO()
    train(log, epochs=3, steps_per_epoch=10, seconds=10, first_step=15)
    assert log.getvalue().startswith("Epoch 2/3, step 8/10: loss 6.000")


def test_short_epochs_fill_no_log(train):
    log = io.StringIO()
    train(log, epochs=20, steps_per_epoch=5, seconds=0.1)
    assert log.getvalue().count("\n") == 20


def test_a_terminal_line_replaces_itself_and_never_wraps(train, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    terminal = Terminal()
    train(terminal, epochs=2, steps_per_epoch=10, seconds=10)
    assert terminal.shown() == [
        "Epoch 1/2: loss 6.500, kNN 40.12 %, 1 images/s, 2 min left, waiting 3 %",
        "Epoch 2/2: loss 5.500, kNN 40.12 %, 1 images/s, waiting 3 %",
        "",
    ]
    between = terminal.getvalue().split("\n")[0].split("\r\033[K")[1:-2]
    assert len(between) == 9
    assert between[0] == "Epoch 1/2, step 1/10: loss 7.000, 1 images/s, wai"
    assert max(map(len, between)) <= 49


@pytest.mark.parametrize(
    "seconds, words",
    [
        (0, "0 s"),
        (59, "59 s"),
        (61, "1 min"),
        (3540, "59 min"),
        (3600, "1 h 0 min"),
        (7 * 3600 + 300, "7 h 5 min"),
        (50 * 3600, "2.1 days"),
    ],
)
def test_durations_are_as_exact_as_one_plans_by(seconds, words):
    assert progress.duration(seconds) == words


@pytest.mark.parametrize(
    "passes, words", [(1, ""), (3, " of 3 passes over the images")]
)
def test_the_table_says_what_is_trained_on_what(passes, words):
    images = keras.Input((8, 8, 3))
    features = keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(images))
    model = ReSSL(keras.Model(images, features), queue_size=8192)
    drawn = ArrayImages(*shapes.render(4, 0, size=8))
    dataset = Dataset("drawn", drawn, drawn, drawn, ["a", "b"])
    table = progress.overview(
        dataset,
        model,
        Config(backbone="dense", batch_size=2),
        Plan(8, passes_per_epoch=passes, steps_per_epoch=15, total_steps=30),
    )
    assert table.split("\n") == [
        "data       drawn, 4 images of 8 pixels, in memory (0 MiB)",
        "labels     2 classes (a, b), 4 images held out",
        "model      dense, 12 parameters, 3 features",
        "steps      30 of 2 images, 15 per epoch" + words,
        "devices    1 CPU, 2 images each",
        "precision  float32",
        # 8192 vectors of 128 numbers of 4 bytes.
        "queue      8192 x 128 float32, 4.0 MiB on each device",
    ]
