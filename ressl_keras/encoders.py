"""Encoders as files and in use: writing, reading, and encoding what is too large."""

import contextlib
import json
import os
import platform
import subprocess

import keras
import numpy as np
import tensorflow as tf

from ressl_keras import data, views
from ressl_keras.errors import UsageError

ENCODER_FILE = "encoder.keras"
DESCRIPTION_FILE = "encoder.json"
PREPROCESSINGS = ("none", "tf", "torch", "caffe")


def build_encoder(
    backbone, projector=None, size=None, any_size=False, mean=views.MEAN, std=views.STD
):
    """A backbone with its preprocessing in front, in float32.

    Args:
        backbone: functional `keras.Model` from normalised images to features.
        projector: `keras.Model` to put behind it, or None.
        size: side of the images in pixels; None takes the backbone's own.
        any_size: whether to leave height and width open, where the backbone allows.
        mean: mean of each channel, on the scale 0-1.
        std: standard deviation of each channel, on the scale 0-1.

    Returns:
        A functional `keras.Model` of core layers from images in 0-255, uint8 or float
        [batch, height, width, 3], to features [batch, dim]. It shares no weights with
        `backbone`.
    """
    body = None
    if any_size:
        # Not where a layer counts pixels, such as Dense after Flatten.
        with contextlib.suppress(ValueError):
            body = _in_float32(backbone, [None, None, 3])
    shape = [size, size, 3] if size else backbone.input_shape[1:]
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
    """Writes `encoder.keras` and `encoder.json`, each aside and then into place.

    Args:
        encoder: result of `build_encoder`.
        workdir: folder to write into.
        description: dict of what there is to say about the encoder.

    Returns:
        Path of the encoder's file.
    """
    path = os.path.join(workdir, ENCODER_FILE)
    aside = os.path.join(workdir, "encoder.writing.keras")
    encoder.save(aside)
    os.replace(aside, path)
    write_json(os.path.join(workdir, DESCRIPTION_FILE), describe(encoder, description))
    return path


def describe(encoder, description):
    """What `encoder.json` says: sizes, the run's own words, versions, the commit."""
    import ressl_keras

    described = {
        "input_size": list(encoder.input_shape[1:3]),
        "embedding_size": encoder.output_shape[-1],
        **description,
        "versions": {
            "ressl_keras": ressl_keras.__version__,
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
        command = ["git", "-C", package, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True)

    try:
        # An environment inside somebody else's checkout is not of that commit.
        git("ls-files", "--error-unmatch", os.path.basename(__file__))
        described = git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def write_json(path, value):
    """Writes JSON aside and renames it, so that a reader never finds half a file."""
    aside = f"{path}.writing"
    with open(aside, "w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
    os.replace(aside, path)


def load_encoder(path, preprocessing="none"):
    """Reads an encoder, made here or elsewhere.

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
        inside = os.path.join(path, ENCODER_FILE)
        if not os.path.isfile(inside):
            raise UsageError(
                f"{path} is no work directory with an {ENCODER_FILE}, and no "
                "SavedModel (those have a saved_model.pb)."
            )
        path, encoder = inside, _load_keras(inside)
    elif os.path.isfile(path):
        encoder = _load_keras(path)
    else:
        raise UsageError(f"There is no encoder at {path}.")
    _check_shapes(path, encoder.input_shape, encoder.output_shape)
    return encoder if preprocessing == "none" else _preceded(encoder, preprocessing)


def _load_keras(path):
    try:
        encoder = keras.models.load_model(path, compile=False)
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
    # One made here takes any size, and was made for one.
    told = os.path.join(path, "assets.extra", DESCRIPTION_FILE)
    side = shapes[0][1:]
    if os.path.isfile(told):
        with open(told) as file:
            side = (*json.load(file)["input_size"], 3)
    images = keras.Input(side, name="images", dtype=inputs[0].dtype.name)
    embeddings = keras.layers.TFSMLayer(path, call_endpoint="serving_default")(images)
    return keras.Model(images, *embeddings.values(), name="encoder")


def _check_shapes(path, input_shape, output_shape):
    """Sees that images go in and feature vectors come out.

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
    return isinstance(shape, tuple) and len(shape) == 4 and shape[-1] == 3


def _is_features(shape):
    return isinstance(shape, tuple) and len(shape) == 2 and shape[-1] is not None


def _line(error):
    """The first line of an error's message that says something."""
    lines = [line.strip() for line in str(error).split("\n") if line.strip()]
    return lines[0] if lines else type(error).__name__


def _preceded(encoder, mode):
    """An encoder behind one of the preprocessings of keras.applications."""
    images = keras.Input(encoder.input_shape[1:], name="images", dtype="float32")
    prepared = keras.applications.imagenet_utils.preprocess_input(images, mode=mode)
    return keras.Model(images, encoder(prepared), name="encoder")


def is_frozen(encoder):
    """Whether an encoder is a SavedModel, that cannot be trained or made anew."""
    layers = getattr(encoder, "layers", [])
    return isinstance(encoder, keras.layers.TFSMLayer) or any(map(is_frozen, layers))


def input_side(encoder, images):
    """Side in pixels that images are brought to for an encoder.

    Args:
        encoder: result of `load_encoder`.
        images: `data.ArrayImages` or `data.EncodedImages`.

    Returns:
        The encoder's own side; where that is open, the images'; 224 where they vary.
    """
    return encoder.input_shape[1] or (images.size[0] if images.same_size else 224)


def batches_of(images, size, batch_size=256):
    """Image batches of whatever holds images.

    Args:
        images: `data.ArrayImages` or `data.EncodedImages`; or any iterable of batches
            [batch, height, width, 3] in 0-255, such as a `tf.data.Dataset`, alone, in
            a tuple before their labels, or in a dict under `image`.
        size: side in pixels to bring `data` images to; others come as they are.
        batch_size: images a batch, for `data` images.

    Yields:
        Tensors or arrays [batch, height, width, 3].
    """
    if hasattr(images, "read"):
        images = data.evaluation_batches(images, size, batch_size)
    for batch in images:
        if isinstance(batch, (tuple, list)):
            batch = batch[0]
        yield batch["image"] if isinstance(batch, dict) else batch


def encode(images, encoder, path=None, batch_size=256, verbose=1):
    """Embeds images batch by batch, into a file where there are many.

    Neither images nor embeddings need to fit into memory when `path` is given. The
    file is written aside and renamed when it is whole.

    Args:
        images: what `batches_of` takes; for large data, a `tf.data.Dataset` of image
            batches.
        encoder: result of `load_encoder`.
        path: file to write: `.npy`, a float32 array [count, dim]; or `.tfrecord`,
            `tf.train.Example` records of `index` (int64) and `embedding` (floats).
            None returns the embeddings.
        batch_size: images a batch, where `images` are not batches already.
        verbose: 1 shows a progress bar, 0 nothing.

    Returns:
        Number of embeddings written, or without `path` the float32 array [count, dim].

    Raises:
        UsageError: if the file's name has another ending, or there are no images.

    Example:

    >>> encoder = load_encoder("runs/cifar10")
    >>> encode(images.batch(256), encoder, "embeddings.npy")
    50000
    """
    if path is not None and not str(path).endswith((".npy", ".tfrecord")):
        raise UsageError(f"{path} ends neither in .npy nor in .tfrecord.")
    embeddings = _embeddings(images, encoder, batch_size, verbose)
    if path is None:
        found = list(embeddings)
        if not found:
            raise UsageError("There are no images to encode.")
        return np.concatenate(found)
    aside = f"{path}.writing"
    write = _write_npy if str(path).endswith(".npy") else _write_tfrecord
    try:
        count = write(aside, embeddings)
        if not count:
            raise UsageError("There are no images to encode.")
        os.replace(aside, path)
    finally:
        if os.path.exists(aside):
            os.remove(aside)
    return count


def _embeddings(images, encoder, batch_size, verbose):
    own = hasattr(images, "read")
    total = len(images) if own else None
    size = input_side(encoder, images) if own else None
    progress = keras.utils.Progbar(total, verbose=verbose, unit_name="image")
    count, forward = 0, None
    for batch in batches_of(images, size, batch_size):
        if forward is None:
            forward = _forward(encoder, batch.dtype)
        embeddings = forward(batch).numpy()
        count += len(embeddings)
        progress.update(count, finalize=False)
        yield embeddings
    if count:
        progress.update(count, finalize=True)


def _forward(encoder, dtype):
    """An encoder as a function traced once, for batches of any length."""
    spec = tf.TensorSpec([None, *encoder.input_shape[1:]], dtype)

    @tf.function(input_signature=[spec])
    def forward(images):
        images = tf.cast(images, encoder.inputs[0].dtype)
        return tf.cast(encoder(images, training=False), tf.float32)

    return forward


def _write_npy(path, parts):
    """Streams rows into an array file, whose header is completed at the end."""
    count, dim = 0, 0

    def header(file):
        # NumPy pads the header, so that a longer first axis fits into it later.
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (count, dim)}
        )

    with open(path, "wb") as file:
        for part in parts:
            if not count:
                dim = part.shape[1]
                header(file)
            count += len(part)
            part.astype("<f4").tofile(file)
        file.seek(0)
        header(file)
    return count


def _write_tfrecord(path, parts):
    count = 0
    with tf.io.TFRecordWriter(path) as writer:
        for part in parts:
            for row in part:
                index = tf.train.Feature(int64_list=tf.train.Int64List(value=[count]))
                row = tf.train.Feature(float_list=tf.train.FloatList(value=row))
                features = tf.train.Features(feature={"index": index, "embedding": row})
                example = tf.train.Example(features=features)
                writer.write(example.SerializeToString())
                count += 1
    return count
