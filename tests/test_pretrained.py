"""The encoder that comes with the repository, and its published figures."""

import json

import keras
import numpy as np
import pytest
from conftest import ROOT
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize

from ressl_keras import load_dataset, load_encoder

FOLDER = ROOT / "pretrained" / "cifar10_resnet10"
# Of the test set; a share of 60 % of so many has a standard error of 1.5 points.
COUNT = 1000


def votes(distances):
    """Weights of the kNN protocol: exp(similarity / 0.1), from distances of units."""
    return np.exp((1 - distances**2 / 2) / 0.1)


def test_it_is_small_and_its_card_has_the_figures():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 5e6
    card = (FOLDER / "README.md").read_text()
    results = json.loads((FOLDER / "evaluation.json").read_text())
    for protocol in ("knn", "linear"):
        assert f"{results[protocol]['top1']:.2f}" in card


def test_it_is_a_plain_keras_file():
    encoder = keras.models.load_model(FOLDER / "encoder.keras")
    described = json.loads((FOLDER / "encoder.json").read_text())
    features = encoder(np.zeros([2, 32, 32, 3], np.float32))
    assert features.shape == (2, described["embedding_size"])


@pytest.mark.long
def test_its_accuracy_is_the_published_one(shared):
    dataset = load_dataset("cifar10", str(shared("tfds")), download=False)
    encoder = load_encoder(FOLDER)
    bank = encoder.predict(dataset.train.images, batch_size=500, verbose=0)
    queries = encoder.predict(dataset.test.images[:COUNT], batch_size=500, verbose=0)
    judge = KNeighborsClassifier(200, weights=votes, algorithm="brute")
    judge.fit(normalize(bank), dataset.train.labels)
    accuracy = 100 * judge.score(normalize(queries), dataset.test.labels[:COUNT])
    published = json.loads((FOLDER / "evaluation.json").read_text())["knn"]["top1"]
    assert abs(accuracy - published) < 4.5  # three standard errors
