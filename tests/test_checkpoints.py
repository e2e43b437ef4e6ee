"""Checkpoints and going on from them."""

import os
import pathlib
import signal
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from ressl_keras import (
    SGD,
    ReSSL,
    UsageError,
    build_projector,
    checkpoints,
    data,
    shapes,
    training,
)
from ressl_keras.callbacks import MetricsTable, Throughput


def test_the_last_few_are_kept(tmp_path, model):
    for step in (1, 2, 3):
        checkpoints.save(model, tmp_path, step, keep=2)
    assert [step for step, _, _ in checkpoints._found(tmp_path)] == [3, 2]


def test_a_damaged_checkpoint_is_passed_over_with_a_message(tmp_path, model, capsys):
    checkpoints.save(model, tmp_path, 1)
    expected = [variable.numpy() for variable in model.variables]
    model.queue.enqueue(tf.ones([3, 4]) / 2)
    newest = checkpoints.save(model, tmp_path, 2)
    with open(newest, "r+b") as file:
        file.seek(3000)
        file.write(b"damage")
    assert checkpoints.restore(model, tmp_path) == 1
    assert f"{newest} is damaged" in capsys.readouterr().out
    for variable, value in zip(model.variables, expected):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_without_a_checkpoint_a_run_starts_at_step_zero(tmp_path, model):
    assert checkpoints.restore(model, tmp_path / "absent") == 0
    (tmp_path / "writing.weights.h5").write_text("half a file")
    assert checkpoints.restore(model, tmp_path) == 0


@pytest.fixture
def model():
    images = keras.Input([4, 4, 3])
    features = keras.layers.GlobalAveragePooling2D()(images)
    model = ReSSL(keras.Model(images, features), build_projector(3, 8, 4), queue_size=9)
    model.compile(SGD(0.1))
    model.optimizer.build(model.trainable_variables)
    return model


OPTIONS = dict(
    backbone="resnet10_small",
    width=4,
    hidden_dim=16,
    embedding_dim=8,
    queue_size=20,
    epochs=3,
    warmup_epochs=1,
    batch_size=16,
    checkpoint_every=3,
    keep_checkpoints=2,
    knn_every=0,
    verbose=0,
    progress=lambda line: None,
)


def dataset():
    """Five steps an epoch."""
    return data.Dataset("shapes", data.ArrayImages(*shapes.render(80, 0, size=8)))


def pretrain(folder, **options):
    return training.pretrain(dataset(), str(folder), **{**OPTIONS, **options})


def same_run(one, other):
    """Same model, queue, optimizer, and table of metrics, the clock's aside."""
    contents = [arrays(folder / "checkpoints") for folder in (one, other)]
    assert set(contents[0]) == set(contents[1])
    for name, array in contents[0].items():
        np.testing.assert_array_equal(array, contents[1][name], err_msg=name)
    tables = [MetricsTable.read(folder / "metrics.csv") for folder in (one, other)]
    for row in [*tables[0], *tables[1]]:
        del row["images_per_second"]
        row.pop("waiting", None)  # which a deterministic run has not
    assert tables[0] == tables[1]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    pretrain(folder)
    return folder


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_told_to_stop_saves_its_step_and_goes_on(tmp_path, undisturbed, number):
    """In the middle of an epoch, between two checkpoints."""
    taken = []

    def stop_at_eight(self, batch, logs=None):
        taken.append(batch)
        if len(taken) == 8:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Throughput, "on_train_batch_begin", stop_at_eight)
        patch.setattr(Throughput, "_report", lambda self, logs: None)
        with pytest.raises(checkpoints.Stopped, match="Stopped at step 8") as caught:
            pretrain(tmp_path)
    assert caught.value.signal_number == number
    assert signal.getsignal(number) == before
    lines = []
    pretrain(tmp_path, progress=lines.append)
    assert "Going on at step 8 of 15." in lines
    for row in MetricsTable.read(tmp_path / "metrics.csv"):
        assert row["loss"]


def test_a_run_killed_ten_times_ends_as_one_that_was_not(tmp_path):
    """SIGKILL at random moments, once in the middle of writing a checkpoint; the
    final state is equal bit for bit, and so is the table of metrics."""
    subprocess.run(
        [sys.executable, pathlib.Path(__file__).parent / "killed_runs.py", tmp_path],
        check=True,
        timeout=300,
    )
    same_run(tmp_path / "undisturbed", tmp_path / "killed")


def test_several_steps_an_execution_are_the_same_run(tmp_path, undisturbed):
    """Saved when the due step has passed, and the last at the end as ever."""
    pretrain(tmp_path, steps_per_execution=5, checkpoint_every=7)
    one, other = (arrays(folder / "checkpoints") for folder in (tmp_path, undisturbed))
    for name, array in one.items():
        np.testing.assert_allclose(array, other[name], atol=1e-6, err_msg=name)
    steps = [step for step, _, _ in checkpoints._found(tmp_path / "checkpoints")]
    assert steps == [15, 10]


def test_executions_that_do_not_fit_an_epoch_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"does not divide the 5 steps.*; 1 does"):
        pretrain(tmp_path, steps_per_execution=3)


def arrays(folder):
    """Everything in the newest checkpoint: model, queue and optimizer."""
    found = {}

    def keep(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(max(folder.iterdir())) as file:
        file.visititems(keep)
    assert len(found) > 20
    return found
