"""Encoders: saving, describing and loading them."""

import hashlib
import json
import os
import platform
import subprocess
import zipfile

import keras
import numpy as np
import tensorflow as tf

from ressl_keras import __version__
from ressl_keras.data.decoding import Decoder
from ressl_keras.encoders import building
from ressl_keras.encoders.archive import check_archive, import_libraries
from ressl_keras.errors import UsageError, first_line
from ressl_keras.files import read_json, replacing, write_json
from ressl_keras.run_folder import RunFolder
from ressl_keras.weights import copy_statistics

PREPROCESSINGS = ("none", "tf", "torch", "caffe")


def save_encoder(encoder, workdir, description):
    """Writes `encoder.keras` and `encoder.json`; the one holds the other, too.

    Args:
        encoder: result of `build_encoder`.
        workdir: folder to write into.
        description: dict of facts about the encoder. Where the encoder takes images
            of any size, `input_size` says which it was trained on.

    Returns:
        Path of the encoder's file.
    """
    folder = RunFolder(workdir)
    described = describe(encoder, description)
    write_encoder(encoder, folder.encoder, described)
    write_json(folder.description, described)
    return folder.encoder


def write_encoder(encoder, path, described):
    """Writes an encoder's file, with its description inside.

    Args:
        encoder: result of `build_encoder`.
        path: `.keras` file to write.
        described: dict that JSON can hold.
    """
    with replacing(path) as temporary:
        encoder.save(temporary)
        # Keras reads the files of the archive that it knows, and no others.
        with zipfile.ZipFile(temporary, "a") as archive:
            name = os.path.basename(RunFolder("").description)
            archive.writestr(name, json.dumps(described, indent=2))


def describe(encoder, description):
    """The content of `encoder.json`: sizes, facts of the run, versions, the commit."""
    described = {
        "input_size": list(encoder.input_shape[1:3]),
        "channels": encoder.input_shape[-1],
        "embedding_size": encoder.output_shape[-1],
        "encoder": encoder_hash(encoder),
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


def load_encoder(
    path: str | os.PathLike, preprocessing: str = "none", dtype: str | None = None
) -> keras.Model:
    """Reads an encoder, made here or elsewhere.

    A `.keras` file may come from a stranger, since no code in it is run. A SavedModel
    may not: its graph can read and write files.

    Args:
        path: a `.keras` file, a SavedModel folder, or the work directory of a run.
        preprocessing: what to do with images in 0-255 before an encoder that does not
            do it itself: `none`; or, as keras.applications name them, `tf` (to -1-1),
            `torch` (ImageNet's mean and deviation) or `caffe` (BGR, mean only).
        dtype: name of a dtype policy that its layers compute in, such as
            `mixed_bfloat16`, or `keras.config.dtype_policy().name` for the global one;
            None leaves that of the file, float32 for encoders trained here.

    Returns:
        A `keras.Model` from images in 0-255 [batch, height, width, 3] to features
        [batch, dim]. Its attribute `image_size` is the side in pixels that it was
        trained on, None where that is not known; `decoder` is how the files of its
        images became pixels, a `Decoder`. From a SavedModel it has no weights of its
        own, and can be neither trained nor saved.

    Raises:
        UsageError: if there is no such file or it is not an image encoder; or a dtype
            is asked of a SavedModel.

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
    output = getattr(encoder, "output", None)
    if isinstance(output, dict):
        raise UsageError(
            f"{path} returns {', '.join(output)} by name, not features [batch, dim]."
        )
    _check_shapes(path, encoder.input_shape, encoder.output_shape)
    described = described_in(path)
    size = encoder.input_shape[1] or _trained_size(described)
    if dtype is not None:
        if is_frozen(encoder):
            raise UsageError(
                f"The SavedModel {path} computes in its own dtype; a .keras file can "
                "compute in another."
            )
        encoder = building.in_policy(encoder, dtype)
    if preprocessing != "none":
        encoder = _preceded(encoder, preprocessing)
    encoder.image_size = size
    encoder.decoder = decoder_in(described, encoder.input_shape[-1])
    return encoder


def clone_encoder(encoder):
    """The same network with fresh weights, and the same preprocessing.

    Raises:
        ValueError: if it is a subclassed model, which Keras cannot build again.
    """
    clone = keras.models.clone_model(encoder)
    copy_statistics(encoder, clone)
    clone.image_size = getattr(encoder, "image_size", None)
    return clone


def described_in(path):
    """What an encoder's file says of itself, a dict; empty where it says nothing."""
    if os.path.isdir(path):  # a SavedModel
        return read_json(RunFolder(os.path.join(path, "assets.extra")).description)
    if not zipfile.is_zipfile(path):
        return {}
    name = os.path.basename(RunFolder("").description)
    try:
        with zipfile.ZipFile(path) as archive:
            described = json.loads(archive.read(name))
    except (KeyError, ValueError, RecursionError):
        return {}
    return described if isinstance(described, dict) else {}


def decoder_in(described, channels):
    """How the images of an encoder became pixels, as its file says.

    Args:
        described: result of `described_in`.
        channels: of the encoder's images.

    Returns:
        A `Decoder`; the default one, where the file says nothing that makes sense.
    """
    bounds = described.get("value_range")
    kinds = [type(bound) for bound in bounds] if isinstance(bounds, list) else []
    known = len(kinds) == 2 and set(kinds) <= {int, float}
    oriented = described.get("exif_orientation") is not False
    return Decoder(oriented, tuple(bounds) if known else None, channels)


def _trained_size(described):
    """Side in pixels that an encoder's file says it was trained on, or None."""
    size = described.get("input_size")
    fits = isinstance(size, list) and list(map(type, size)) == [int, int]
    return size[0] if fits and 0 < size[0] == size[1] < 2**16 else None


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
        raise UsageError(f"{path} is not a Keras model: {first_line(error)}") from error
    if not isinstance(encoder, keras.Model):
        raise UsageError(f"{path} is not a Keras model but {type(encoder).__name__}.")
    return encoder


def _load_saved_model(path):
    try:
        signatures = tf.saved_model.load(path).signatures
    except Exception as error:
        raise UsageError(f"{path} is not a SavedModel: {first_line(error)}") from error
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
    shape = shapes[0][1:]
    size = described_in(path).get("input_size")
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
    _, height, width, _ = input_shape
    if height != width:
        raise UsageError(f"{path} takes images of {height} x {width}, not squares.")


def _is_images(shape):
    return isinstance(shape, tuple) and len(shape) == 4 and shape[-1] in (1, 3, 4)


def _is_features(shape):
    return isinstance(shape, tuple) and len(shape) == 2 and shape[-1] is not None


def _preceded(encoder, mode):
    """An encoder behind one of the preprocessings of keras.applications."""
    images = keras.Input(encoder.input_shape[1:], name="images", dtype="float32")
    prepared = keras.applications.imagenet_utils.preprocess_input(images, mode=mode)
    return keras.Model(images, encoder(prepared), name="encoder")


def encoder_hash(encoder):
    """Sixteen digits that differ where an encoder's architecture or weights do."""
    if is_frozen(encoder):  # its architecture would be the path that it is read from
        shapes = encoder.input_shape, encoder.output_shape
        digest = hashlib.sha256(str(shapes).encode())
    else:
        digest = hashlib.sha256(encoder.to_json().encode())
    for weight in encoder.get_weights():
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()[:16]


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
        The encoder's own side; where that is open, the side that it was trained on;
        where that is not known, that of the images.
    """
    known = encoder.input_shape[1] or getattr(encoder, "image_size", None)
    return known or images.common_size
