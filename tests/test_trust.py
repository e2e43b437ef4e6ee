"""What strangers' model files can do, and what our own files tell of their author."""

import json
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tiny
from conftest import ROOT
from keras.src.backend.common import global_state
from PIL import Image

from ressl_keras import UsageError
from ressl_keras.config import Config
from ressl_keras.data.datasets import load_dataset
from ressl_keras.encoders.building import build_encoder
from ressl_keras.encoders.encoder import load_encoder
from ressl_keras.training.pretrain import pretrain


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A model file that loads."""
    path = tmp_path_factory.mktemp("models") / "good.keras"
    backbone = tiny.build_backbone()
    dense = keras.layers.Dense(12345)(backbone.output)
    build_encoder(keras.Model(backbone.input, dense)).save(path)
    return path


def repacked(good, path, change, compression=zipfile.ZIP_STORED):
    """A model file with other contents: `change` is a dict from name to function."""
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(path, "w", compression) as new:
        for name in old.namelist():
            content = change.get(name, lambda content: content)(old.read(name))
            if content is not None:
                new.writestr(name, content)
    return path


def with_units(units):
    return {"config.json": lambda config: config.replace(b"12345", units)}


def with_lambda(path, inside=False):
    images = keras.Input([8, 8, 3])
    doubled = keras.layers.Lambda(lambda x: 2 * x)(images)
    if inside:
        doubled = keras.Model(images, doubled)(images)
    pooled = keras.layers.GlobalAveragePooling2D()(doubled)
    keras.Model(images, pooled).save(path)
    return path


def cut(good, path, part):
    path.write_bytes(good.read_bytes()[: int(good.stat().st_size * part)])
    return path


def text(path, content):
    path.write_text(content)
    return path


HOSTILE = {
    "text": (lambda g, p: text(p, "hello"), "is not a zip file"),
    "empty": (lambda g, p: text(p, ""), "is not a zip file"),
    "page": (lambda g, p: text(p, "<!DOCTYPE html>"), "is not a zip file"),
    "cut": (lambda g, p: cut(g, p, 0.5), "is not a zip file"),
    "nearly whole": (lambda g, p: cut(g, p, 0.99), "is not a zip file"),
    "lambda": (lambda g, p: with_lambda(p), "Lambda layer, which is Python code"),
    "lambda inside": (lambda g, p: with_lambda(p, True), "Lambda layer"),
    "another zip": (
        lambda g, p: repacked(g, p, {"config.json": lambda c: None}),
        "no config.json",
    ),
    "not json": (
        lambda g, p: repacked(g, p, {"config.json": lambda c: c[:-9]}),
        "is not a Keras model",
    ),
    "a list": (
        lambda g, p: repacked(g, p, {"config.json": lambda c: b"[1, 2]"}),
        "is not a Keras model",
    ),
    "nested": (
        lambda g, p: repacked(g, p, {"config.json": lambda c: b"[" * 10**5}),
        "is not a Keras model",
    ),
    "no weights": (
        lambda g, p: repacked(g, p, {"model.weights.h5": lambda c: None}),
        "declares",
    ),
    "other weights": (
        lambda g, p: repacked(g, p, {"model.weights.h5": lambda c: b"x" * len(c)}),
        "is not a Keras model",
    ),
    **{
        f"{units} units": (
            lambda g, p, units=units: repacked(g, p, with_units(units.encode())),
            message,
        )
        for units, message in [
            ("10000000", "declares"),
            ("10000000000", "declares"),
            ("10000000000000", "declares"),
            ("1" + "0" * 30, "is not a Keras model"),
            ("-5", "is not a Keras model"),
        ]
    },
    "bomb": (
        lambda g, p: repacked(
            g, p, {"config.json": lambda c: b" " * 10**8 + c}, zipfile.ZIP_DEFLATED
        ),
        "would unpack to",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_model_file_is_one_line(name, good, tmp_path):
    make, message = HOSTILE[name]
    path = make(good, tmp_path / "model.keras")
    with pytest.raises(UsageError, match=message) as caught:
        load_encoder(str(path))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_model_that_others_compressed_is_loaded(good, tmp_path):
    path = repacked(good, tmp_path / "m.keras", {}, zipfile.ZIP_DEFLATED)
    assert load_encoder(str(path)).output_shape == (None, 12345)


def test_what_is_unsafe_elsewhere_in_the_process_is_not_allowed_here(tmp_path):
    path = with_lambda(tmp_path / "model.keras")
    keras.config.enable_unsafe_deserialization()
    try:
        with pytest.raises(UsageError, match="Lambda layer"):
            load_encoder(str(path))
    finally:
        # Keras has no public way back.
        global_state.set_global_attribute("safe_mode_saving", None)


PROGRAM = """
import resource, sys
import ressl_keras.encoders.encoder as encoders
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
encoders.load_encoder(sys.argv[1])
before = peak()
try:
    encoders.load_encoder(sys.argv[2])
except ValueError as error:
    print(type(error).__name__, (peak() - before) // 1024)
"""


@pytest.mark.long
def test_what_a_file_only_declares_takes_no_memory(good, tmp_path):
    """A layer of 100 million units, 1.9 GiB of weights."""
    large = repacked(good, tmp_path / "large.keras", with_units(b"100000000"))
    command = [sys.executable, "-c", PROGRAM, str(good), str(large)]
    done = subprocess.run(command, capture_output=True, text=True)
    name, megabytes = done.stdout.split()
    assert name == "UsageError" and int(megabytes) < 100


@pytest.mark.long
def test_no_file_that_is_passed_on_holds_a_path(
    tmp_path, monkeypatch, random, light_backbone
):
    private = tmp_path / "home" / "private-name"
    (private / "holiday").mkdir(parents=True)
    for i in range(8):
        pixels = random.integers(0, 256, [8 + i % 2, 9, 3]).astype(np.uint8)
        Image.fromarray(pixels).save(private / "holiday" / f"{i}.png")
    monkeypatch.chdir(private)
    dataset = load_dataset("folder", str(private / "holiday"))
    config = Config(
        batch_size=4, queue_size=8, epochs=1, image_size=8, warmup_epochs=0, width=4
    )
    workdir = private / "run"
    pretrain(dataset, workdir, config, verbose=False, log=lambda line: None)
    described = json.loads((workdir / "encoder.json").read_text())
    assert described["dataset"] == "folder holiday"
    looked_at = 0
    for path in [workdir / "encoder.json", *(workdir / "export").rglob("*")]:
        if path.is_file():
            content = path.read_bytes()
            assert b"private-name" not in content, path
            looked_at += 1
    assert looked_at >= 4
    with zipfile.ZipFile(workdir / "encoder.keras") as archive:
        for name in archive.namelist():
            assert b"private-name" not in archive.read(name), name


def test_security_is_described():
    text = " ".join((ROOT / "SECURITY.md").read_text().split())
    for words in (
        "No code in it is run",
        "Lambda layers are refused",
        "not a zip file",
    ):
        assert words in text
