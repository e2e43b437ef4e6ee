"""The encoder as a file: what leaves a run to be judged, served and fine-tuned."""

import json
import os
import platform

import keras
import tensorflow as tf

from ressl_keras import views
from ressl_keras.errors import UsageError

ENCODER_FILE = "encoder.keras"
DESCRIPTION_FILE = "encoder.json"


def build_encoder(backbone, mean=views.MEAN, std=views.STD):
    """A backbone with its preprocessing in front, in float32.

    Args:
        backbone: functional `keras.Model` from normalised images to features.
        mean: mean of each channel, on the scale 0-1.
        std: standard deviation of each channel, on the scale 0-1.

    Returns:
        A functional `keras.Model` of core layers from images in 0-255, uint8 or float
        [batch, height, width, 3], to features [batch, dim]. It shares no weights with
        `backbone`.
    """

    def in_float32(layer):
        return layer.__class__.from_config({**layer.get_config(), "dtype": "float32"})

    body = keras.models.clone_model(backbone, clone_function=in_float32)
    body.set_weights(backbone.get_weights())
    inputs = keras.Input(backbone.input_shape[1:], name="images", dtype="float32")
    x = keras.layers.Rescaling(1 / 255, dtype="float32")(inputs)
    x = keras.layers.Normalization(
        mean=list(mean), variance=[value**2 for value in std], dtype="float32"
    )(x)
    return keras.Model(inputs, body(x), name="encoder")


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
    description = {
        "input_size": list(encoder.input_shape[1:3]),
        "embedding_size": encoder.output_shape[-1],
        **description,
        "versions": {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
    }
    write_json(os.path.join(workdir, DESCRIPTION_FILE), description)
    return path


def write_json(path, value):
    """Writes JSON aside and renames it, so that a reader never finds half a file."""
    aside = f"{path}.writing"
    with open(aside, "w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
    os.replace(aside, path)


def load_encoder(path):
    """Reads an encoder.

    Args:
        path: a `.keras` file, made here or elsewhere, or the work directory of a run.

    Returns:
        A `keras.Model` from images to features [batch, dim].

    Raises:
        UsageError: if there is no such file or it is not an encoder.
    """
    if os.path.isdir(path):
        path = os.path.join(path, ENCODER_FILE)
    if not os.path.isfile(path):
        raise UsageError(f"There is no encoder at {path}.")
    try:
        encoder = keras.models.load_model(path, compile=False)
    except Exception as error:
        first_line = str(error).strip().split("\n")[0]
        raise UsageError(f"{path} is not a Keras model: {first_line}") from error
    if len(encoder.output_shape) != 2:
        raise UsageError(
            f"{path} returns {encoder.output_shape}, not features [batch, dim]."
        )
    return encoder
