"""Checkpoints and going on from them."""

import concurrent.futures
import errno
import os
import signal
import threading

import h5py
import keras
import numpy as np
import pytest
import small_run
import tensorflow as tf
from small_run import arrays, dataset

from ressl_keras import SGD, ReSSL, UsageError, build_projector
from ressl_keras.config import Config
from ressl_keras.data import shapes
from ressl_keras.data.datasets import Dataset
from ressl_keras.data.images import ArrayImages
from ressl_keras.run_folder import RunFolder
from ressl_keras.training import checkpoints
from ressl_keras.training.callbacks import Throughput
from ressl_keras.training.pretrain import pretrain

# What is saved and resumed depends on no particular network.
pytestmark = pytest.mark.usefixtures("light_backbone")


def test_the_last_few_are_kept(tmp_path, model):
    for step in (1, 2, 3):
        checkpoints.save(model, tmp_path, step, keep=2)
    assert [step for step, _, _ in checkpoints.found(tmp_path)] == [3, 2]


def test_a_damaged_checkpoint_is_passed_over_with_a_message(tmp_path, model, capsys):
    model.step.assign(1)
    checkpoints.save(model, tmp_path, 1)
    expected = [variable.numpy() for variable in model.variables]
    model.queue.enqueue(tf.ones([3, 4]) / 2)
    newest = checkpoints.save(model, tmp_path, 2)
    with open(newest, "r+b") as file:
        file.seek(3000)
        file.write(b"damage")
    assert checkpoints.restore(model, tmp_path) == 1
    assert f"{newest} is damaged" in capsys.readouterr().out
    assert [path.name[:14] for path in sorted(tmp_path.iterdir())] == [
        "damaged-step-0",
        "step-000000001",
    ]
    for variable, value in zip(model.variables, expected):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_a_new_checkpoint_outlives_damaged_ones_of_later_steps(tmp_path, model):
    for step in (8, 9):
        path = checkpoints.save(model, tmp_path, step)
        with open(path, "r+b") as file:
            file.truncate(1000)
    assert checkpoints.restore(model, tmp_path) == 0
    checkpoints.save(model, tmp_path, 1, keep=1)
    assert checkpoints.restore(model, tmp_path) == 1


class Burst(keras.callbacks.Callback):
    """Ruins the weights after some steps, as too high a learning rate does."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == 3:
            weights = self.model.student.get_weights()
            self.model.student.set_weights([np.full_like(w, np.nan) for w in weights])


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    """At the due step and at the end; the checkpoint before them stays."""
    for every in (2, 4):
        folder = tmp_path / str(every)
        with pytest.raises(UsageError, match=r"At step 4 .* not finite numbers"):
            run(folder, callbacks=[Burst()], checkpoint_every=every, max_steps=4)
        kept = [step for step, _, _ in checkpoints.found(folder / "checkpoints")]
        assert kept == ([2] if every == 2 else [])
        assert not (folder / "encoder.keras").exists()


def test_without_a_checkpoint_a_run_starts_at_step_zero(tmp_path, model):
    assert checkpoints.restore(model, tmp_path / "absent") == 0
    (tmp_path / "writing-checkpoint.weights.h5").write_text("half a file")
    assert checkpoints.restore(model, tmp_path) == 0


@pytest.fixture
def model():
    images = keras.Input([4, 4, 3])
    features = keras.layers.GlobalAveragePooling2D()(images)
    model = ReSSL(keras.Model(images, features), build_projector(3, 8, 4), queue_size=9)
    model.compile(SGD(0.1))
    model.optimizer.build(model.trainable_variables)
    return model


SETTINGS = small_run.SETTINGS | {"epochs": 3, "keep_checkpoints": 2}


def run(folder, log=lambda line: None, callbacks=(), **settings):
    return pretrain(
        dataset(),
        str(folder),
        Config(**SETTINGS | settings),
        callbacks=callbacks,
        verbose=False,
        log=log,
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, light_backbone):
    folder = tmp_path_factory.mktemp("undisturbed")
    run(folder, keep_checkpoints=9)
    return folder


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
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
            run(tmp_path)
    assert caught.value.signal_number == number
    assert signal.getsignal(number) == before
    lines = []
    run(tmp_path, log=lines.append)
    assert "Resuming at step 8 of 15." in lines
    for row in RunFolder(tmp_path).read_metrics():
        assert row["loss"]


@pytest.mark.long
def test_several_steps_an_execution_are_the_same_run(tmp_path, undisturbed):
    """Saved when the due step has passed, and the last at the end as ever."""
    lines = []
    run(tmp_path, steps_per_execution=7, checkpoint_every=7, log=lines.append)
    assert any(line.startswith("Steps per call of the graph: 5,") for line in lines)
    one, other = (arrays(folder) for folder in (tmp_path, undisturbed))
    for name, array in one.items():
        np.testing.assert_allclose(array, other[name], atol=1e-6, err_msg=name)
    steps = [step for step, _, _ in checkpoints.found(tmp_path / "checkpoints")]
    assert steps == [15, 10]


def test_a_run_in_float16_counts_skipped_steps_and_resumes(tmp_path):
    """The loss scale starts so high that the first updates are skipped."""
    lines = []
    settings = {"precision": "mixed_float16", "epochs": 2}
    run(tmp_path, **settings, max_steps=5)
    run(tmp_path, **settings, log=lines.append)
    assert "Resuming at step 5 of 10." in lines
    rows = RunFolder(tmp_path).read_metrics()
    assert [row["step"] for row in rows] == ["5", "10"]
    assert checkpoints.last_step(tmp_path / "checkpoints") == 10
    saved = arrays(tmp_path)
    updates = [
        v for name, v in saved.items() if "inner_optimizer" in name and not v.shape
    ]
    assert saved["vars/step"] == 10 and len(updates) > 0
    lines.clear()
    run(tmp_path, **settings, log=lines.append)
    assert any("The run is finished, at step 10" in line for line in lines)
    assert sorted(os.listdir(tmp_path / "export")) == ["1", "2"]


def kept(folder):
    return [step for step, _, _ in checkpoints.found(folder / "checkpoints")]


class AtStep(keras.callbacks.Callback):
    """Calls a function with each step that has ended."""

    def __init__(self, action):
        super().__init__()
        self.action = action

    def on_train_batch_end(self, batch, logs=None):
        self.action(int(self.model.step.numpy()))


@pytest.mark.long
def test_training_goes_on_while_a_checkpoint_is_written(
    tmp_path, undisturbed, monkeypatch
):
    """What is written is the state of its step, though training went on. The next
    checkpoint waits for it."""
    may_write, seen, write = threading.Event(), {}, checkpoints.write

    def slow(state, folder, step, keep):
        assert may_write.wait(60)
        return write(state, folder, step, keep)

    def look(step):
        seen[step] = kept(tmp_path)
        if step == 5:
            may_write.set()

    monkeypatch.setattr(checkpoints, "write", slow)
    run(tmp_path, keep_checkpoints=9, callbacks=[AtStep(look)])
    assert [seen[step] for step in range(1, 6)] == [[]] * 5
    assert 3 in seen[7]
    assert kept(tmp_path) == kept(undisturbed) == [15, 12, 9, 6, 3]
    paths = [
        next((folder / "checkpoints").glob("step-000000003-*"))
        for folder in (undisturbed, tmp_path)
    ]
    with h5py.File(paths[0]) as one, h5py.File(paths[1]) as other:
        names = []
        one.visit(names.append)
        found = [name for name in names if isinstance(one[name], h5py.Dataset)]
        assert len(found) > 20 and one["vars/step"][()] == other["vars/step"][()] == 3
        for name in found:
            np.testing.assert_allclose(one[name], other[name], atol=1e-6, err_msg=name)


def test_a_data_set_that_has_grown_is_told(tmp_path):
    lines = []
    run(tmp_path, max_steps=2)
    grown = Dataset("shapes", ArrayImages(*shapes.render(96, 0, size=8)))
    settings = SETTINGS | {"max_steps": 3}
    pretrain(grown, str(tmp_path), Config(**settings), verbose=False, log=lines.append)
    (warning,) = [line for line in lines if "another" in line]
    assert "96 images to learn from, and 80 when" in warning


def test_a_callback_ends_a_run_that_began_in_the_middle_of_an_epoch(tmp_path):
    """As EarlyStopping does; the same command goes on."""

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = int(self.model.step.numpy()) == 4

    run(tmp_path, max_steps=2)
    run(tmp_path, callbacks=[Stop()])
    assert kept(tmp_path)[0] == 4
    run(tmp_path)
    assert kept(tmp_path)[0] == 15


def test_a_run_that_stops_at_once_lets_the_thread_end(tmp_path):
    def stop(step):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, callbacks=[AtStep(stop)], checkpoint_every=2)
    assert not [t for t in threading.enumerate() if "checkpoint" in t.name]
    assert kept(tmp_path) == [2]


def steps(model, saving, last, together=1, after=lambda step: None):
    """Drives the callback through epochs of ten steps, as `fit` does."""
    saving.set_model(model)
    saving.on_train_begin()
    for first in range(0, last, 10):
        saving.on_epoch_begin(first // 10)
        for batch in range(0, min(10, last - first), together):
            model.step.assign_add(together)
            after(int(model.step.numpy()))
            saving.on_train_batch_end(batch + together - 1)
        saving.on_epoch_end(first // 10)
    saving.on_train_end()


@pytest.mark.parametrize(
    "together, every, expected",
    [(1, 0, [15, 12, 8, 4]), (5, 0, [15, 10, 5]), (1, 6, [15, 12, 10, 6, 4])],
)
def test_checkpoints_by_time(tmp_path, model, together, every, expected):
    """By a clock on which a step takes a minute, and by steps too."""
    folder = tmp_path / "checkpoints"
    saving = checkpoints.Checkpoints(
        folder, every, 9, 10, minutes=4, clock=lambda: 60 * model.step.numpy()
    )
    steps(model, saving, 15, together)
    assert kept(tmp_path) == expected


@pytest.mark.parametrize("every, last", [(3, 4), (0, 15)])
def test_a_failure_in_the_thread_is_raised(tmp_path, model, monkeypatch, every, last):
    """At the next step, or at the end; nothing is left of the failed file."""
    reached, flush = [], os.fsync

    def full(descriptor):
        if threading.current_thread() is threading.main_thread():
            flush(descriptor)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def after(step):
        reached.append(step)
        if saving._writing:
            concurrent.futures.wait([saving._writing])

    saving = checkpoints.Checkpoints(tmp_path / "checkpoints", every, 9, 10)
    with monkeypatch.context() as patch, pytest.raises(OSError) as caught:
        patch.setattr(os, "fsync", full)
        steps(model, saving, 15, after=after)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename.endswith("checkpoints/checkpoint.weights.h5")
    assert max(reached) == last and os.listdir(tmp_path / "checkpoints") == []
    saving.close()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
