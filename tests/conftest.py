"""Fixtures and what must be set before TensorFlow starts."""

import functools
import os
import pathlib
import random as python_random

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
SHARED = pathlib.Path(os.environ.get("RESSL_SHARED", ROOT.parent / "shared"))


def pytest_configure(config):
    """Makes four devices, so that distribution can be tested on any machine."""
    runs_tests = hasattr(config, "workerinput") or not config.getoption("numprocesses")
    if not runs_tests:  # it starts the processes that do, and they wait for it
        return
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 4,
    )


def pytest_collection_modifyitems(items):
    """Puts the longest file first, so that no process waits for it in the end."""
    items.sort(key=lambda item: item.path.name != "test_tutorials.py")


@pytest.fixture
def shared():
    """Path below the folder of data sets and golden files; skips without it."""

    def path(relative):
        if not (SHARED / relative).exists():
            pytest.skip(f"{relative} is not at hand; set RESSL_SHARED to its folder")
        return SHARED / relative

    return path


@pytest.fixture
def golden(shared):
    return lambda name: np.load(shared(f"golden/{name}.npz"))


@pytest.fixture(scope="module")
def light_backbone():
    """A run's network and views are quick to trace: one convolution, and crops alone.

    The picture of the views is a stand-in, too; `--preview` draws the real one.
    """
    import tiny
    from PIL import Image

    from ressl_keras.augmentation import layers
    from ressl_keras.run_folder import RunFolder
    from ressl_keras.training import build, pretrain

    def preview(dataset, folder, config, **_):
        Image.new("RGB", (8, 8)).save(RunFolder(folder).views)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "build_backbone", tiny.build_backbone)
        patch.setattr(layers, "photometric_operations", lambda _: [])
        patch.setattr(pretrain, "preview", preview)
        yield


@pytest.fixture(autouse=True, scope="session")
def own_caches(tmp_path_factory):
    """What checks remember stays out of the user's cache folder."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("caches"))


@pytest.fixture(autouse=True, scope="session")
def drawn_once():
    """The data set `shapes` is drawn once in a process: it takes three seconds."""
    from ressl_keras.data import shapes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "render", functools.cache(shapes.render))
        yield


@pytest.fixture(autouse=True)
def seeded():
    """The same weights in every test: Keras draws their seeds from Python's generator.

    `keras.utils.set_random_seed` would set TensorFlow's seed, too. That forgets every
    compiled function, and to make them ready again took a second in many tests.
    """
    python_random.seed(0)


@pytest.fixture
def random():
    return np.random.default_rng(0)
