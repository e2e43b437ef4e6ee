"""Looking into a `.keras` file before Keras loads it: one may come from a stranger."""

import importlib
import json
import math
import os
import zipfile

import keras
import tensorflow as tf

from ressl_keras.errors import UsageError

# Keras does not compress; files that others packed may be somewhat smaller.
_LARGEST_RATIO = 20
_ALWAYS_FINE = 2**26  # bytes


def check_archive(path):
    """Checks that a file is an archive of Keras that holds what it declares.

    Args:
        path: file to look into.

    Raises:
        UsageError: if it is not a zip file, is damaged, would unpack to far more than
            its size, has a Lambda layer, or declares more weights than it holds.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = _unpacked_size(path, archive)
            config = json.loads(archive.read("config.json"))
    except zipfile.BadZipFile:
        raise UsageError(
            f"{path} is not a Keras model: it is not a zip file."
        ) from None
    except KeyError:
        raise UsageError(f"{path} is not a Keras model: no config.json.") from None
    except (ValueError, RecursionError, EOFError, RuntimeError, OSError) as error:
        raise UsageError(f"{path} is not a Keras model: damaged ({error}).") from error
    if _has_lambda(config):
        raise UsageError(
            f"{path} has a Lambda layer, which is Python code; such files are refused."
        )
    declared = _declared_weights(config)
    # A weight takes a byte or more.
    if declared is not None and declared > unpacked:
        raise UsageError(
            f"{path} declares {declared:,} weights, but holds {unpacked:,} bytes."
        )


def import_libraries(path):
    """Imports the libraries that register the layers of a file.

    Raises:
        UsageError: if one of them is missing.
    """
    with zipfile.ZipFile(path) as archive:
        config = archive.read("config.json")
    for library, package in (("keras_hub", "keras-hub"), ("keras_cv", "keras-cv")):
        if f'"{library}'.encode() in config:
            try:
                importlib.import_module(library)
            except ImportError as error:
                raise UsageError(
                    f"{path} has layers of {package}: pip install {package}."
                ) from error


def _unpacked_size(path, archive):
    """Bytes of the archive's files.

    Raises:
        UsageError: if they are far more than the archive's.
    """
    packed = os.path.getsize(path)
    unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > max(_ALWAYS_FINE, _LARGEST_RATIO * packed):
        raise UsageError(
            f"{path} has {packed:,} bytes and would unpack to {unpacked:,}; no model "
            "does."
        )
    return unpacked


def _has_lambda(config):
    """Whether a layer or function anywhere in a configuration is a Lambda."""
    waiting = [config]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            if part.get("class_name") in ("Lambda", "__lambda__"):
                return True
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
    return False


def _declared_weights(config):
    """Numbers in all weights of a configuration; None where it cannot be built.

    In a graph of its own no memory is taken for them.
    """
    try:
        with tf.Graph().as_default():
            model = keras.saving.deserialize_keras_object(config, safe_mode=True)
            return sum(math.prod(variable.shape) for variable in model.variables)
    except Exception:  # loading it says what is wrong
        return None
