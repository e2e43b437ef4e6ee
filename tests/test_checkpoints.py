"""Checkpoints and going on from them."""

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from ressl_keras import (
    SGD,
    ReSSL,
    build_projector,
    checkpoints,
    data,
    shapes,
    training,
)


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


class Interruption(Exception):
    pass


def test_an_interrupted_run_ends_as_one_that_was_not(tmp_path, monkeypatch):
    """Stopped in the middle of an epoch, between two checkpoints."""
    images = data.ArrayImages(*shapes.render(80, seed=0, size=8))
    dataset = data.Dataset("shapes", images)
    options = dict(
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
        verbose=0,
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    training.pretrain(dataset, str(whole), **options)

    save = checkpoints.Checkpoints.on_train_batch_end

    def interrupted(self, batch, logs=None):
        save(self, batch, logs)
        if self._step() == 8:
            raise Interruption

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "on_train_batch_end", interrupted)
        with pytest.raises(Interruption):
            training.pretrain(dataset, str(parts), **options)
    lines = []
    training.pretrain(dataset, str(parts), **options, progress=lines.append)
    assert "Going on at step 6 of 15." in lines
    contents = [arrays(folder / "checkpoints") for folder in (whole, parts)]
    assert set(contents[0]) == set(contents[1])
    for name, array in contents[0].items():
        np.testing.assert_array_equal(array, contents[1][name], err_msg=name)


def arrays(folder):
    """Everything in the newest checkpoint: model, queue and optimizer."""
    found = {}

    def keep(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(max(folder.iterdir())) as file:
        file.visititems(keep)
    assert len(found) > 100
    return found
