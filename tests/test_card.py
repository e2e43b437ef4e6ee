"""The model card beside an exported encoder."""

import json
import subprocess
import sys

import keras
import pytest

from ressl_keras import build_backbone, load_encoder
from ressl_keras.encoders.building import build_encoder
from ressl_keras.encoders.card import write_card
from ressl_keras.encoders.encoder import encoder_hash, save_encoder
from ressl_keras.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    keras.utils.set_random_seed(0)
    backbone = build_backbone("resnet10_small", (16, 16, 3), width=4)
    facts = {"method": "ressl", "dataset": "folder birds", "input_size": [16, 16]}
    save_encoder(build_encoder(backbone, any_size=True), tmp_path, facts)
    return RunFolder(tmp_path)


def card(folder):
    with open(folder.card, encoding="utf-8") as file:
        return file.read()


def test_it_says_what_the_encoder_is_and_only_names_files_that_are_there(folder):
    write_card(folder)
    text = card(folder)
    for words in ("| method | ressl |", "folder birds", "16 x 16 pixels", "32 numbers"):
        assert words in text
    assert "Not measured." in text
    assert "`encoder.keras`" in text and "encoder.onnx" not in text


def test_figures_of_another_encoder_are_not_its_own(folder):
    """Such as those of the student, when the teacher is exported to the same folder."""
    own = encoder_hash(load_encoder(folder.encoder))
    figures = {"knn": {"top1": 61.5, "encoder": own, "dataset": "folder fish"}}
    figures["linear"] = {"top1": 70.0, "encoder": "another"}
    with open(folder.evaluation, "w") as file:
        json.dump(figures, file)
    write_card(folder)
    assert "(weighted, 200), on folder fish | 61.50 |" in card(folder)
    assert "70.00" not in card(folder)


def test_it_claims_no_training_that_nothing_is_known_of(folder):
    write_card(folder)
    assert "It was trained without labels." in card(folder)
    facts = {"source": "mobilenet.keras", "input_size": [16, 16]}
    save_encoder(keras.models.load_model(folder.encoder), folder.path, facts)
    write_card(folder)
    assert "without labels" not in card(folder)


def test_its_figures_are_those_of_the_evaluation(folder):
    figures = {"knn": {"top1": 61.5, "top5": 90.0, "untrained_top1": 33.25}}
    figures["linear"] = {"top1": 70.0, "labels_per_class": 4}
    with open(folder.evaluation, "w") as file:
        json.dump(figures, file)
    write_card(folder)
    text = card(folder)
    assert "| nearest neighbours (weighted, 200) | 61.50 | 33.25 |" in text
    assert "on frozen features, 4 labels of every class | 70.00 | - |" in text


@pytest.mark.long
def test_its_python_runs_with_keras_alone(folder):
    write_card(folder)
    program = card(folder).split("```python\n")[1].split("```")[0]
    program += "\nimport sys\nprint(features.shape, 'ressl_keras' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder.path,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip().endswith("(8, 32) False"), done.stderr


def test_another_readme_is_left_as_it_is(folder):
    with open(folder.card, "w") as file:
        file.write("# My project\n")
    lines = []
    write_card(folder, lines.append)
    assert card(folder) == "# My project\n"
    assert "is no model card" in lines[0]
