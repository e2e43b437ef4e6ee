"""A classifier on an encoder: one network from images to probabilities."""

import keras

from ressl_keras.data.decoding import DEFAULT
from ressl_keras.encoders.encoder import describe, write_encoder
from ressl_keras.encoders.serving import save_saved_model


def build_classifier(encoder, kernel, bias):
    """An encoder with a linear layer and a softmax behind it.

    Args:
        encoder: functional `keras.Model` from images in 0-255 to features [batch, dim].
        kernel: float array [dim, classes].
        bias: float array [classes].

    Returns:
        A functional `keras.Model` from images in 0-255 to float32 probabilities
        [batch, classes], which shares the encoder's weights.
    """
    layer = keras.layers.Dense(
        len(bias), "softmax", name="probabilities", dtype="float32"
    )
    probabilities = layer(encoder.outputs[0])
    layer.set_weights([kernel, bias])
    return keras.Model(encoder.inputs[0], probabilities, name="classifier")


def save_classifier(
    classifier,
    folder,
    class_names,
    size,
    description,
    decoder=DEFAULT,
    log=print,
):
    """Writes `classifier.keras` and the next SavedModel in `classifier`.

    The SavedModel's signatures return `classes`, the names of all classes, the most
    likely first, and their `probabilities`, both [batch, classes].

    Args:
        classifier: result of `build_classifier`.
        folder: `RunFolder`.
        class_names: list of strings.
        size: side in pixels that images are brought to.
        description: dict of facts.
        decoder: `Decoder` of the SavedModel's encoded images.
        log: called with a line of text.
    """
    facts = {**description, "input_size": [size, size], "class_names": class_names}
    described = describe(classifier, facts)
    write_encoder(classifier, folder.classifier, described)
    served = save_saved_model(
        classifier,
        size,
        folder.classifier_export,
        description=described,
        decoder=decoder,
        class_names=class_names,
    )
    log(f"The classifier is {folder.classifier}, and {served} for a server.")
