"""Backbones and projectors, as plain functional Keras models."""

import inspect
import os
import re
import sys
from typing import NamedTuple

import keras
import numpy as np

from ressl_keras.errors import UsageError, closest
from ressl_keras.method.transformer import TRANSFORMERS, vision_transformer
from ressl_keras.weights import copy_weights


class _SmallResNet(NamedTuple):
    """The stages of a small ResNet.

    Args:
        blocks: number of blocks in each stage.
        widths: channels of each stage, as multiples of the first stage's.
    """

    blocks: tuple[int, ...]
    widths: tuple[int, ...] = (1, 2, 4, 8)


_SMALL_RESNETS = {
    "resnet10_small": _SmallResNet((1, 1, 1, 1)),
    "resnet18_small": _SmallResNet((2, 2, 2, 2)),
    "resnet34_small": _SmallResNet((3, 4, 6, 3)),
    # For CPUs: channels pay where the maps are small (docs/results.md).
    "resnet10_micro": _SmallResNet((1, 1, 1, 1), (1, 2, 8, 32)),
}
_RESNETS = {
    "resnet18": ("basic_block", (2, 2, 2, 2)),
    "resnet34": ("basic_block", (3, 4, 6, 3)),
    "resnet50": ("block", (3, 4, 6, 3)),
    "resnet101": ("block", (3, 4, 23, 3)),
}


def _applications():
    """Networks of keras.applications under the names they have there."""
    return {k: v for k, v in vars(keras.applications).items() if inspect.isfunction(v)}


def backbone_names():
    """All names that `build_backbone` takes, sorted."""
    return sorted([*_own_names(), *_applications()])


def _own_names():
    return [*_SMALL_RESNETS, *_RESNETS, *TRANSFORMERS]


def small_resnet_features(name, width):
    """Length of a small ResNet's features; 0 for any other backbone."""
    return width * _SMALL_RESNETS[name].widths[-1] if name in _SMALL_RESNETS else 0


def check_backbone(name, width=64):
    """Checks that there is a backbone of this name, without building it.

    Raises:
        UsageError: if not, or if the width is not a setting of it.
    """
    own = _own_names()
    if name not in backbone_names():
        names = [*own, *_applications()]
        raise UsageError(
            f"Unknown backbone '{name}'. {closest(name, names, first=own)}"
        )
    if name not in _SMALL_RESNETS and width != 64:
        raise UsageError(
            f"width={width} applies only to {', '.join(_SMALL_RESNETS)}, not {name}; "
            "--width=64 leaves it alone."
        )


def build_backbone(
    name: str,
    input_shape: tuple[int | None, int | None, int],
    width: int = 64,
    synchronized: bool = False,
    patch_size: int | None = None,
    with_preprocessing: bool = False,
) -> keras.Model:
    """Builds a randomly initialised encoder.

    Args:
        name: one of `backbone_names()`: `resnet18_small` and its like have the stem
            for small images (3x3 convolution, no pooling); `resnet10_micro` is one
            for CPUs, narrow at first and wide at its end; `resnet18` to `resnet101`
            are KerasCV's; `vit_micro`, `vit_tiny` and `vit_small` are vision
            transformers; the others are keras.applications networks without their
            preprocessing.
        input_shape: (height, width, channels); height and width may be None where the
            network allows it.
        width: channels of the first stage, for the small ResNets only.
        synchronized: whether batch norms share statistics over the replicas of a
            distribution strategy.
        patch_size: side of a vision transformer's patches in pixels; None takes the
            largest of 4, 8 and 16 that makes eight or more a side.
        with_preprocessing: whether a keras.applications network keeps its built-in
            preprocessing, where it has one.

    Returns:
        A functional `keras.Model` from normalised images [batch, *input_shape] to
        features [batch, feature dim].

    Raises:
        UsageError: if the name is unknown, or the network refuses the input shape.

    Example:

    >>> backbone = build_backbone("resnet18_small", (32, 32, 3))
    >>> backbone.output_shape
    (None, 512)
    """
    check_backbone(name, width)
    if name in _SMALL_RESNETS:
        backbone = _small_resnet(name, input_shape, width)
    elif name in _RESNETS:
        backbone = _keras_cv_resnet(name, input_shape)
    elif name in TRANSFORMERS:
        backbone = vision_transformer(name, input_shape, patch_size)
    else:
        backbone = _application(name, input_shape, with_preprocessing)
    return synchronize(backbone) if synchronized else backbone


def pooled(model, name="The network"):
    """A model from images to features, from one to features, maps or tokens.

    Args:
        model: functional `keras.Model` of one image input [batch, height, width,
            channels] and one output: features [batch, dim], maps [batch, height, width,
            dim] or tokens [batch, tokens, dim], of which the mean is taken.
        name: what to call it in an error.

    Raises:
        UsageError: if the model is another.
    """
    inputs, outputs = getattr(model, "inputs", None), getattr(model, "outputs", None)
    if not inputs or not outputs:
        raise UsageError(
            f"{name} is no functional Keras model: it has no inputs and outputs before "
            "it is called."
        )
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        shapes = ", ".join(str(each.shape) for each in inputs)
        raise UsageError(f"{name} takes {shapes}, not images [batch, h, w, channels].")
    if len(outputs) != 1 or len(outputs[0].shape) not in (2, 3, 4):
        shapes = ", ".join(str(each.shape) for each in outputs)
        raise UsageError(f"{name} returns {shapes}, not features, maps or tokens.")
    features = outputs[0]
    if len(features.shape) == 4:
        features = keras.layers.GlobalAveragePooling2D()(features)
    elif len(features.shape) == 3:
        features = keras.layers.GlobalAveragePooling1D()(features)
    return keras.Model(inputs[0], features, name=model.name)


def _small_resnet(name, input_shape, width):
    """A basic-block ResNet for images of about 32 to 96 pixels.

    Padding and initialisation follow torchvision, as the paper's networks do: a
    strided convolution pads both sides, where TensorFlow's "same" pads one.
    """

    def convolution(x, filters, kernel, strides=1):
        if kernel == 3 and strides == 2:
            x = keras.layers.ZeroPadding2D(1)(x)
        return keras.layers.Conv2D(
            filters,
            kernel,
            strides,
            padding="same" if strides == 1 else "valid",
            use_bias=False,
            kernel_initializer=keras.initializers.VarianceScaling(
                2.0, "fan_out", "untruncated_normal"
            ),
        )(x)

    def normalization(x):
        return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)

    def block(x, filters, strides):
        shortcut = x
        if strides != 1 or x.shape[-1] != filters:
            if strides != 1:
                # Subsamples as a strided 1x1 convolution would. oneDNN's gradient of
                # such a convolution writes out of bounds when channels are few
                # (TensorFlow 2.21: crashes with 4 to 8 at 64 pixels, batch 16).
                shortcut = keras.layers.AveragePooling2D(1, strides)(x)
            shortcut = normalization(convolution(shortcut, filters, 1))
        x = keras.layers.ReLU()(normalization(convolution(x, filters, 3, strides)))
        x = normalization(convolution(x, filters, 3))
        return keras.layers.ReLU()(keras.layers.Add()([x, shortcut]))

    inputs = keras.Input(input_shape)
    x = keras.layers.ReLU()(normalization(convolution(inputs, width, 3)))
    for stage, (blocks, multiple) in enumerate(zip(*_SMALL_RESNETS[name])):
        for index in range(blocks):
            x = block(x, width * multiple, 2 if stage > 0 and index == 0 else 1)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x), name=name)


def _keras_cv_resnet(name, input_shape):
    # The sized classes (ResNet18Backbone, ...) fetch their configuration from a hub;
    # the base class builds the same network offline.
    try:
        import keras_cv
    except ImportError as error:
        raise UsageError(
            f"{name} is KerasCV's, which cannot be imported ({error}). The small "
            "ResNets and the networks of keras.applications, such as ResNet50, do "
            "without it."
        ) from error

    block_type, blocks = _RESNETS[name]
    body = keras_cv.models.ResNetBackbone(
        stackwise_filters=(64, 128, 256, 512),
        stackwise_blocks=blocks,
        stackwise_strides=(1, 2, 2, 2),
        block_type=block_type,
        include_rescaling=False,
        input_shape=input_shape,
    )
    features = keras.layers.GlobalAveragePooling2D()(body.outputs[0])
    # A plain model, so that its file loads without KerasCV.
    return keras.Model(body.inputs, features, name=name)


def application_mode(name):
    """What a keras.applications network expects to be done to images in 0-255.

    Returns:
        `tf` (to -1-1), `torch`, `caffe`, `none` (its layers do it); None for names
        that are not of keras.applications.
    """
    if name not in _applications():
        return None
    module = sys.modules[_applications()[name].__module__]
    pixels = np.array([[[[10.0, 90.0, 200.0]]]])
    prepared = module.preprocess_input(pixels.copy())
    for mode in ("tf", "torch", "caffe"):
        expected = keras.applications.imagenet_utils.preprocess_input(
            pixels.copy(), mode=mode
        )
        if np.allclose(prepared, expected):
            return mode
    return "none"


def application_weights(name, input_shape):
    """A keras.applications network with its ImageNet weights, which it downloads.

    Raises:
        UsageError: if they cannot be fetched, saying what to put where.
    """
    try:
        return _applications()[name](
            include_top=False,
            weights="imagenet",
            pooling="avg",
            input_shape=input_shape,
        )
    except Exception as error:
        url = re.search(r"https?://\S+", str(error))
        if url is None:
            raise
        home = os.environ.get("KERAS_HOME", os.path.join("~", ".keras"))
        folder = os.path.join(os.path.expanduser(home), "models")
        raise UsageError(
            f"The ImageNet weights of {name} could not be downloaded. Fetch "
            f"{url.group().rstrip(':')} and put it into {folder}."
        ) from error


def _application(name, input_shape, with_preprocessing=False):
    builder = _applications()[name]
    options = dict(
        include_top=False, weights=None, pooling="avg", input_shape=input_shape
    )
    if "include_preprocessing" in inspect.signature(builder).parameters:
        options["include_preprocessing"] = with_preprocessing
    try:
        network = builder(**options)
    except ValueError as error:
        raise UsageError(f"Backbone {name} refuses {input_shape}: {error}") from error
    if with_preprocessing:
        return network

    # EfficientNet has its preprocessing built in with no way to leave it out.
    def without_preprocessing(layer):
        if isinstance(layer, (keras.layers.Rescaling, keras.layers.Normalization)):
            return keras.layers.Identity(name=layer.name)
        return layer.__class__.from_config(layer.get_config())

    return keras.models.clone_model(network, clone_function=without_preprocessing)


def synchronize(backbone):
    """A copy whose batch norms, nested ones too, share statistics over the replicas."""

    def synchronized(layer):
        config = layer.get_config()
        if isinstance(layer, keras.layers.BatchNormalization):
            config["synchronized"] = True
        return layer.__class__.from_config(config)

    copy = keras.models.clone_model(
        backbone, clone_function=synchronized, recursive=True
    )
    copy_weights(backbone, copy)
    return copy


def build_projector(
    input_dim: int, hidden_dim: int, output_dim: int
) -> keras.Sequential:
    """The two-layer head between features and embeddings.

    Args:
        input_dim: length of the backbone's features.
        hidden_dim: width of the hidden layer.
        output_dim: length of the embeddings.

    Returns:
        A `keras.Sequential` from [batch, input_dim] to [batch, output_dim].
    """

    def dense(units, activation=None):
        return keras.layers.Dense(
            units,
            activation,
            kernel_initializer=keras.initializers.VarianceScaling(
                1 / 3, "fan_in", "uniform"
            ),
        )

    return keras.Sequential(
        [keras.Input([input_dim]), dense(hidden_dim, "relu"), dense(output_dim)],
        name="projector",
    )
