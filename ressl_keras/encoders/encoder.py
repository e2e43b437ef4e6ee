"""Encoders: building them from a backbone, saving, describing and loading them."""

import contextlib
import os
import platform
import subprocess

import keras
import numpy as np
import tensorflow as tf

from ressl_keras import __version__
from ressl_keras.augmentation.statistics import statistics
from ressl_keras.encoders.archive import check_archive, import_libraries
from ressl_keras.errors import UsageError
from ressl_keras.run_folder import RunFolder, read_json, replacing, write_json

PREPROCESSINGS = ("none", "tf", "torch", "caffe")


def build_encoder(
    backbone, projector=None, size=None, any_size=False, mean=None, std=None
):
    """A backbone with its preprocessing in front, in float32.

    Args:
        backbone: functional `keras.Model` from normalised images to features.
        projector: `keras.Model` to put behind it, or None.
        size: side of the images in pixels; None takes the backbone's own.
        any_size: whether to leave height and width open, where the backbone allows.
        mean: mean of each channel, on the scale 0-1; by default as in training.
        std: standard deviation of each channel, likewise.

    Returns:
        A functional `keras.Model` of core layers from images in 0-255, uint8 or float
        [batch, height, width, channels], to features [batch, dim]. It shares no
        weights with `backbone`.
    """
    body, channels = None, backbone.input_shape[-1]
    mean, std = (
        given or default for given, default in zip((mean, std), statistics(channels))
    )
    if any_size:
        # Not where a layer counts pixels, such as Dense after Flatten.
        with contextlib.suppress(ValueError, TypeError):
            body = _in_float32(backbone, [None, None, channels])
    shape = [size, size, channels] if size else backbone.input_shape[1:]
    body = body or _in_float32(backbone, shape)
    inputs = keras.Input(body.input_shape[1:], name="images", dtype="float32")
    x = keras.layers.Rescaling(1 / 255, dtype="float32")(inputs)
    x = keras.layers.Normalization(
        mean=list(mean), variance=[value**2 for value in std], dtype="float32"
    )(x)
    x = body(x)
    if projector is not None:
        x = _in_float32(projector, projector.input_shape[1:])(x)
    return keras.Model(inputs, x, name="encoder")


def _in_float32(model, input_shape):
    """A copy of a model with another input shape, computing in float32."""

    def in_float32(layer):
        config = layer.get_config()
        if isinstance(layer, keras.Layer):  # else a bare operation, which has no dtype
            config["dtype"] = "float32"
        return layer.__class__.from_config(config)

    inputs = keras.Input(input_shape)
    listed = isinstance(model, keras.Sequential) or isinstance(model.input, list)
    copy = keras.models.clone_model(
        model,
        input_tensors=[inputs] if listed else inputs,
        clone_function=in_float32,
    )
    copy.set_weights(model.get_weights())
    return copy


def save_encoder(encoder, workdir, description):
    """Writes `encoder.keras` and `encoder.json`.

    Args:
        encoder: result of `build_encoder`.
        workdir: folder to write into.
        description: dict of facts about the encoder.

    Returns:
        Path of the encoder's file.
    """
    folder = RunFolder(workdir)
    with replacing(folder.encoder) as path:
        encoder.save(path)
    write_json(folder.description, describe(encoder, description))
    return folder.encoder


def describe(encoder, description):
    """The content of `encoder.json`: sizes, facts of the run, versions, the commit."""
    described = {
        "input_size": list(encoder.input_shape[1:3]),
        "embedding_size": encoder.output_shape[-1],
        **description,
        "versions": {
            "ressl_keras": __version__,
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "numpy": np.__version__,
        },
    }
    at = commit()
    return {**described, "git_commit": at} if at else described


def commit():
    """The commit of this package's checkout, or None where it has none."""
    package = os.path.dirname(os.path.abspath(__file__))

    def git(*arguments):
        # Else `describe --dirty` rewrites the checkout's index, and leaves a lock there
        # when the disk is full.
        command = ["git", "--no-optional-locks", "-C", package, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True)

    try:
        # An environment inside somebody else's checkout is not of that commit.
        git("ls-files", "--error-unmatch", os.path.basename(__file__))
        described = git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def load_encoder(path: str | os.PathLike, preprocessing: str = "none") -> keras.Model:
    """Reads an encoder, made here or elsewhere.

    A `.keras` file may come from a stranger, since no code in it is run. A SavedModel
    may not: its graph can read and write files.

    Args:
        path: a `.keras` file, a SavedModel folder, or the work directory of a run.
        preprocessing: what to do with images in 0-255 before an encoder that does not
            do it itself: `none`; or, as keras.applications name them, `tf` (to -1-1),
            `torch` (ImageNet's mean and deviation) or `caffe` (BGR, mean only).

    Returns:
        A `keras.Model` from images in 0-255 [batch, height, width, 3] to features
        [batch, dim]. From a SavedModel it has no weights of its own, and can be
        neither trained nor saved.

    Raises:
        UsageError: if there is no such file or it is not an image encoder.

    Example:

    >>> encoder = load_encoder("runs/cifar10")
    >>> encoder(images).shape
    TensorShape([256, 512])
    """
    if preprocessing not in PREPROCESSINGS:
        raise UsageError(
            f"Unknown preprocessing '{preprocessing}'; known are "
            f"{', '.join(PREPROCESSINGS)}."
        )
    if os.path.isfile(os.path.join(path, "saved_model.pb")):
        encoder = _load_saved_model(path)
    elif os.path.isdir(path):
        inside = RunFolder(path).encoder
        if not os.path.isfile(inside):
            raise UsageError(
                f"{path} is neither a work directory (no "
                f"{os.path.basename(inside)}) nor a SavedModel (no saved_model.pb)."
            )
        path, encoder = inside, load_model_file(inside)
    elif os.path.isfile(path):
        encoder = load_model_file(path)
    else:
        raise UsageError(f"There is no encoder at {path}.")
    _check_shapes(path, encoder.input_shape, encoder.output_shape)
    return encoder if preprocessing == "none" else _preceded(encoder, preprocessing)


def load_model_file(path):
    """Reads a Keras model from a file that may come from a stranger.

    Raises:
        UsageError: if it is none, or a library that its layers come from is missing.
    """
    if not str(path).endswith((".h5", ".hdf5")):
        check_archive(path)
        import_libraries(path)
    try:
        # Also where the process allows what is unsafe elsewhere.
        encoder = keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        raise UsageError(f"{path} is not a Keras model: {_line(error)}") from error
    if not isinstance(encoder, keras.Model):
        raise UsageError(f"{path} is not a Keras model but {type(encoder).__name__}.")
    return encoder


def _load_saved_model(path):
    try:
        signatures = tf.saved_model.load(path).signatures
    except Exception as error:
        raise UsageError(f"{path} is not a SavedModel: {_line(error)}") from error
    if "serving_default" not in signatures:
        raise UsageError(
            f"{path} has no signature serving_default, only "
            f"{', '.join(signatures) or 'none at all'}."
        )
    signature = signatures["serving_default"]
    inputs = list(signature.structured_input_signature[1].values())
    outputs = list(signature.structured_outputs.values())
    if len(inputs) != 1 or len(outputs) != 1:
        raise UsageError(
            f"{path} has {len(inputs)} inputs and {len(outputs)} outputs, not one each."
        )
    shapes = [tuple(spec.shape or ()) for spec in (*inputs, *outputs)]
    _check_shapes(path, *shapes)
    # One exported here takes any size; its description says which it was trained for.
    described = read_json(RunFolder(os.path.join(path, "assets.extra")).description)
    shape = shapes[0][1:]
    size = described.get("input_size")
    if isinstance(size, list) and list(map(type, size)) == [int, int]:
        shape = (*size, shape[-1])
    images = keras.Input(shape, name="images", dtype=inputs[0].dtype.name)
    embeddings = keras.layers.TFSMLayer(path, call_endpoint="serving_default")(images)
    return keras.Model(images, *embeddings.values(), name="encoder")


def _check_shapes(path, input_shape, output_shape):
    """Checks that the model maps images to feature vectors.

    Raises:
        UsageError: if not.
    """
    for wanted, shape, ok in (
        ("takes {}, not images [batch, height, width, 3]", input_shape, _is_images),
        ("returns {}, not features [batch, dim]", output_shape, _is_features),
    ):
        if not ok(shape):
            raise UsageError(f"{path} {wanted.format(shape)}.")


def _is_images(shape):
    return isinstance(shape, tuple) and len(shape) == 4 and shape[-1] in (1, 3, 4)


def _is_features(shape):
    return isinstance(shape, tuple) and len(shape) == 2 and shape[-1] is not None


def _line(error):
    """The first line of an error's message that is not blank."""
    lines = [line.strip() for line in str(error).split("\n") if line.strip()]
    return lines[0] if lines else type(error).__name__


def _preceded(encoder, mode):
    """An encoder behind one of the preprocessings of keras.applications."""
    images = keras.Input(encoder.input_shape[1:], name="images", dtype="float32")
    prepared = keras.applications.imagenet_utils.preprocess_input(images, mode=mode)
    return keras.Model(images, encoder(prepared), name="encoder")


def is_frozen(encoder):
    """Whether an encoder is a SavedModel, whose weights cannot be trained or reset."""
    layers = getattr(encoder, "layers", [])
    return isinstance(encoder, keras.layers.TFSMLayer) or any(map(is_frozen, layers))


def input_size(encoder, images):
    """Side in pixels that images are resized to for an encoder.

    Args:
        encoder: result of `load_encoder`.
        images: a set of images, such as `ArrayImages`.

    Returns:
        The encoder's own side; where that is open, that of the images.
    """
    return encoder.input_shape[1] or images.common_size
