"""Each flagfile for two steps, on a stand-in of the right image size.

In this process, as train.py runs them; batch and queue are small, and so is the network
where it is not the point: the networks are built, and the light one is trained.
"""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from absl import flags
from conftest import ROOT

import train
from ressl_keras import backbones, build_backbone, data

IMAGE_SIZES = {
    "quickstart": 32,
    "folder": 64,
    "folder_cpu": 64,
    "cifar10": 32,
    "cifar100": 32,
    "stl10": 96,
    "tiny_imagenet": 64,
    "imagenet": 224,
    "imagenet_5crop": 224,
    "imagenet_predictor": 224,
    "imagenet_mobilenet": 224,
    "moco_v2": 32,
    "cifar10_cpu": 32,
    "cifar10_cpu_ressl": 32,
    "cifar10_cpu_moco_v2": 32,
    "cifar10_cpu_strong_teacher": 32,
}
SEVERAL_SIZES = {"folder", "imagenet2012"}


def stand_in(name, size, random):
    """Eight images in two classes: of one size, or encoded ones of several."""
    labels = np.arange(8) % 2
    if name not in SEVERAL_SIZES:
        images = random.integers(0, 256, [8, size, size, 3]).astype(np.uint8)
        images = data.ArrayImages(images, labels)
    else:
        images = [
            tf.io.encode_jpeg(
                random.integers(0, 256, [size + i, size, 3]).astype(np.uint8)
            ).numpy()
            for i in range(8)
        ]
        images = data.EncodedImages(images, labels, in_memory=True)
    return data.Dataset(name, images, images, images, ["even", "odd"])


@functools.cache
def build(backbone, side, width):
    """Sees once that there is such a network."""
    build_backbone(backbone, (side, side, 3), width=width)


@pytest.fixture
def flagged():
    """train.py's flags, as they were before afterwards."""
    before = flags.FLAGS.flag_values_dict()
    yield flags.FLAGS
    for name, value in before.items():
        flags.FLAGS[name].value = value


def test_each_flagfile_is_tried():
    assert {path.stem for path in (ROOT / "flags").glob("*.flags")} == set(IMAGE_SIZES)


@pytest.mark.parametrize("name, size", IMAGE_SIZES.items())
def test_a_flagfile_trains(name, size, random, flagged, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(ROOT)
    flagged(
        [
            "train.py",
            f"--flagfile=flags/{name}.flags",
            f"--workdir={tmp_path}",
            "--batch_size=4",
            "--queue_size=16",
            "--max_steps=2",
            "--knn_every=0",
            "--strategy=one_device",
            "--noevaluate",
        ]
    )
    monkeypatch.setattr(
        data, "load", lambda name, *options: stand_in(name, size, random)
    )
    if flagged.backbone.startswith("resnet"):
        side = None if flagged.crops else size
        build(flagged.backbone, side, flagged.width)
        monkeypatch.setattr(backbones, "build_backbone", tiny.build_backbone)
    train.run()
    assert f"8 images of {size} pixels" in capsys.readouterr().out
    encoder = keras.models.load_model(tmp_path / "encoder.keras")
    assert encoder.input_shape[1:] == (size, size, 3)
