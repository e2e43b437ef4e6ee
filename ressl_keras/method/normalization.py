"""Batch norm in training by TensorFlow's fused kernel.

In training, Keras 3.15's `BatchNormalization` is a dozen float32 operations, each a
pass over the images: a cast, two moments, a normalisation, a cast back, and their
gradients. TensorFlow has one kernel for all of it (oneDNN on CPUs, cuDNN on GPUs). It
reads half precision directly and computes the statistics in float32.
"""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("ressl_keras")
class FusedBatchNormalization(keras.layers.Wrapper):
    """Batch norm by the fused kernel, with the variables of a Keras layer.

    It has no weights of its own: scale, offset and moving averages belong to the
    wrapped layer, which can be used by itself. In training mode, inputs of rank 4 go
    through the kernel. What the kernel does not support (inference, other ranks,
    float64, masks, statistics over replicas, renormalisation) goes through the wrapped
    layer.

    The kernel returns the unbiased variance of the batch, n / (n - 1) times the biased
    variance that it normalises by. The moving average takes the biased one, as Keras'
    layer does, so that an encoder is the same with either.

    Args:
        layer: `keras.layers.BatchNormalization`, built or not.
        **kwargs: further arguments of `keras.layers.Layer`. Name and dtype policy are
            the wrapped layer's by default.

    Call arguments:
        inputs: float tensor, [batch, height, width, channels] for the kernel, or with
            the channels second if that is the wrapped layer's axis.
        training: whether to normalise by the batch and update the averages. As in
            Keras, a layer that is not trainable always normalises by the averages.
        mask: as of the wrapped layer.

    Returns:
        Tensor like the inputs, in the layer's compute dtype.

    Example:

    >>> norm = keras.layers.BatchNormalization()
    >>> outputs = FusedBatchNormalization(norm)(tf.ones([8, 4, 4, 3]), training=True)
    >>> norm.moving_mean  # updated
    """

    def __init__(self, layer, **kwargs):
        kwargs.setdefault("name", layer.name)
        kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(layer, **kwargs)
        self.supports_masking = True

    @property
    def trainable(self):
        """That of the wrapped layer."""
        return self.layer.trainable

    @trainable.setter
    def trainable(self, value):
        self.layer.trainable = value

    def call(self, inputs, training=None, mask=None):
        fused = mask is None and self._has_kernel(inputs)
        if not (training and self.trainable and fused):
            return self.layer(inputs, training=training, mask=mask)

        norm = self.layer
        channels = norm.moving_mean.shape
        outputs, mean, unbiased, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.ones(channels) if norm.gamma is None else norm.gamma,
            offset=tf.zeros(channels) if norm.beta is None else norm.beta,
            mean=tf.zeros([0]),  # the averages are updated below
            variance=tf.zeros([0]),
            epsilon=norm.epsilon,
            data_format="NCHW" if norm.axis % 4 == 1 else "NHWC",
            is_training=True,
        )
        count = tf.size(inputs, tf.int64) // channels[0]
        # Of a single pixel the kernel's variance is 0, and so is the biased one.
        to_biased = tf.cast((count - 1) / count, tf.float32)
        self._update(norm.moving_mean, mean)
        self._update(norm.moving_variance, unbiased * to_biased)
        return outputs

    def _has_kernel(self, inputs):
        norm = self.layer
        return (
            len(inputs.shape) == 4
            and norm.axis % 4 in (1, 3)
            and inputs.dtype in (tf.float32, tf.bfloat16, tf.float16)
            and norm.moving_mean.dtype == "float32"
            and not norm.synchronized
            and not norm.renorm
        )

    def _update(self, average, value):
        momentum = self.layer.momentum
        average.assign(average * momentum + value * (1.0 - momentum))

    def compute_output_shape(self, input_shape):
        return input_shape


def fuse_batch_norms(model):
    """A second graph over the layers of a network, with fused batch norms.

    Every `keras.layers.BatchNormalization` is wrapped in a `FusedBatchNormalization`,
    also in nested models. All other layers are shared. The network itself does not
    change and holds only Keras' layers: train the result, save the network.

    Args:
        model: functional or Sequential `keras.Model`. A subclassed model, whose graph
            is not known, is returned as it is.

    Returns:
        A `keras.Model` with the same inputs, outputs and variables, in the same order;
        or `model` itself if there is nothing to wrap.

    Example:

    >>> fused = fuse_batch_norms(backbone)
    >>> fused(images, training=True)  # updates the averages of `backbone`
    >>> backbone.save("backbone.keras")
    """
    kinds = (keras.Sequential, type(keras.Model(*[keras.Input([1])] * 2)))
    if not any(isinstance(model, kind) and _called_as(model, kind) for kind in kinds):
        return model
    wrapped = {id(layer): _wrap(layer) for layer in model.layers}
    if all(wrapped[id(layer)] is layer for layer in model.layers):
        return model
    # A graph also has operations, such as additions, which need no wrapper.
    return keras.models.clone_model(
        model, clone_function=lambda node: wrapped.get(id(node), node)
    )


def _called_as(model, kind):
    return type(model).call is kind.call


def _wrap(layer):
    """A layer with its batch norm fused, or the layer itself."""
    if isinstance(layer, keras.Model):
        return fuse_batch_norms(layer)
    # Not subclasses, which may compute something else.
    plain = type(layer) is keras.layers.BatchNormalization
    if plain and not (layer.synchronized or layer.renorm):
        return FusedBatchNormalization(layer)
    return layer
