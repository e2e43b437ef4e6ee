"""Exporting an encoder: a Keras file, a SavedModel, other formats."""

import keras

from ressl_keras.encoders.card import write_card
from ressl_keras.encoders.encoder import describe, save_encoder
from ressl_keras.encoders.serving import has_module, save_saved_model
from ressl_keras.errors import UsageError
from ressl_keras.files import replacing
from ressl_keras.run_folder import RunFolder

# Format: (ending, modules it needs, how to install them).
FORMATS = {
    "onnx": ("onnx", ("tf2onnx", "onnx"), "pip install tf2onnx onnx"),
    "litert": ("tflite", (), ""),
}


def save_format(encoder, workdir, name, size):
    """Writes an encoder in another format, for images of one size.

    Args:
        encoder: functional `keras.Model` from images to features.
        workdir: folder to write into.
        name: one of `FORMATS`.
        size: side of the images in pixels.

    Returns:
        Path of the file, `encoder.onnx` or `encoder.tflite`.

    Raises:
        UsageError: if the format is unknown or its library is missing.
    """
    check_formats([name])
    ending = FORMATS[name][0]
    path = RunFolder(workdir).encoder_in(ending)
    shape = (None, size, size, encoder.input_shape[-1])
    images = keras.InputSpec(shape=shape, dtype="float32", name="images")
    with replacing(path) as temporary:
        encoder.export(temporary, format=name, input_signature=[images], verbose=False)
    return path


def check_formats(names):
    """Checks that formats are known and their libraries installed.

    Raises:
        UsageError: if not, naming the package to install.
    """
    for name in names:
        if name not in FORMATS:
            raise UsageError(
                f"Unknown format '{name}'; known are {', '.join(FORMATS)}."
            )
        _, modules, installation = FORMATS[name]
        missing = [module for module in modules if not has_module(module)]
        if missing:
            raise UsageError(f"{name} needs {', '.join(missing)}: {installation}")


def save_all(
    encoder,
    workdir,
    size,
    description,
    formats=(),
    log=print,
    keras_file=True,
    **serving,
):
    """Writes `encoder.keras`, `encoder.json`, the next SavedModel, other formats.

    Args:
        encoder: functional `keras.Model` from images in 0-255 to features.
        workdir: folder to write into.
        size: side in pixels of the images that it was trained on.
        description: dict of facts about the encoder.
        formats: names out of `FORMATS`.
        log: called with a line of text.
        keras_file: whether to write the Keras file and its description, too.
        **serving: how the SavedModel is made: further arguments of `save_saved_model`.

    Returns:
        Path of the encoder's file.

    Raises:
        UsageError: if a library is missing; before anything is written.
    """
    check_formats(formats)
    folder = RunFolder(workdir)
    description = {**description, "input_size": [size, size]}
    described = describe(encoder, description)
    written = [
        save_saved_model(encoder, size, folder.export, description=described, **serving)
    ]
    if keras_file:
        written.insert(0, save_encoder(encoder, workdir, description))
    written += [save_format(encoder, workdir, name, size) for name in formats]
    write_card(folder, log)
    log("Exported: " + ", ".join(written))
    return folder.encoder
