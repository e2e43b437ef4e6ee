"""Neighbours and linear probes against scikit-learn."""

import time

import keras
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from ressl_keras.data import shapes
from ressl_keras.data.datasets import load_dataset
from ressl_keras.data.images import ArrayImages
from ressl_keras.evaluation import classifiers, knn, linear


@pytest.fixture(scope="module")
def features():
    """Ten overlapping clouds in 64 dimensions."""
    random = np.random.default_rng(0)
    centres = random.normal(size=[10, 64]) * 0.35
    labels = random.integers(0, 10, 6000)
    points = (centres[labels] + random.normal(size=[6000, 64])).astype(np.float32)
    return points[:5000], labels[:5000], points[5000:], labels[5000:]


@pytest.mark.parametrize("k", [5, 200])
def test_knn_matches_scikit_learn(features, k):
    train, train_labels, test, test_labels = features
    classifier = KNeighborsClassifier(
        k, metric="cosine", weights=lambda distance: np.exp(-distance / 0.1)
    )
    expected = classifier.fit(train, train_labels).score(test, test_labels)
    result = knn.knn_accuracy(*features, k=k, block=300)
    assert result["top1"] == pytest.approx(100 * expected, abs=0.11)
    assert result["top1"] < result["top5"] <= 100


def test_knn_takes_no_more_neighbours_than_there_are(features):
    train, train_labels, test, test_labels = features
    small = train[:50], train_labels[:50], test, test_labels
    assert knn.knn_accuracy(*small, k=200) == knn.knn_accuracy(*small, k=50)


def test_linear_probe_matches_scikit_learn(features):
    train, train_labels, test, test_labels = features
    mean, std = train.mean(0), train.std(0)
    classifier = LogisticRegression(max_iter=1000)
    classifier.fit((train - mean) / std, train_labels)
    expected = 100 * classifier.score((test - mean) / std, test_labels)
    assert abs(linear.linear_probe(*features)["top1"] - expected) <= 0.5


@pytest.mark.long
def test_linear_probe_repeats_exactly(features):
    small = [part[:500] for part in features]
    assert linear.linear_probe(*small) == linear.linear_probe(*small)


def test_the_probe_on_crops_and_flips_learns_what_the_features_tell():
    """Features that give the class away: one of the channels is light."""
    labels = np.arange(400) % 3
    images = np.full([400, 12, 12, 3], 40, np.uint8)
    images[np.arange(400), :, :, labels] = 200
    train = ArrayImages(images[:300], labels[:300])
    test = ArrayImages(images[300:], labels[300:])
    encoder = keras.Sequential(
        [
            keras.Input([12, 12, 3]),
            keras.layers.Rescaling(1 / 255),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    result = classifiers.online_linear_probe(encoder, train, test, 20, 50)
    assert result["top1"] >= 95


def test_the_probe_on_crops_and_flips_leaves_the_encoder_as_it_is():
    train = ArrayImages(*shapes.render(64, seed=0, size=8))
    encoder = keras.Sequential(
        [
            keras.Input([8, 8, 3]),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    before = [weight.copy() for weight in encoder.get_weights()]
    classifiers.online_linear_probe(encoder, train, train, 1, 32)
    for weight, old in zip(encoder.get_weights(), before):
        np.testing.assert_array_equal(weight, old)


@pytest.mark.slow
def test_the_probe_is_done_with_50000_features_in_thirty_seconds(shared):
    """Random features of CIFAR-10, 512 of them; scikit-learn within 0.5 points."""
    cifar = load_dataset("cifar10", str(shared("tfds")), download=False)
    projection = np.random.default_rng(0).normal(size=[3072, 512]) / 3072**0.5

    def features(images):
        pixels = images.images.numpy().reshape(len(images), -1) / 127.5 - 1
        return np.maximum(pixels @ projection, 0).astype(np.float32)

    train, test = features(cifar.train), features(cifar.test)
    start = time.monotonic()
    ours = linear.linear_probe(train, cifar.train.labels, test, cifar.test.labels)
    seconds = time.monotonic() - start
    mean, std = train.mean(0), train.std(0)
    classifier = LogisticRegression(max_iter=1000)
    classifier.fit((train - mean) / std, cifar.train.labels)
    theirs = 100 * classifier.score((test - mean) / std, cifar.test.labels)
    print(f"probe {ours['top1']:.2f} % in {seconds:.1f} s, scikit-learn {theirs:.2f} %")
    assert seconds <= 30
    assert abs(ours["top1"] - theirs) <= 0.5
