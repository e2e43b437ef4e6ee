"""Fine-tuning from an encoder's weights."""

import os
import runpy
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT

import ressl_keras
from ressl_keras import build_backbone
from ressl_keras.data import shapes
from ressl_keras.data.datasets import Dataset, load_dataset
from ressl_keras.data.images import ArrayImages, stratified
from ressl_keras.encoders.building import build_encoder
from ressl_keras.encoders.encoder import load_encoder, save_encoder
from ressl_keras.evaluation import classifiers


@pytest.fixture
def images():
    """Two classes that any network tells apart: dark and light."""
    random = np.random.default_rng(0)
    labels = np.arange(200) % 2
    levels = np.where(labels, 180, 60)[:, np.newaxis, np.newaxis, np.newaxis]
    pixels = random.normal(levels, 20, [200, 8, 8, 3]).clip(0, 255)
    return ArrayImages(pixels.astype(np.uint8), labels)


@pytest.fixture
def encoder():
    return build_encoder(build_backbone("resnet10_small", (8, 8, 3), width=4))


@pytest.mark.long
def test_it_learns_and_leaves_the_encoder_as_it_is(images, encoder):
    before = [weight.copy() for weight in encoder.get_weights()]
    train = stratified(images, 0.5)
    result = classifiers.finetune(encoder, train, images, epochs=20, batch_size=25)
    assert result["top1"] >= 95
    for weight, old in zip(encoder.get_weights(), before):
        np.testing.assert_array_equal(weight, old)


@pytest.mark.long
def test_the_same_seed_gives_the_same_result(images, encoder):
    one, same = (
        classifiers.finetune(encoder, images, images, 1, 50, seed=4) for _ in range(2)
    )
    assert one == same


@pytest.mark.long
def test_the_example_leaves_a_classifier(tmp_path, monkeypatch):
    backbone = build_backbone("resnet10_small", (32, 32, 3), width=4)
    path = save_encoder(build_encoder(backbone), str(tmp_path), {})
    drawn = ArrayImages(*shapes.render(128, seed=1))
    dataset = Dataset("drawn", drawn, drawn, drawn, list(shapes.CLASS_NAMES))
    monkeypatch.setattr(ressl_keras, "load_dataset", lambda name: dataset)
    monkeypatch.setattr(sys, "argv", ["finetune.py", path, "1"])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / "finetune.py"))
    classifier = keras.models.load_model(tmp_path / "classifier.keras")
    scores = classifier.predict(drawn.images.numpy(), verbose=0)
    assert scores.shape == (128, len(shapes.CLASS_NAMES)) and scores.std() > 0
    before, after = keras.models.load_model(path).weights, classifier.weights
    assert any(np.any(old != new) for old, new in zip(before, after))


@pytest.mark.slow
def test_one_percent_of_the_labels_goes_further_from_a_pretrained_encoder(shared):
    """Set RESSL_ENCODER to the encoder of flags/cifar10_cpu.flags."""
    if "RESSL_ENCODER" not in os.environ:
        pytest.skip("RESSL_ENCODER names no encoder")
    encoder = load_encoder(os.environ["RESSL_ENCODER"])
    cifar = load_dataset("cifar10", str(shared("tfds")), download=False)
    train = stratified(cifar.train, 0.01)
    pretrained = classifiers.finetune(encoder, train, cifar.test)["top1"]
    scratch = classifiers.finetune(
        keras.models.clone_model(encoder), train, cifar.test
    )["top1"]
    print(f"500 labels: {pretrained:.2f} %, from scratch {scratch:.2f} %")
    assert pretrained >= scratch + 5
