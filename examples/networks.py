"""Networks of one's own, as a flag and from Python.

ressl-train --recipe=cifar10_cpu --backbone=examples.networks:conv_mixer
"""

import keras

from ressl_keras import build_backbone


def conv_mixer(input_shape, dim=96, blocks=6, patch_size=2, kernel_size=5):
    """A ConvMixer (arXiv 2201.09792): patches mixed in space and over channels in turn.

    Args:
        input_shape: (height, width, channels).
        dim: channels of every block.
        blocks: number of blocks.
        patch_size: side of the patches in pixels.
        kernel_size: side of the depthwise convolutions in patches.

    Returns:
        A functional `keras.Model` from images to maps; a run averages them to features
        [batch, dim].
    """
    images = keras.Input(input_shape)
    x = _activated(keras.layers.Conv2D(dim, patch_size, strides=patch_size)(images))
    for _ in range(blocks):
        mixed = keras.layers.DepthwiseConv2D(kernel_size, padding="same")(x)
        x = keras.layers.Add()([x, _activated(mixed)])
        x = _activated(keras.layers.Conv2D(dim, 1)(x))
    return keras.Model(images, x, name="conv_mixer")


def half_resolution(input_shape, width=8):
    """A small ResNet of ten layers on patches of 2 by 2 pixels: a quarter of the work.

    Args:
        input_shape: (height, width, channels), height and width even.
        width: channels of the first stage.

    Returns:
        A functional `keras.Model` from images to features [batch, 8 * width].
    """
    images = keras.Input(input_shape)
    patches = keras.layers.Conv2D(4 * input_shape[-1], 2, strides=2)(images)
    shape = (None, None, patches.shape[-1])  # an export takes images of any size then
    resnet = build_backbone("resnet10_small", shape, width=width)
    return keras.Model(images, resnet(patches), name="half_resolution")


def _activated(x):
    return keras.layers.BatchNormalization()(keras.layers.Activation("gelu")(x))
