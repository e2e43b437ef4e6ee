"""A network and a view that are quick to trace, for tests of everything around them."""

import keras

from ressl_keras import SGD, ReSSL, build_projector, views


def build_backbone(
    name=None,
    input_shape=(8, 8, 3),
    width=4,
    synchronized=False,
    patch_size=None,
    with_preprocessing=False,
):
    """One convolution and one batch norm, in place of any named backbone."""
    images = keras.Input(input_shape)
    x = keras.layers.Conv2D(width, 3, padding="same", use_bias=False)(images)
    x = keras.layers.BatchNormalization(momentum=0.9, synchronized=synchronized)(x)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
    return keras.Model(images, x)


def build_view(size=8, scale=(0.2, 1.0)):
    """A crop, in place of all that a strong view does."""
    return views.View([views.RandomResizedCropAndFlip(size, scale)])


def build_model(kind=ReSSL, crops=1, queue_size=20, **options):
    """A model on images of 8 pixels with embeddings of length 6, compiled."""
    model = kind(
        build_backbone(),
        build_projector(4, 16, 6),
        views.weak_view(8),
        [build_view() for _ in range(crops)],
        queue_size=queue_size,
        **options,
    )
    model.compile(SGD(0.03), jit_compile=False)
    return model
