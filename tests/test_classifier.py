"""A classifier that an evaluation keeps, served and run over a folder."""

import csv
import json
import shutil

import cpp_loader
import keras
import numpy as np
import pytest
import tensorflow as tf
from options import parse
from PIL import Image
from sklearn.metrics import recall_score

from ressl_keras import UsageError, build_backbone
from ressl_keras.commands.evaluate import EvaluateOptions, evaluate
from ressl_keras.commands.predict import PredictOptions, predict
from ressl_keras.data.datasets import load_dataset
from ressl_keras.encoders.building import build_encoder
from ressl_keras.encoders.encoder import load_encoder, save_encoder
from ressl_keras.evaluation import protocols
from ressl_keras.evaluation.classifiers import balanced, finetune
from ressl_keras.evaluation.kept import accuracy_per_class

DEVICE = "--strategy=one_device"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An encoder in a folder of its own, and images of two classes, red and blue."""
    root = tmp_path_factory.mktemp("classifier")
    keras.utils.set_random_seed(0)
    backbone = build_backbone("resnet10_small", (8, 8, 3), width=4)
    encoder = build_encoder(backbone, any_size=True)
    save_encoder(encoder, root, {"input_size": [8, 8]})
    random = np.random.default_rng(0)
    for i in range(60):
        pixels = random.integers(0, 90, [8, 8, 3])
        pixels[..., 2 * (i % 2)] += 120
        path = root / "images" / ("blue" if i % 2 else "red") / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


def judge(folder, *words):
    evaluate(
        parse(
            EvaluateOptions,
            f"--encoder={folder}",
            f"--data_dir={folder / 'images'}",
            DEVICE,
            *words,
        )
    )


@pytest.mark.long
def test_an_encoder_is_evaluated_from_inside_its_folder(folder, tmp_path, monkeypatch):
    shutil.copy(folder / "encoder.keras", tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ["--encoder=encoder.keras", "--protocol=knn", DEVICE]
    evaluate(parse(EvaluateOptions, *words, f"--data_dir={folder / 'images'}"))
    assert "knn" in json.loads((tmp_path / "evaluation.json").read_text())
    assert (tmp_path / "report.html").exists()


@pytest.fixture(scope="module")
def kept(folder):
    """Folder of a linear classifier on that encoder."""
    output = folder / "kept" / "evaluation.json"
    judge(folder, "--protocol=linear", "--save_classifier", f"--output={output}")
    return output.parent


@pytest.mark.parametrize(
    "protocol",
    [["linear"], ["finetune", "--finetune_epochs=2"], ["linear", "--probe=paper"]],
)
@pytest.mark.long
def test_a_kept_classifier_answers_alike_as_keras_file_and_served(protocol, folder):
    name, *words = protocol
    words += ["--probe_epochs=2", f"--output={folder / 'evaluation.json'}"]
    judge(folder, f"--protocol={name}", "--save_classifier", *words)
    classifier = keras.models.load_model(folder / "classifier.keras")
    newest = max((folder / "classifier").iterdir(), key=lambda path: int(path.name))
    served = tf.saved_model.load(str(newest)).signatures
    paths = sorted((folder / "images").rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    expected = classifier.predict(pixels, verbose=0)
    np.testing.assert_allclose(expected.sum(1), 1, atol=1e-5)
    files = tf.constant([path.read_bytes() for path in paths])
    names = np.array([b"blue", b"red"])  # in the order of the classes
    for answer in (
        served["serving_default"](images=tf.cast(pixels, tf.float32)),
        served["serve_uint8"](images=pixels),
        served["serve_bytes"](image_bytes=files),
    ):
        order = np.argsort(-expected, axis=1, kind="stable")
        np.testing.assert_array_equal(answer["classes"], names[order])
        found = np.take_along_axis(expected, order, 1)
        np.testing.assert_allclose(answer["probabilities"], found, atol=1e-5)
    # The accuracy is that of the held-out images: every tenth of the sorted list.
    result = json.loads((folder / "evaluation.json").read_text())[name]
    likeliest = expected[9::10].argmax(1)
    labels = np.array([path.parent.name == "red" for path in paths])[9::10]
    assert result["top1"] == pytest.approx(100 * (likeliest == labels).mean(), abs=0.01)
    assert set(result["per_class"]) <= {"red", "blue"}


@pytest.mark.long
def test_the_loader_that_a_server_uses_names_classes_as_keras_does(
    folder, kept, tmp_path
):
    """TF_LoadSessionFromSavedModel, called by its C interface, without Python."""
    paths = sorted((folder / "images").rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    files = [path.read_bytes() for path in paths]
    answers = cpp_loader.ask(kept / "classifier" / "1", pixels, files, tmp_path)
    classifier = keras.models.load_model(kept / "classifier.keras")
    expected = classifier.predict(pixels, verbose=0)
    order = np.argsort(-expected, axis=1, kind="stable")
    assert 0 < order[:, 0].mean() < 1  # both classes are there
    for signature in ("serving_default", "serve_uint8", "serve_bytes"):
        names = answers[signature, "classes"]
        np.testing.assert_array_equal(names, np.array([b"blue", b"red"])[order])
        wanted = np.take_along_axis(expected, order, 1)
        found = abs(answers[signature, "probabilities"] - wanted).max()
        print(f"C++ loader, classifier, {signature}: largest difference {found:.1e}")
        assert found <= 1e-5


@pytest.mark.long
@pytest.mark.parametrize("top", [2, 9])  # there are two classes
def test_a_folder_is_classified_by_the_kept_classifier(top, folder, kept, capsys):
    output = folder / "predictions.csv"
    words = [f"--classifier={kept / 'classifier.keras'}", f"--top={top}", DEVICE]
    words += [f"--data_dir={folder / 'images'}", f"--output={output}"]
    predict(parse(PredictOptions, *words))
    with open(output) as file:
        rows = list(csv.DictReader(file))
    classifier = keras.models.load_model(kept / "classifier.keras")
    assert len(rows) == 60 and "probability_3" not in rows[0]
    for row in rows[:7]:
        pixels = np.asarray(Image.open(folder / "images" / row["file"]))[np.newaxis]
        expected = classifier(pixels)[0].numpy()
        assert row["class"] == ["blue", "red"][expected.argmax()]
        assert float(row["probability"]) == pytest.approx(expected.max(), abs=1e-4)
        assert float(row["probability_2"]) == pytest.approx(expected.min(), abs=1e-4)
    right = sum(row["label"] == row["class"] for row in rows)
    assert f"Of 60 with a label {right} have that class" in capsys.readouterr().out


@pytest.mark.long
def test_python_keeps_a_classifier_as_the_command_does(folder, kept, tmp_path):
    dataset = load_dataset("folder", str(folder / "images"), log=lambda line: None)
    asked = load_encoder(folder), dataset, ["linear"]
    with pytest.raises(UsageError, match="needs a workdir"):
        protocols.evaluate(*asked, save_classifier=True)
    workdir = tmp_path / "new" / "run"
    protocols.evaluate(*asked, save_classifier=True, workdir=workdir)
    assert (workdir / "classifier" / "1" / "saved_model.pb").exists()
    by_python, by_command = (
        keras.models.load_model(path / "classifier.keras") for path in (workdir, kept)
    )
    for one, other in zip(by_python.get_weights(), by_command.get_weights()):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_accuracies_per_class_are_recalls(random):
    labels, scores = random.integers(0, 4, 50), random.normal(size=[50, 4])
    found = accuracy_per_class(scores, labels, ["a", "b", "c", "d"])
    expected = 100 * recall_score(labels, scores.argmax(1), average=None)
    np.testing.assert_allclose(list(found.values()), expected, atol=0.01)


def test_weights_make_all_classes_count_the_same():
    labels = np.array([0, 0, 0, 0, 0, 0, 3, 3])
    weights = balanced(labels)
    assert weights.tolist() == pytest.approx([2 / 3, 0, 0, 2], abs=1e-6)
    assert weights[labels].mean() == pytest.approx(1)


@pytest.mark.long
def test_fine_tuning_stops_early_and_takes_the_best_epoch(folder, monkeypatch):
    from ressl_keras.evaluation import classifiers

    dataset = load_dataset("folder", str(folder / "images"), log=lambda line: None)
    held_out, weights = iter([60.0, 80.0, 70.0, 75.0]), []

    class Scripted(classifiers._HeldOut):
        def on_epoch_end(self, epoch, logs=None):
            weights.append(self.model.get_weights())
            logs["held_out_top1"] = next(held_out)

    monkeypatch.setattr(classifiers, "_HeldOut", Scripted)
    kept = []
    finetune(
        keras.models.load_model(folder / "encoder.keras"),
        dataset.train,
        dataset.test,
        epochs=9,
        early_stopping=2,
        keep=lambda *learned: kept.append(learned),
    )
    assert len(weights) == 4  # two epochs after the best
    np.testing.assert_array_equal(kept[0][0], weights[1][-2])


@pytest.mark.parametrize("protocol", ["knn", "linear,finetune"])
def test_only_one_classifier_can_be_kept(protocol):
    with pytest.raises(UsageError, match="either linear or finetune"):
        parse(
            EvaluateOptions,
            "--encoder=a",
            f"--protocol={protocol}",
            "--save_classifier",
        )


def test_an_encoder_is_no_classifier(folder):
    words = [f"--classifier={folder / 'encoder.keras'}", DEVICE]
    with pytest.raises(UsageError, match="does not name its classes"):
        predict(parse(PredictOptions, *words, f"--data_dir={folder / 'images'}"))
