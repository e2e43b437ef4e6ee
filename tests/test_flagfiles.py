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
from conftest import ROOT
from options import parse

from ressl_keras import build_backbone
from ressl_keras.commands import train
from ressl_keras.data import datasets
from ressl_keras.data.datasets import Dataset
from ressl_keras.data.images import ArrayImages, EncodedImages
from ressl_keras.training import build

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
    "cifar10_vit": 32,
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
        images = ArrayImages(images, labels)
    else:
        images = [
            tf.io.encode_jpeg(
                random.integers(0, 256, [size + i, size, 3]).astype(np.uint8)
            ).numpy()
            for i in range(8)
        ]
        images = EncodedImages(images, labels, in_memory=True)
    return Dataset(name, images, images, images, ["even", "odd"])


@functools.cache
def build_once(backbone, side, width):
    """Sees once that there is such a network."""
    build_backbone(backbone, (side, side, 3), width=width)


def test_each_flagfile_is_tried():
    assert {path.stem for path in (ROOT / "flags").glob("*.flags")} == set(IMAGE_SIZES)


@pytest.mark.parametrize("name, size", IMAGE_SIZES.items())
def test_a_recipe_trains(name, size, random, monkeypatch, tmp_path, capsys):
    options = parse(
        train.TrainOptions,
        f"--recipe={name}",
        f"--workdir={tmp_path}",
        "--batch_size=4",
        "--queue_size=16",
        "--max_steps=2",
        "--knn_every=0",
        "--strategy=one_device",
        "--noevaluate",
    )
    dataset = stand_in(options.dataset, size, random)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: dataset)
    if options.backbone.startswith("resnet"):
        side = None if options.crops else size
        build_once(options.backbone, side, options.width)
        monkeypatch.setattr(build, "build_backbone", tiny.build_backbone)
    train.run(options)
    assert f"8 images of {size} pixels" in capsys.readouterr().out
    encoder = keras.models.load_model(tmp_path / "encoder.keras")
    assert encoder.input_shape[1:] == (size, size, 3)
