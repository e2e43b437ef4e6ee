"""Each flagfile on a stand-in of the right image size.

In this process, as train.py runs them, with a small batch and queue. The model of every
recipe is built as it is; those that differ in their steps are trained with a light
network, and all of them among the slow tests.
"""

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf
import tiny
from conftest import ROOT
from options import parse

from ressl_keras import build_backbone, load_encoder
from ressl_keras.commands import train
from ressl_keras.data import datasets
from ressl_keras.data.datasets import Dataset
from ressl_keras.data.images import ArrayImages, EncodedImages
from ressl_keras.training import build
from ressl_keras.training.cautions import cautions

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
    "cifar10_cpu_bfloat16": 32,
    "cifar10_cpu_ressl": 32,
    "cifar10_cpu_moco_v2": 32,
    "cifar10_cpu_strong_teacher": 32,
    "cifar10_cpu_vit": 32,
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


# The command for one's own images is always tried, InfoNCE and the first command of all
# in the long tests; test_export has crops and a predictor.
TRAINED = {
    "folder_cpu": (),
    "moco_v2": pytest.mark.long,
    "quickstart": pytest.mark.long,
}


def options_of(name, workdir):
    return parse(
        train.TrainOptions,
        f"--recipe={name}",
        f"--workdir={workdir}",
        "--batch_size=4",
        "--queue_size=16",
        "--min_steps_per_epoch=1",
        "--max_steps=2",
        "--knn_every=0",
        "--strategy=one_device",
        "--noevaluate",
    )


def test_each_flagfile_is_tried():
    assert {path.stem for path in (ROOT / "flags").glob("*.flags")} == set(IMAGE_SIZES)
    assert set(TRAINED) < set(IMAGE_SIZES)


@functools.cache
def network(*arguments, **options):
    """Networks that several recipes share are built once."""
    return build_backbone(*arguments, **options)


@pytest.mark.parametrize("name, size", IMAGE_SIZES.items())
@pytest.mark.long
def test_a_recipe_has_a_model(name, size, random, monkeypatch, tmp_path):
    monkeypatch.setattr(build, "build_backbone", network)
    options = options_of(name, tmp_path)
    if options.precision == "auto":
        options = dataclasses.replace(options, precision="float32")
    images = stand_in(options.dataset, size, random).pretrain
    plan = build.make_plan(options, images)
    assert (plan.image_size, plan.steps_per_epoch, plan.total_steps) == (size, 2, 2)
    model = build.build_model(options, plan)
    assert model.queue.dim == options.embedding_dim
    model.backbone.compute_output_shape([4, size, size, 3])


@pytest.mark.parametrize("name", IMAGE_SIZES)
def test_a_recipe_sets_nothing_without_effect(name):
    options = parse(train.TrainOptions, f"--recipe={name}")
    plan = build.Plan(IMAGE_SIZES[name], total_steps=10_000)
    assert list(cautions(options, plan, range(10**6))) == []


@pytest.mark.parametrize(
    "name, size",
    [
        pytest.param(name, size, marks=TRAINED.get(name, pytest.mark.slow))
        for name, size in IMAGE_SIZES.items()
    ],
)
def test_a_recipe_trains(name, size, random, monkeypatch, tmp_path, capsys):
    options = options_of(name, tmp_path)
    dataset = stand_in(options.dataset, size, random)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: dataset)
    monkeypatch.setattr(build, "build_backbone", tiny.build_backbone)
    train.run(options)
    assert f"8 images of {size} pixels" in capsys.readouterr().out
    assert load_encoder(tmp_path / "encoder.keras").image_size == size
