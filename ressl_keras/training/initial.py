"""Starting a run from the weights of another network, with that network's scaling."""

import os

import keras
import numpy as np

from ressl_keras.augmentation.statistics import MEAN, STD, statistics
from ressl_keras.encoders.encoder import load_model_file
from ressl_keras.errors import UsageError
from ressl_keras.keras_private import flatten_layers
from ressl_keras.method.networks import application_mode, application_weights
from ressl_keras.run_folder import RunFolder
from ressl_keras.weights import copy_weights, finalize

IMAGENET = "imagenet"
_PREFIX = "scaled_for_"
_CAFFE_MEAN = np.array([123.68, 116.779, 103.939])  # of red, green and blue


def load_source(init):
    """The network of a source.

    Args:
        init: file, or folder of a run.

    Returns:
        A `keras.Model`.

    Raises:
        UsageError: if there is none.
    """
    path = RunFolder(init).encoder if os.path.isdir(init) else init
    if not os.path.isfile(path):
        raise UsageError(
            f"There are no weights at --init={init}: it is a run, a .keras file, or "
            f"{IMAGENET}."
        )
    return load_model_file(path)


def preprocessing_of(config, load=load_source):
    """What the source of the weights expects to be done to images.

    Args:
        config: `Config` with `init`.
        load: called where the source must be looked into.

    Returns:
        `own`, `none`, `tf`, `torch` or `caffe`.

    Raises:
        UsageError: if that is not known, or there is no such source.
    """
    mode = application_mode(config.backbone)
    if config.init == IMAGENET and mode is None:
        raise UsageError(
            f"--init=imagenet is for networks of keras.applications, such as "
            f"ResNet50 or MobileNetV2, not for {config.backbone}."
        )
    if config.init_preprocessing != "auto":
        return config.init_preprocessing
    if config.init == IMAGENET:
        return mode
    own = _own_mode(load(config.init)) or mode
    if own is None:
        raise UsageError(
            f"How {config.init} expects its images is not known; say it with "
            "--init_preprocessing: none (0-255), tf (-1 to 1), torch or caffe."
        )
    return own


def scaling(mode):
    """A layer from this package's normalised images to what a source expects.

    Args:
        mode: result of `preprocessing_of`.

    Returns:
        A `keras.layers.Rescaling`, or None where the images are as expected. The order
        of the channels stays; `start_from` reorders a caffe network's first kernel.
    """
    mean, std = np.array(MEAN), np.array(STD)
    affine = {
        "none": (255 * std, 255 * mean),
        "tf": (2 * std, 2 * mean - 1),
        "caffe": (255 * std, 255 * mean - _CAFFE_MEAN),
    }
    if mode not in affine:
        return None
    scale, offset = (values.tolist() for values in affine[mode])
    return keras.layers.Rescaling(scale, offset, name=_PREFIX + mode)


def start_from(model, config, log=print, load=load_source):
    """Gives student and teacher the weights that `config.init` names.

    Args:
        model: `ReSSL`.
        config: `Config` with `init`, its preprocessing chosen.
        log: called with a line that says what was and what was not taken.
        load: as in `preprocessing_of`.

    Raises:
        UsageError: if the source cannot be had or no layer of it fits.
    """
    if config.init == IMAGENET:
        source = application_weights(config.backbone, model.backbone.input_shape[1:])
    else:
        source = load(config.init)
    reorder = config.init_preprocessing == "caffe" and not _own_mode(source)
    found, wanted = _layers(source), _layers(model.backbone)
    pairs, left = _matched(found, wanted)
    if not pairs:
        raise UsageError(
            f"No layer of {config.init} fits {config.backbone}: its first layers have "
            f"{_shapes(found[:3])}, the backbone's {_shapes(wanted[:3])}."
        )
    for theirs, ours in pairs:
        weights = theirs.get_weights()
        if isinstance(theirs, keras.layers.Normalization):
            change = _scale_behind(source, theirs) / _scale_behind(model.backbone, ours)
            weights[1] = weights[1] / change**2
        if reorder and len(weights[0].shape) == 4 and weights[0].shape[2] == 3:
            weights[0], reorder = weights[0][:, :, ::-1], False
        ours.set_weights(weights)
    finalize(model.student)
    copy_weights(model.student, model.teacher)
    missing = ", ".join(layer.name for layer in left[:5])
    missing += f" and {len(left) - 5} more" if len(left) > 5 else ""
    log(
        f"{len(pairs)} of {len(wanted)} layers of {config.backbone} start from "
        f"{config.init}" + (f"; not found there: {missing}." if left else ".")
    )


def _scale_behind(model, layer):
    """What a `Rescaling` right behind a layer multiplies with; 1 if there is none.

    Keras builds EfficientNet with one behind its `Normalization` for the ImageNet
    weights only.
    """
    layers = list(_flat(model))
    behind = layers[layers.index(layer) + 1 :][:1]
    if behind and isinstance(behind[0], keras.layers.Rescaling):
        return np.array(behind[0].scale)
    return 1


def _own_mode(source):
    """Preprocessing of the body of an encoder of this package; None for others."""
    kinds = [type(layer).__name__ for layer in source.layers[:3]]
    if kinds != ["InputLayer", "Rescaling", "Normalization"]:
        return None
    mean = np.ravel(source.layers[2].mean)
    known = len(mean) in (1, 3, 4) and statistics(len(mean))[0]
    if not known or not np.allclose(mean, known, atol=1e-5):
        return None
    for layer in flatten_layers(source):
        if layer.name.startswith(_PREFIX):
            return layer.name.removeprefix(_PREFIX)
    return "own"


def _layers(model):
    """Layers with weights, without those that hold other layers, in order."""
    return [layer for layer in _flat(model) if layer.weights]


def _flat(model):
    """The layers of a model and of the models in it, in order."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _flat(layer)
        else:
            yield layer


def _matched(found, wanted):
    """Pairs of layers of equal shapes, and the layers that are left without one.

    Names that Keras numbers differ from process to process. Where all shapes agree in
    their order, the order decides; else the names do.
    """
    if _shapes(found[: len(wanted)]) == _shapes(wanted):
        return list(zip(found, wanted)), []
    named = {layer.name: layer for layer in found}
    pairs = [
        (named[layer.name], layer)
        for layer in wanted
        if layer.name in named and _shapes([named[layer.name]]) == _shapes([layer])
    ]
    taken = {id(ours) for _, ours in pairs}
    return pairs, [layer for layer in wanted if id(layer) not in taken]


def _shapes(layers):
    return [[tuple(weight.shape) for weight in layer.weights] for layer in layers]
