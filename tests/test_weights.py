"""A copy of a network that was adapted to its images sees them as the original does.

`keras.layers.Normalization` has tensors beside its weights, which `set_weights` leaves.
"""

import keras
import numpy as np
import pytest

from ressl_keras import load_encoder
from ressl_keras.data.images import ArrayImages
from ressl_keras.encoders.encoder import clone_encoder
from ressl_keras.evaluation import classifiers
from ressl_keras.method.networks import synchronize
from ressl_keras.method.ressl import ReSSL
from ressl_keras.training import backbones
from ressl_keras.weights import copy_weights


@pytest.fixture
def pixels(random):
    return random.normal(120, 60, [16, 8, 8, 3]).astype(np.float32)


@pytest.fixture
def adapted(pixels):
    """Its normalisation is inside another model, too."""

    def network(inputs):
        normalization = keras.layers.Normalization()
        normalization.adapt(pixels)
        return normalization(inputs)

    inner = keras.Input([8, 8, 3])
    nested = keras.Model(inner, network(inner), name="nested")
    images = keras.Input([8, 8, 3])
    x = keras.layers.Conv2D(4, 3)(nested(network(images)))
    return keras.Model(images, keras.layers.GlobalAveragePooling2D()(x))


def reloaded(network, folder, **options):
    network.save(folder / "network.keras")
    return load_encoder(folder / "network.keras", **options)


COPIES = {
    "of an own backbone": lambda network, folder: backbones.in_policy(network, 8),
    "the student": lambda network, folder: ReSSL(network).student.layers[0],
    "the teacher": lambda network, folder: ReSSL(network).teacher.layers[0],
    "synchronized": lambda network, folder: synchronize(network),
    "of another dtype": lambda network, folder: reloaded(
        network, folder, dtype="float32"
    ),
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_every_copy_computes_what_the_network_does(copy, adapted, pixels, tmp_path):
    expected = adapted(pixels)
    assert np.abs(expected).max() < 10  # 100 where the images are not normalised
    found = copy(adapted, tmp_path)
    np.testing.assert_allclose(found(pixels), expected, rtol=1e-5, atol=1e-6)


def test_fine_tuning_starts_from_what_the_network_computes(
    adapted, pixels, monkeypatch
):
    started = []

    def no_training(plan, classifier, *others):
        started.append(classifier.layers[0])
        raise StopIteration

    monkeypatch.setattr(classifiers._Plan, "train", no_training)
    labelled = ArrayImages(pixels.clip(0, 255).astype(np.uint8), np.arange(16) % 2)
    with pytest.raises(StopIteration):
        classifiers.finetune(adapted, labelled, labelled)
    np.testing.assert_allclose(started[0](pixels), adapted(pixels), rtol=1e-5)


def test_the_untrained_network_has_the_same_preprocessing(adapted, pixels):
    """Beside weights of its own."""
    untrained = clone_encoder(adapted)
    assert not np.allclose(untrained(pixels), adapted(pixels), atol=1e-2)
    convolution, own = (network.layers[-2] for network in (adapted, untrained))
    own.set_weights(convolution.get_weights())
    np.testing.assert_allclose(untrained(pixels), adapted(pixels), rtol=1e-5)


def test_a_copy_that_is_saved_computes_the_same_when_it_is_loaded(
    adapted, pixels, tmp_path
):
    copy = keras.models.clone_model(adapted)
    copy_weights(adapted, copy)
    np.testing.assert_allclose(reloaded(copy, tmp_path)(pixels), copy(pixels))
