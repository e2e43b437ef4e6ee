"""Neighbours and linear probe against scikit-learn."""

import keras
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from ressl_keras import UsageError, data, evaluation, shapes


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
    result = evaluation.knn(*features, k=k, block=300)
    assert result["top1"] == pytest.approx(100 * expected, abs=0.11)
    assert result["top1"] < result["top5"] <= 100


def test_knn_takes_no_more_neighbours_than_there_are(features):
    train, train_labels, test, test_labels = features
    small = train[:50], train_labels[:50], test, test_labels
    assert evaluation.knn(*small, k=200) == evaluation.knn(*small, k=50)


def test_linear_probe_matches_scikit_learn(features):
    train, train_labels, test, test_labels = features
    mean, std = train.mean(0), train.std(0)
    classifier = LogisticRegression(max_iter=1000)
    classifier.fit((train - mean) / std, train_labels)
    expected = 100 * classifier.score((test - mean) / std, test_labels)
    assert abs(evaluation.linear_probe(*features)["top1"] - expected) <= 0.5


def test_linear_probe_repeats_exactly(features):
    small = [part[:500] for part in features]
    assert evaluation.linear_probe(*small) == evaluation.linear_probe(*small)


@pytest.fixture
def dataset():
    train = data.ArrayImages(*shapes.render(400, seed=0, size=8))
    test = data.ArrayImages(*shapes.render(100, seed=1, size=8))
    return data.Dataset("shapes", train, train, test, list(shapes.CLASS_NAMES))


@pytest.fixture
def encoder():
    return keras.Sequential(
        [keras.Input([8, 8, 3]), keras.layers.Flatten(), keras.layers.Dense(12)]
    )


def test_features_are_the_encoders_outputs_in_order(dataset, encoder):
    features, labels = evaluation.extract(encoder, dataset.test, batch_size=32)
    np.testing.assert_allclose(
        features, encoder(dataset.test.images), rtol=1e-5, atol=1e-3
    )
    np.testing.assert_array_equal(labels, dataset.test.labels)


def test_an_encoder_is_judged_beside_its_untrained_self(dataset, encoder):
    results = evaluation.evaluate(encoder, dataset, progress=lambda line: None)
    assert set(results) == {"knn", "linear"}
    names = {"top1", "top5", "untrained_top1", "untrained_top5"}
    for values in results.values():
        assert set(values) == names
        assert all(0 <= value <= 100 for value in values.values())
    lines = evaluation.table(results).split("\n")
    assert len(lines) == 3 and f"{results['knn']['top1']:.2f}" in lines[1]


def test_the_untrained_encoder_has_other_weights(encoder):
    fresh = evaluation.untrained(encoder)
    assert not np.allclose(fresh.get_weights()[0], encoder.get_weights()[0])


def test_an_unknown_protocol_or_data_without_labels_is_refused(dataset, encoder):
    with pytest.raises(UsageError, match="Did you mean knn"):
        evaluation.evaluate(encoder, dataset, ["knm"])
    with pytest.raises(UsageError, match="no labels"):
        evaluation.evaluate(encoder, data.Dataset("mine", dataset.pretrain))
