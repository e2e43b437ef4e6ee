"""The dtype policy that is chosen, on hardware that the tests make up."""

import keras
import pytest
import tensorflow as tf

from ressl_keras import Config
from ressl_keras.data import shapes
from ressl_keras.data.datasets import Dataset
from ressl_keras.data.images import ArrayImages
from ressl_keras.run_folder import RunFolder
from ressl_keras.training import precision
from ressl_keras.training import pretrain as pretrain_module
from ressl_keras.training.pretrain import pretrain


@pytest.mark.parametrize(
    "flags, expected",
    [
        ("fpu avx2 avx512f", False),
        ("fpu avx512_bf16", True),
        ("fpu amx_bf16 amx_tile", True),
        ("fpu amx_bf16x", False),
    ],
)
def test_a_processor_says_whether_it_computes_in_bfloat16(flags, expected, tmp_path):
    (tmp_path / "cpuinfo").write_text(f"model name : x\nflags\t\t: {flags}\n")
    assert precision.cpu_has_bfloat16(tmp_path / "cpuinfo") == expected
    assert not precision.cpu_has_bfloat16(tmp_path / "absent")


@pytest.mark.parametrize(
    "seconds, expected", [({"float32": 3, "mixed_bfloat16": 1}, "mixed_bfloat16"),
                          ({"float32": 1, "mixed_bfloat16": 1}, "float32")],
)  # fmt: skip
def test_a_processor_is_taken_at_its_measured_word(seconds, expected, monkeypatch):
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: True)
    monkeypatch.setattr(precision, "_seconds", lambda policy, size: seconds[policy])
    lines = []
    assert precision.choose_precision(str, 32, lines.append) == expected
    (line,) = lines
    assert line.startswith(f"Precision {expected}: the network is ")


@pytest.mark.parametrize("faster", ["float32", "mixed_bfloat16"])
def test_the_passes_of_the_network_itself_are_timed(faster, monkeypatch):
    def build(policy):
        images = keras.Input((32, 32, 3))
        channels = 1 if policy == faster else 128
        maps = keras.layers.Conv2D(channels, 5, padding="same")(images)
        maps = keras.layers.BatchNormalization()(maps)
        return keras.Model(images, keras.layers.GlobalAveragePooling2D()(maps))

    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: True)
    assert precision.choose_precision(build, 32, lambda line: None) == faster


@pytest.mark.parametrize(
    "capability, expected", [((7, 5), 0), ((8, 0), 1), ((9, 0), 1)]
)
def test_a_gpu_is_judged_by_its_generation(capability, expected, monkeypatch):
    config = tf.config
    monkeypatch.setattr(config, "list_physical_devices", lambda kind: ["gpu"])
    monkeypatch.setattr(
        config.experimental,
        "get_device_details",
        lambda gpu: {"compute_capability": capability},
    )
    chosen = precision.choose_precision(None, 32, lambda line: None)
    assert chosen == ("float32", "mixed_bfloat16")[expected]


@pytest.mark.long
def test_a_resumed_run_keeps_the_precision_that_was_chosen(
    tmp_path, monkeypatch, light_backbone
):
    images = ArrayImages(*shapes.render(32, 0, size=8))
    options = {"verbose": False, "log": lambda line: None}

    def choice_of(build, image_size, log):
        assert build("mixed_bfloat16").compute_dtype == "bfloat16"
        assert build("float32").input_shape == (None, image_size, image_size, 3)
        return next(choices)

    def run(**settings):
        config = Config(
            precision="auto", batch_size=8, queue_size=16, knn_every=0, **settings
        )
        pretrain(Dataset("drawn", images), tmp_path, config, **options)
        return RunFolder(tmp_path).read_config(Config).precision

    choices = iter(["float32", "mixed_bfloat16"])
    monkeypatch.setattr(pretrain_module, "choose_precision", choice_of)
    for epochs in (1, 2):
        assert run(epochs=epochs) == "float32"
