"""What a run says of its start, its dates and its time; across interruptions."""

import datetime
import json
import pathlib
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from ressl_keras.config import Config
from ressl_keras.data import shapes
from ressl_keras.data.datasets import Dataset
from ressl_keras.data.images import ArrayImages
from ressl_keras.encoders.encoder import load_encoder
from ressl_keras.evaluation import judgement, protocols
from ressl_keras.evaluation.features import extract
from ressl_keras.evaluation.knn import knn_accuracy
from ressl_keras.run_folder import RunFolder
from ressl_keras.training import pretrain
from ressl_keras.training.build import Plan
from ressl_keras.training.callbacks import MetricsTable
from ressl_keras.training.history import History

SETTINGS = dict(
    hidden_dim=8, embedding_dim=4, queue_size=16, batch_size=16, warmup_epochs=0
)


def dataset():
    train = ArrayImages(*shapes.render(80, 0, size=8))
    test = ArrayImages(*shapes.render(40, 1, size=8))
    return Dataset("shapes", train, train, test, list(shapes.CLASS_NAMES))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, light_backbone):
    """A run of five steps an epoch, stopped after seven and resumed; what it said."""
    folder, lines = tmp_path_factory.mktemp("run"), []
    for steps in (7, 15):
        config = Config(**SETTINGS, epochs=3, knn_every=1, seed=5, max_steps=steps)
        pretrain.pretrain(dataset(), folder, config, verbose=False, log=lines.append)
    return RunFolder(folder), lines


@pytest.mark.long
def test_the_start_is_the_first_row_of_the_table_and_stays(trained):
    folder, lines = trained
    rows = folder.read_metrics()
    assert [(row["epoch"], row["step"]) for row in rows] == [
        ("0", "0"),
        ("1", "5"),
        ("2", "10"),
        ("3", "15"),
    ]
    assert not rows[0]["loss"] and rows[1]["loss"]
    said = f"{float(rows[0]['knn_top1']):.2f} % of 40 test images, among 80 labelled"
    assert sum(said in line for line in lines) == 1
    # Readers of the last value do not meet the first.
    assert folder.last_metric("loss") == float(rows[-1]["loss"])


@pytest.mark.long
def test_the_kept_start_is_what_was_measured(trained):
    folder, _ = trained
    initial, images = load_encoder(folder.initial), dataset()
    found = extract(initial, images.train) + extract(initial, images.test)
    (start, *_) = folder.read_metrics()
    assert float(start["knn_top1"]) == knn_accuracy(*found)["top1"]
    last = load_encoder(folder.encoder)
    different = [
        not np.array_equal(a, b)
        for a, b in zip(initial.get_weights(), last.get_weights())
    ]
    assert any(different)


@pytest.mark.long
def test_an_evaluation_compares_with_the_start(trained, tmp_path):
    folder, _ = trained
    encoder = load_encoder(folder.encoder)
    quiet = {"log": lambda line: None, "protocols": ["knn"]}
    output = str(tmp_path / "evaluation.json")
    results = judgement.judge(encoder, dataset(), output, run=folder.path, **quiet)
    (start, *_) = folder.read_metrics()
    assert results["knn"]["untrained_top1"] == float(start["knn_top1"])
    # Without it, or for another network, fresh weights are drawn.
    assert judgement.initial_of(None, encoder) is None
    assert judgement.initial_of(str(tmp_path), encoder) is None
    wider = keras.Sequential([encoder, keras.layers.Dense(3)])
    assert judgement.initial_of(folder.path, wider) is None
    assert protocols.untrained(encoder) is not None


@pytest.mark.long
def test_a_damaged_start_is_set_aside(trained, tmp_path, capsys):
    folder, _ = trained
    copy = RunFolder(tmp_path)
    content = pathlib.Path(folder.initial).read_bytes()
    pathlib.Path(copy.initial).write_bytes(content[: len(content) // 2])
    assert judgement.initial_of(copy.path, load_encoder(folder.encoder)) is None
    assert "is damaged and set aside" in capsys.readouterr().out


@pytest.mark.long
def test_the_parts_of_a_resumed_run_add_up(trained):
    folder, _ = trained
    with open(folder.history) as file:
        found = json.load(file)
    assert found["total_steps"] == 15 and found["steps_per_epoch"] == 5
    assert found["knn_images"] == [80, 40]
    first, second = found["parts"]
    assert (first["first_step"], first["last_step"]) == (0, 7)
    assert (second["first_step"], second["last_step"]) == (7, 15)
    moments = [part[name] for part in (first, second) for name in ("started", "ended")]
    assert moments == sorted(moments)
    now = datetime.datetime.now(datetime.UTC)
    assert abs(now - datetime.datetime.fromisoformat(moments[-1])).seconds < 600
    assert all(part["seconds"] > 0 and part["devices"] for part in (first, second))


def follow(folder, first_step, clock, stop=None):
    """A part of a run of ten steps a second each, in two epochs."""
    history = History(folder, first_step, Plan(8, 1, 3, 5, 10), 8, clock=lambda: now[0])
    now = [clock]
    counter = types.SimpleNamespace(numpy=lambda: step)
    history.set_model(
        types.SimpleNamespace(
            step=counter, distribute_strategy=tf.distribute.get_strategy()
        )
    )
    step = first_step
    with history:
        history.on_train_begin()
        while step < 10:
            history.on_epoch_begin(step // 5)
            for batch in range(5 - step % 5):
                now[0] += 1
                history.on_train_batch_end(batch)
                if history.step == stop:
                    raise KeyboardInterrupt
            step = history.step
            history.on_epoch_end(step // 5)
            history.on_train_begin()  # of another call of `fit`


def test_a_part_that_is_stopped_is_written(tmp_path):
    folder = RunFolder(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        follow(folder, 0, 100.0, stop=7)
    # Steps after the last checkpoint are trained again, and cost their time again.
    follow(folder, 5, 9000.0)
    with open(folder.history) as file:
        parts = json.load(file)["parts"]
    assert [part["seconds"] for part in parts] == [7, 5]
    assert [part["last_step"] for part in parts] == [7, 10]
    follow(folder, 0, 0.0)
    with open(folder.history) as file:
        assert len(json.load(file)["parts"]) == 1


def test_a_row_replaces_itself_and_what_came_later(tmp_path):
    table = MetricsTable(RunFolder(tmp_path))
    for epoch in (0, 1, 2, 3):
        table.write(epoch, 5 * epoch, {"loss": float(epoch)})
    table.write(2, 10, {"loss": 7.5})
    rows = RunFolder(tmp_path).read_metrics()
    assert [row["loss"] for row in rows] == ["0", "1", "7.5"]
    table.write(0, 0, {"knn_top1": 9.0})
    assert len(RunFolder(tmp_path).read_metrics()) == 1
