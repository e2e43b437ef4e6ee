"""The network of a run: by name, from a file, from a module, or a model in memory."""

import os

import keras

from ressl_keras.encoders.encoder import load_model_file
from ressl_keras.errors import UsageError, first_line
from ressl_keras.files import replacing
from ressl_keras.method.networks import check_backbone, pooled
from ressl_keras.training.own import imported
from ressl_keras.weights import copy_weights


def is_own(backbone):
    """Whether a setting means a network of the user's: a file or a function."""
    return backbone.endswith(".keras") or ":" in backbone


def check(backbone, width, folder):
    """Checks that there is such a network, before any image is read.

    Args:
        backbone: as `Config.backbone`.
        width: as `Config.width`.
        folder: `RunFolder`, which keeps the network of a run that has begun.

    Raises:
        UsageError: if there is no such name, file or function.
    """
    if not is_own(backbone):
        check_backbone(backbone, width)
    elif ":" in backbone:
        imported(backbone, "backbone")
    elif not os.path.isfile(backbone) and not _is_kept(folder):
        raise UsageError(f"There is no file {backbone} (from here, {os.getcwd()}).")


def own_network(backbone, folder, image_size, model=None, channels=3):
    """A network of the user's, as `build.build_model` takes it.

    Args:
        backbone: as `Config.backbone`.
        folder: `RunFolder`. The network that a run began with is kept there.
        image_size: side of the views in pixels, None for several sizes.
        model: `keras.Model` in place of `backbone`, or None.
        channels: channels of the images.

    Returns:
        A functional `keras.Model` from images to features, or None where the setting
        names a network that `build_backbone` builds.

    Raises:
        UsageError: if it cannot be loaded or does not map images to features.
    """
    if model is None and not is_own(backbone):
        return None
    if model is None and ":" in backbone:
        return pooled(_call(backbone, (image_size, image_size, channels)), backbone)
    if _is_kept(folder):
        return load_model_file(folder.network)
    if model is None:
        return pooled(load_model_file(backbone), backbone)
    return pooled(model, f"The model {model.name}")


def keep_network(network, folder):
    """Writes the network that a run begins with, for resuming and exporting it."""
    if not _is_kept(folder):
        with replacing(folder.network) as path:
            network.save(path)


def _is_kept(folder):
    """Whether a run that has trained here keeps the network that it began with."""
    return folder.has_checkpoints() and os.path.isfile(folder.network)


def in_policy(network, image_size, channels=3):
    """A copy of a network of the user's in the current dtype policy.

    Args:
        network: result of `own_network`.
        image_size: side of the views in pixels, None for several sizes.
        channels: channels of the images.

    Raises:
        UsageError: if it does not take images of this size, or cannot be copied.
    """
    sides = network.input_shape[1:3]
    if sides not in ((None, None), (image_size, image_size)):
        size = image_size or "several sizes"
        raise UsageError(
            f"The network {network.name} takes images of {sides[0]} x {sides[1]}, not "
            f"of {size}; --image_size={sides[0]} without --crops fits."
        )

    if network.input_shape[-1] != channels:
        raise UsageError(
            f"The network {network.name} takes images of {network.input_shape[-1]} "
            f"channels, not {channels}; --channels says how images are read."
        )

    def rebuilt(layer):
        config = layer.get_config()
        if isinstance(layer, keras.Layer) and layer.dtype_policy.name == "float32":
            config["dtype"] = keras.config.dtype_policy().name
        return layer.__class__.from_config(config)

    try:
        copy = keras.models.clone_model(network, clone_function=rebuilt, recursive=True)
        copy_weights(network, copy)
    except Exception as error:
        raise UsageError(
            f"The network {network.name} cannot be copied, as the teacher is: "
            f"{first_line(error)} Every layer of it needs get_config."
        ) from error
    return copy


def _call(backbone, input_shape):
    function = imported(backbone, "backbone")
    try:
        model = function(input_shape)
    except Exception as error:
        if None not in input_shape:
            raise
        raise UsageError(
            f"--backbone={backbone} builds no network for images of several sizes, "
            f"which --crops asks for: {first_line(error)}"
        ) from error
    if not isinstance(model, keras.Model):
        raise UsageError(
            f"--backbone={backbone} returned {type(model).__name__}, no keras.Model."
        )
    return model
