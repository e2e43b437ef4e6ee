"""The encoders' shapes, initialisation and files."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from ressl_keras import UsageError, build_backbone, build_projector
from ressl_keras.commands import train
from ressl_keras.commands.train import TrainOptions
from ressl_keras.method import networks


@pytest.mark.parametrize(
    "name, shape, features",
    [
        ("resnet10_small", (32, 32, 3), 512),
        ("resnet18_small", (32, 32, 3), 512),
        ("resnet34_small", (None, None, 3), 512),
        ("resnet10_micro", (None, None, 1), 2048),
        ("resnet18", (64, 64, 3), 512),
        ("resnet50", (64, 64, 3), 2048),
        ("MobileNetV3Small", (64, 64, 3), 576),
        pytest.param("EfficientNetB0", (64, 64, 3), 1280, marks=pytest.mark.long),
    ],
)
def test_a_backbone_maps_images_to_features(name, shape, features):
    backbone = build_backbone(name, shape)
    assert backbone.input_shape == (None, *shape)
    assert backbone.output_shape == (None, features)


def test_resnet18_small_has_the_parameters_of_the_papers_network():
    # torchvision's ResNet-18 has 11,176,512 without its classifier; the small stem
    # replaces 7x7 by 3x3 filters. Running statistics are counted by Keras only.
    trainable = build_backbone("resnet18_small", (32, 32, 3)).trainable_variables
    count = sum(np.prod(variable.shape) for variable in trainable)
    assert count == 11_176_512 - 3 * 64 * (49 - 9)


def test_width_scales_the_features():
    assert build_backbone("resnet18_small", (32, 32, 3), width=8).output_shape[-1] == 64


def test_resnet10_micro_is_wide_where_its_maps_are_small():
    backbone = build_backbone("resnet10_micro", (32, 32, 3), width=4)
    shapes = [tuple(w.shape) for w in backbone.trainable_variables if w.ndim == 4]
    stem, *blocks = shapes
    assert stem == (3, 3, 3, 4)
    assert blocks.count((3, 3, 4, 4)) == 2
    for channels, wider in [(4, 8), (8, 32), (32, 128)]:
        assert blocks.count((1, 1, channels, wider)) == 1
        assert blocks.count((3, 3, channels, wider)) == 1
        assert blocks.count((3, 3, wider, wider)) == 1
    assert len(blocks) == 11


def test_small_resnet_is_initialised_by_fan_out():
    backbone = build_backbone("resnet18_small", (32, 32, 3))
    kernels = [w.numpy() for w in backbone.trainable_variables if len(w.shape) == 4]
    for kernel in kernels:
        height, width, _, filters = kernel.shape
        expected = np.sqrt(2 / (height * width * filters))
        assert abs(kernel.std() / expected - 1) < 0.1


def test_a_strided_convolution_is_padded_at_its_start_too():
    """TensorFlow's "same" would pad an even image at its end alone."""
    backbone = build_backbone("resnet10_small", (32, 32, 3), width=4)
    convolution = next(
        layer
        for layer in backbone.layers
        if isinstance(layer, keras.layers.Conv2D)
        and (layer.strides, layer.kernel_size) == ((2, 2), (3, 3))
    )
    before_padding = convolution.input._keras_history.operation.input
    stage = keras.Model(
        backbone.input, [before_padding, convolution.output], name="stage"
    )
    image = np.random.default_rng(0).normal(size=[1, 32, 32, 3]).astype(np.float32)
    source, result = stage(image)
    corner = np.einsum("hwc,hwcf->f", source[0, :2, :2], convolution.kernel[1:, 1:])
    np.testing.assert_allclose(result[0, 0, 0], corner, atol=1e-5)


def test_a_narrow_small_resnet_survives_larger_images():
    """Of a 1x1 convolution with strides the gradient of oneDNN ended the process."""
    backbone = build_backbone("resnet10_small", (64, 64, 3), width=4)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(backbone(tf.ones([16, 64, 64, 3]), training=True) ** 2)
    for gradient in tape.gradient(loss, backbone.trainable_variables):
        assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize(
    "name", ["MobileNetV3Small", pytest.param("EfficientNetB0", marks=pytest.mark.long)]
)
def test_applications_come_without_their_preprocessing(name):
    preprocessing = (keras.layers.Rescaling, keras.layers.Normalization)
    layers = build_backbone(name, (64, 64, 3)).layers
    assert not any(isinstance(layer, preprocessing) for layer in layers)


def test_synchronized_reaches_every_batch_norm():
    backbone = build_backbone("resnet18", (64, 64, 3), synchronized=True)
    norms = [
        layer
        for layer in backbone.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    assert norms and all(layer.synchronized for layer in norms)


@pytest.mark.long
def test_a_saved_backbone_loads_with_keras_alone(tmp_path):
    names = ["resnet18_small", "resnet18", "MobileNetV3Small"]
    for name in names:
        build_backbone(name, (64, 64, 3)).save(tmp_path / f"{name}.keras")
    program = (
        "import sys, keras\n"
        f"for name in {names}:\n"
        "    keras.models.load_model(f'{name}.keras')\n"
        "assert not {'keras_cv', 'ressl_keras'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)


@pytest.mark.parametrize(
    "name, hint",
    [
        ("resnet18_smal", "resnet18_small"),
        ("mobilenetv3small", "MobileNetV3Small"),
        ("zzz", "Known are"),
    ],
)
def test_an_unknown_backbone_is_answered_with_near_names(name, hint):
    with pytest.raises(UsageError, match=hint):
        build_backbone(name, (32, 32, 3))


def test_impossible_requests_are_refused():
    with pytest.raises(UsageError, match="width"):
        build_backbone("resnet50", (64, 64, 3), width=8)
    with pytest.raises(UsageError, match="refuses"):
        build_backbone("InceptionV3", (32, 32, 3))


def test_the_projector_has_two_layers():
    projector = build_projector(64, 512, 128)
    assert projector.output_shape == (None, 128)
    assert [w.shape for w in projector.weights] == [
        (64, 512),
        (512,),
        (512, 128),
        (128,),
    ]


def test_every_listed_name_is_known():
    names = networks.backbone_names()
    assert {"resnet18_small", "resnet50", "EfficientNetB0"} <= set(names)
    assert names == sorted(names)


@pytest.mark.parametrize(
    "typed, hint",
    [
        ("resnet18_smal", "resnet18_small or resnet10_small or resnet34_small"),
        ("resnet50_v2", "resnet50 or "),
        ("MobileNetV3", "MobileNet"),
    ],
)
def test_the_nearest_backbones_are_named_own_ones_first(typed, hint):
    with pytest.raises(UsageError, match=f"Did you mean {hint}"):
        networks.check_backbone(typed)


def test_an_unknown_backbone_fails_before_any_image_is_read(tmp_path):
    options = TrainOptions(
        backbone="resnet81", data_dir=str(tmp_path / "nowhere"), workdir=str(tmp_path)
    )
    with pytest.raises(UsageError, match="Unknown backbone 'resnet81'"):
        train.run(options)
