"""The encoder's file."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest

from ressl_keras import UsageError, build_backbone, export, views


@pytest.fixture
def backbone():
    return build_backbone("resnet10_small", (16, 16, 3), width=4)


def test_the_encoder_has_its_preprocessing_inside(backbone, random):
    images = random.integers(0, 256, [3, 16, 16, 3]).astype(np.uint8)
    normalised = (images / 255 - views.MEAN) / views.STD
    encoder = export.build_encoder(backbone)
    np.testing.assert_allclose(encoder(images), backbone(normalised), atol=1e-4)


def test_a_backbone_trained_in_half_precision_is_exported_in_float32(random):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        backbone = build_backbone("resnet10_small", (16, 16, 3), width=4)
        encoder = export.build_encoder(backbone)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert backbone.compute_dtype == "bfloat16"
    features = encoder(random.integers(0, 256, [3, 16, 16, 3]).astype(np.uint8))
    assert features.dtype == "float32"


def test_the_file_loads_with_keras_alone_and_gives_the_same_features(
    backbone, random, tmp_path
):
    images = random.integers(0, 256, [3, 16, 16, 3]).astype(np.uint8)
    encoder = export.build_encoder(backbone)
    path = export.save_encoder(encoder, tmp_path, {"method": "ressl", "steps": 7})
    np.save(tmp_path / "images.npy", images)
    program = (
        "import sys, keras, numpy as np\n"
        f"encoder = keras.models.load_model({str(path)!r})\n"
        "np.save('features.npy', encoder.predict(np.load('images.npy'), verbose=0))\n"
        "assert 'ressl_keras' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
    np.testing.assert_allclose(
        np.load(tmp_path / "features.npy"), encoder(images), atol=1e-5
    )
    description = json.loads((tmp_path / "encoder.json").read_text())
    assert description["input_size"] == [16, 16]
    assert description["embedding_size"] == 32
    assert (description["method"], description["steps"]) == ("ressl", 7)
    assert not list(tmp_path.glob("*writing*"))


def test_the_work_directory_stands_for_its_encoder(backbone, tmp_path):
    export.save_encoder(export.build_encoder(backbone), tmp_path, {})
    assert export.load_encoder(str(tmp_path)).output_shape == (None, 32)


@pytest.mark.parametrize("kind", ["absent", "text", "truncated", "map"])
def test_what_is_no_encoder_is_one_clear_line(kind, backbone, tmp_path):
    path = tmp_path / "encoder.keras"
    if kind == "text":
        path.write_text("hello")
    if kind == "truncated":
        export.build_encoder(backbone).save(path)
        path.write_bytes(path.read_bytes()[:5000])
    if kind == "map":
        keras.Model(backbone.input, backbone.layers[3].output).save(path)
    message = {
        "absent": "no encoder at",
        "text": "not a Keras model",
        "truncated": "not a Keras model",
        "map": "not features",
    }[kind]
    with pytest.raises(UsageError, match=message) as caught:
        export.load_encoder(str(path))
    assert "\n" not in str(caught.value)
