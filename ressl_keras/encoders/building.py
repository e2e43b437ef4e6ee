"""Building an encoder: a backbone with its preprocessing, as one flat Keras model."""

import contextlib

import keras

from ressl_keras.augmentation.statistics import statistics
from ressl_keras.weights import copy_weights

# Side in pixels at which the resolutions inside a network are compared: larger than
# the stride of any network, so that only pooling over the whole image gives 1 x 1.
_REFERENCE = 256
_STAGES = 4


def build_encoder(
    backbone,
    projector=None,
    size=None,
    any_size=False,
    normalize=False,
):
    """A backbone with its preprocessing in front, in float32.

    Where height and width are open, the last feature map of each of the last four
    resolutions is the output of a layer `stage1` to `stage4`.

    Args:
        backbone: functional `keras.Model` from normalised images to features.
        projector: `keras.Model` to put behind it, or None.
        size: side of the images in pixels; None takes the backbone's own.
        any_size: whether to leave height and width open, where the backbone allows.
        normalize: whether to scale the features to unit length.

    Returns:
        A functional `keras.Model` of core layers from images in 0-255, uint8 or float
        [batch, height, width, channels], to features [batch, dim]. It shares no
        weights with `backbone`.
    """
    body, channels = None, backbone.input_shape[-1]
    mean, std = statistics(channels)

    def preprocessed(images):
        x = keras.layers.Rescaling(1 / 255, dtype="float32")(images)
        variance = [value**2 for value in std]
        return keras.layers.Normalization(
            mean=list(mean), variance=variance, dtype="float32"
        )(x)

    if any_size:
        # Not where a layer counts pixels, such as Dense after Flatten.
        with contextlib.suppress(ValueError, TypeError):
            open_sides = [None, None, channels]
            stages = _stages(backbone, open_sides)
            body = _copy(backbone, open_sides, "float32", preprocessed, stages)
    if body is None:
        shape = [size, size, channels] if size else backbone.input_shape[1:]
        body = _copy(backbone, shape, "float32", preprocessed)
    features = body.outputs[0]
    if projector is not None:
        features = _copy(projector, projector.input_shape[1:], "float32")(features)
    encoder = keras.Model(body.inputs[0], features, name="encoder")
    return normalized(encoder) if normalize else encoder


def normalized(encoder):
    """An encoder whose features are scaled to unit length."""
    unit = keras.layers.UnitNormalization(dtype="float32")(encoder.outputs[0])
    return keras.Model(encoder.inputs[0], unit, name=encoder.name)


def in_policy(encoder, policy):
    """A copy of an encoder that computes in another dtype policy.

    The preprocessing in front stays in float32, which holds pixels in 0-255 exactly.

    Args:
        encoder: functional `keras.Model` from images to features.
        policy: name of a dtype policy, such as `mixed_bfloat16`.
    """
    return _copy(encoder, encoder.input_shape[1:], policy)


def _copy(model, input_shape, policy, preprocessed=None, stages=None):
    """A copy of a model with another input shape and dtype policy.

    Args:
        model: functional `keras.Model` of one input.
        input_shape: shape of the copy's input, without the batch.
        policy: name of the dtype policy of its layers.
        preprocessed: function from the input to what the model's first layers get.
        stages: dict from the name of a layer to that of an identity behind it.
    """
    scaling = (keras.layers.Rescaling, keras.layers.Normalization)
    inputs = keras.Input(input_shape, name="images", dtype="float32")
    prepared = preprocessed(inputs) if preprocessed else inputs

    def in_its_policy(layer):
        config = layer.get_config()
        # A bare operation has no dtype.
        if isinstance(layer, keras.Layer) and not (
            isinstance(layer, scaling) and policy != "float32"
        ):
            config["dtype"] = policy
        return layer.__class__.from_config(config)

    def call(layer, first, *others, **options):
        first = prepared if first is inputs else first
        output = layer(first, *others, **options)
        if layer.name in (stages or {}):
            output = keras.layers.Identity(name=stages[layer.name])(output)
        return output

    listed = isinstance(model, keras.Sequential) or isinstance(model.input, list)
    copy = keras.models.clone_model(
        model,
        input_tensors=[inputs] if listed else inputs,
        clone_function=in_its_policy,
        # Keras refuses one for a Sequential model.
        call_function=None if isinstance(model, keras.Sequential) else call,
        recursive=True,
    )
    copy_weights(model, copy)
    return copy


def _stages(backbone, input_shape):
    """Names of the last layers at the last four resolutions, and of their stages.

    Args:
        backbone: functional `keras.Model` that takes images of any size.
        input_shape: its input shape without the batch.

    Returns:
        Dict from the name of a layer to `stage1` to `stage4`; empty for a network of
        fewer resolutions or with layers of these names.

    Raises:
        ValueError: if it takes one size after all, as a nested model may.
    """
    if tuple(backbone.input_shape[1:3]) != (None, None):
        backbone = _copy(backbone, input_shape, "float32")
    layers = [
        layer
        for layer in backbone.layers
        # The output of a nested model belongs to that model's own graph.
        if not isinstance(layer, (keras.layers.ZeroPadding2D, keras.Model))
        and not isinstance(layer.output, list)
        and len(layer.output.shape) == 4
    ]
    outputs = [layer.output for layer in layers] + backbone.outputs
    images = keras.KerasTensor([1, _REFERENCE, _REFERENCE, input_shape[-1]])
    *maps, _ = keras.Model(backbone.inputs[0], outputs).compute_output_spec(images)
    found = {}
    for layer, spec in zip(layers, maps, strict=True):
        found[spec.shape[1]] = layer.name
    found.pop(1, None)  # pooled over the whole image
    names = [found[side] for side in sorted(found, reverse=True)][-_STAGES:]
    stages = {name: f"stage{number}" for number, name in enumerate(names, 1)}
    taken = {layer.name for layer in backbone.layers}
    if len(names) < _STAGES or taken & set(stages.values()):
        return {}
    return stages
