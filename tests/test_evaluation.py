"""Whole evaluations: all protocols, beside the untrained encoder."""

import json
import os

import keras
import numpy as np
import pytest

from ressl_keras import UsageError, devices
from ressl_keras.data import shapes
from ressl_keras.data.datasets import Dataset
from ressl_keras.data.images import ArrayImages
from ressl_keras.encoders.encoder import encoder_hash, load_encoder
from ressl_keras.evaluation import judgement, protocols
from ressl_keras.evaluation.features import extract
from ressl_keras.evaluation_options import EvaluationOptions


@pytest.fixture
def dataset():
    train = ArrayImages(*shapes.render(400, seed=0, size=8))
    test = ArrayImages(*shapes.render(100, seed=1, size=8))
    return Dataset("shapes", train, train, test, list(shapes.CLASS_NAMES))


@pytest.fixture
def encoder():
    return keras.Sequential(
        [keras.Input([8, 8, 3]), keras.layers.Flatten(), keras.layers.Dense(12)]
    )


def test_features_are_the_encoders_outputs_in_order(dataset, encoder):
    features, labels = extract(encoder, dataset.test, batch_size=32)
    np.testing.assert_allclose(
        features, encoder(dataset.test.images), rtol=1e-5, atol=1e-3
    )
    np.testing.assert_array_equal(labels, dataset.test.labels)


def test_an_encoder_is_judged_beside_its_untrained_self(dataset, encoder):
    results = protocols.evaluate(encoder, dataset, log=lambda line: None)
    assert set(results) == {"knn", "linear"}
    names = {"top1", "top5", "untrained_top1", "untrained_top5"}
    for values in results.values():
        assert set(values) == names
        assert all(0 <= value <= 100 for value in values.values())
    lines = protocols.table(results).split("\n")
    assert len(lines) == 3 and f"{results['knn']['top1']:.2f}" in lines[1]


def test_the_untrained_network_can_be_left_out(dataset, encoder, monkeypatch):
    """It takes as long again. The figures of the encoder are the same without it."""
    quiet = {"log": lambda line: None}
    expected = protocols.evaluate(encoder, dataset, ["knn"], **quiet)["knn"]

    def none_is_made(encoder):
        raise AssertionError

    monkeypatch.setattr(protocols, "untrained", none_is_made)
    lines = []
    results = protocols.evaluate(
        encoder, dataset, ["knn"], untrained=False, log=lines.append
    )
    assert results == {"knn": {name: expected[name] for name in ("top1", "top5")}}
    assert not any("untrained" in line for line in lines)
    assert protocols.table(results).split("\n")[1].split()[2] == "-"


def test_batch_and_learning_rate_of_fine_tuning_are_given(
    dataset, encoder, monkeypatch
):
    """The learning rate is for 64 images: both runs begin with 0.02."""
    found, fit = [], devices.fit

    def watched(model, batches, **settings):
        optimizer = model.optimizer
        found.append((settings["steps_per_epoch"], float(optimizer.learning_rate)))
        return fit(model, batches, **settings)

    monkeypatch.setattr(devices, "fit", watched)
    for batch_size, learning_rate in ((100, 0.0128), (32, 0.04)):
        protocols.evaluate(
            encoder,
            dataset,
            ["finetune"],
            finetune_epochs=1,
            finetune_batch_size=batch_size,
            finetune_learning_rate=learning_rate,
            untrained=False,
            log=lambda line: None,
        )
    steps = [len(dataset.train) // size for size in (100, 32)]
    assert found == [(count, pytest.approx(0.02)) for count in steps]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, None),
        ({"probe": "paper"}, None),
        ({"probe": "paper", "probe_epochs": 5}, None),
        ({"probe_epochs": 5}, "--probe_epochs=5 has no effect without --probe=paper"),
        ({"probe": "paper", "protocol": ("knn",)}, "effect without --protocol=linear"),
        ({"finetune_epochs": 5}, "has no effect without --protocol=finetune"),
        ({"class_weights": True}, "--class_weights has no effect"),
        ({"class_weights": True, "protocol": ("finetune",)}, None),
    ],
)
def test_an_option_without_effect_is_named(options, said):
    found = list(EvaluationOptions(**options).cautions())
    assert found == [] if said is None else said in found[0] and len(found) == 1


def test_what_has_no_effect_is_said_by_an_evaluation(dataset, encoder):
    lines = []
    settings = {"untrained": False, "early_stopping": 3, "log": lines.append}
    protocols.evaluate(encoder, dataset, ["knn"], **settings)
    assert lines[0].startswith("Warning: --early_stopping=3 has no effect")


def test_a_file_keeps_what_other_protocols_found_of_the_same_encoder(
    dataset, encoder, tmp_path
):
    output = tmp_path / "evaluation.json"

    def judged(*protocol):
        options = EvaluationOptions(protocol=protocol)
        quiet = {"log": lambda line: None}
        found = judgement.judge(encoder, dataset, str(output), options, **quiet)
        return found, json.loads(output.read_text())

    first, _ = judged("knn")
    second, written = judged("neighbours", "linear")
    assert list(written) == ["knn", "linear", "neighbours"]
    of = {"dataset": "shapes", "test_images": 100, "classes": 10}
    of["encoder"] = encoder_hash(encoder)
    for protocol, values in written.items():
        assert values == {**(first | second)[protocol], **of}
    dataset.name = "others"
    assert list(judged("linear")[1]) == ["linear"]
    judged("knn")
    encoder.set_weights([2 * weight for weight in encoder.get_weights()])
    assert list(judged("neighbours")[1]) == ["neighbours"]


def test_the_state_of_an_interrupted_protocol_outlives_other_evaluations(
    dataset, encoder, tmp_path
):
    work = tmp_path / "evaluation.unfinished"
    work.mkdir()
    (work / "features-0.npy").touch()
    np.savez(work / "finetune-trained.npz", identity="of other settings")
    for protocol, left in (("knn", ["finetune-trained.npz"]), ("finetune", None)):
        judgement.judge(
            encoder,
            dataset,
            str(tmp_path / "evaluation.json"),
            EvaluationOptions(protocol=(protocol,), finetune_epochs=1),
            log=lambda line: None,
        )
        assert (os.listdir(work) if work.exists() else None) == left


def test_the_untrained_encoder_has_other_weights(encoder):
    fresh = protocols.untrained(encoder)
    assert not np.allclose(fresh.get_weights()[0], encoder.get_weights()[0])


def test_an_unknown_protocol_or_data_without_labels_is_refused(dataset, encoder):
    with pytest.raises(UsageError, match="Did you mean knn"):
        protocols.evaluate(encoder, dataset, ["knm"])
    with pytest.raises(UsageError, match="no labels"):
        protocols.evaluate(encoder, Dataset("mine", dataset.pretrain))


@pytest.mark.long
def test_every_protocol_is_judged_with_a_share_of_the_labels(
    dataset, encoder, tmp_path
):
    lines = []
    results = protocols.evaluate(
        encoder,
        dataset,
        ["knn", "linear", "finetune", "neighbours"],
        label_fraction=0.1,
        finetune_epochs=1,
        picture=str(tmp_path / "neighbours.png"),
        log=lines.append,
    )
    assert "40 labels, 10 % of every class" in lines
    for protocol in ("knn", "linear", "finetune"):
        assert results[protocol]["label_fraction"] == 0.1
        assert {"top1", "untrained_top1"} <= set(results[protocol])
    assert set(results["neighbours"]) == {"picture", "agreement"}
    assert len(protocols.table(results).split("\n")) == 4
    assert (tmp_path / "neighbours.png").exists()


def test_the_labels_are_those_of_a_list_or_so_many_of_a_class(
    dataset, encoder, tmp_path
):
    dataset.train.names = "image_{}.png".format
    path = tmp_path / "list.txt"
    path.write_text("image_3.png\n\nfolder/image_7.png\nimage_x.png\n")
    found, lines = protocols.Predictions(), []
    quiet = {"predictions": found, "log": lines.append}
    listed = protocols.evaluate(
        encoder, dataset, ["knn"], label_list=str(path), **quiet
    )
    assert found.train.indices.numpy().tolist() == [3, 7]
    assert listed["knn"]["label_list"] == "list.txt" and listed["knn"]["labels"] == 2
    assert "2 labels, named by list.txt" in lines
    assert any("1 of its files" in line and "image_x.png" in line for line in lines)
    few = protocols.evaluate(encoder, dataset, ["knn"], labels_per_class=4, **quiet)
    assert set(np.bincount(found.train.labels)) == {4}
    assert few["knn"]["labels_per_class"] == 4
    path.write_text("image_x.png\n")
    with pytest.raises(UsageError, match=r"None of the files that list\.txt names"):
        protocols.evaluate(encoder, dataset, ["knn"], label_list=str(path), **quiet)


@pytest.mark.long
def test_a_saved_model_is_judged_without_an_untrained_twin(dataset, encoder, tmp_path):
    encoder.export(tmp_path / "model", verbose=False)
    frozen = load_encoder(str(tmp_path / "model"))
    quiet = {"log": lambda line: None}
    results = protocols.evaluate(frozen, dataset, **quiet)
    expected = protocols.evaluate(encoder, dataset, **quiet)
    assert set(results["linear"]) == {"top1", "top5"}
    assert results["knn"]["top1"] == expected["knn"]["top1"]
    assert "-" in protocols.table(results)
    with pytest.raises(UsageError, match="cannot be fine-tuned"):
        protocols.evaluate(frozen, dataset, ["finetune"], **quiet)


def test_cached_features_are_those_of_this_encoder_and_these_images(
    dataset, encoder, tmp_path
):
    cache = str(tmp_path)
    first, labels = extract(encoder, dataset.test, cache=cache)
    again, _ = extract(encoder, dataset.test, cache=cache)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(labels, dataset.test.labels)
    assert len(list(tmp_path.iterdir())) == 1
    extract(encoder, dataset.train, cache=cache)
    extract(protocols.untrained(encoder), dataset.test, cache=cache)
    few, _ = extract(encoder, dataset.test, 7, cache=cache)
    assert len(few) == 7
    assert len(list(tmp_path.iterdir())) == 4
