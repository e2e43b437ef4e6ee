"""Augmented views (arXiv 2107.09282, section 4): the weak and the strong view, and the
operations that they are made of, on channels-last batches.

The functions take and return float images [batch, height, width, channels] in 0-1. The
layers compute the same on planes, see `image_ops`.

Example:

>>> images = tf.zeros([8, 32, 32, 3], tf.uint8)
>>> views.strong_view(32)(images, training=True).shape
TensorShape([8, 32, 32, 3])
"""

from collections.abc import Sequence

import tensorflow as tf

from ressl_keras.augmentation import image_ops
from ressl_keras.augmentation.layers import (
    MEAN,
    STD,
    RandomColorJitter,
    RandomGaussianBlur,
    RandomGrayscale,
    RandomResizedCropAndFlip,
    RandomSolarize,
    RandomTurn,
    View,
    photometric_operations,
)

__all__ = [
    "MEAN",
    "STD",
    "RandomColorJitter",
    "RandomGaussianBlur",
    "RandomGrayscale",
    "RandomResizedCropAndFlip",
    "RandomSolarize",
    "RandomTurn",
    "View",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "crop_scale",
    "gaussian_blur",
    "photometric_operations",
    "resized_crop",
    "rgb_to_grayscale",
    "strong_view",
    "weak_view",
]


def _on_planes(operation, images, *arguments):
    """Applies an operation of `image_ops` to channels-last images."""
    planes = tf.transpose(tf.convert_to_tensor(images), [0, 3, 1, 2])
    return tf.transpose(operation(planes, *arguments), [0, 2, 3, 1])


def adjust_brightness(images, factor):
    """Multiplies every pixel by `factor`.

    Args:
        images: float tensor [batch, height, width, 3] in 0-1.
        factor: number or tensor [batch]; 1 changes nothing, 0 is black.

    Returns:
        Tensor of the same shape and dtype, clipped to 0-1.
    """
    return _on_planes(image_ops.adjust_brightness, images, factor)


def adjust_contrast(images, factor):
    """Blends every pixel with the image's mean luma.

    Args:
        images: float tensor [batch, height, width, 3] in 0-1.
        factor: number or tensor [batch]; 1 changes nothing, 0 is uniform gray.

    Returns:
        Tensor of the same shape and dtype, clipped to 0-1.
    """
    return _on_planes(image_ops.adjust_contrast, images, factor)


def adjust_saturation(images, factor):
    """Blends every pixel with its own luma.

    Args:
        images: float tensor [batch, height, width, 3] in 0-1.
        factor: number or tensor [batch]; 1 changes nothing, 0 is grayscale.

    Returns:
        Tensor of the same shape and dtype, clipped to 0-1.
    """
    return _on_planes(image_ops.adjust_saturation, images, factor)


def adjust_hue(images, shift):
    """Rotates the hue of every pixel.

    Args:
        images: float tensor [batch, height, width, 3] in 0-1.
        shift: number or tensor [batch] in full turns, -0.5 to 0.5; 0 changes nothing.

    Returns:
        Tensor of the same shape and dtype.
    """
    return _on_planes(image_ops.adjust_hue, images, shift)


def rgb_to_grayscale(images):
    """Luma of each pixel, repeated over three channels.

    Args:
        images: float tensor [batch, height, width, 3] in 0-1.

    Returns:
        Tensor of the same shape and dtype.
    """
    return _on_planes(image_ops.rgb_to_grayscale, images)


def gaussian_blur(images, sigma, radius=8):
    """Blurs each image with its own Gaussian; borders repeat the edge pixel.

    Args:
        images: float tensor [batch, height, width, channels].
        sigma: number or tensor [batch], standard deviation in pixels; 0 changes
            nothing.
        radius: pixels to each side within the kernel; four times the largest sigma
            leaves less than a thousandth of 1/255 outside.

    Returns:
        Tensor of the same shape and dtype.
    """
    return _on_planes(image_ops.gaussian_blur, images, sigma, radius)


def resized_crop(images, boxes, size, flip=False):
    """Cuts a box out of each image and resizes it, bilinear with antialiasing.

    Args:
        images: float tensor [batch, height, width, channels].
        boxes: tensor [batch, 4] or [4]: top, left, height, width in pixels.
        size: side of the square result in pixels, or (height, width).
        flip: bool or bool tensor [batch]: flip the result horizontally.

    Returns:
        Tensor [batch, *size, channels] of the same dtype.
    """
    return _on_planes(image_ops.resized_crop, images, boxes, size, flip)


def weak_view(size: int, scale: Sequence[float] = (0.2, 1.0), **kwargs) -> View:
    """The teacher's view: random resized crop and flip.

    Args:
        size: side of the result in pixels.
        scale: smallest and largest share of the image's area.
        **kwargs: further arguments of `View`.

    Returns:
        A `View`: uint8 batches in, normalised float batches [batch, size, size, 3] out.

    Example:

    >>> images = tf.zeros([8, 32, 32, 3], tf.uint8)
    >>> weak_view(32)(images, training=True).shape
    TensorShape([8, 32, 32, 3])
    """
    return View([RandomResizedCropAndFlip(size, scale)], **kwargs)


def strong_view(size: int, scale: Sequence[float] = (0.2, 1.0), **kwargs) -> View:
    """The student's view: the weak view and then jitter, grayscale and blur.

    Args:
        size: side of the result in pixels.
        scale: smallest and largest share of the image's area.
        **kwargs: further arguments of `View`.

    Returns:
        A `View`: uint8 batches in, normalised float batches [batch, size, size, 3] out.
    """
    return View(
        [RandomResizedCropAndFlip(size, scale), *photometric_operations()], **kwargs
    )


# Side of a crop as a share of the teacher's, and the largest area (arXiv 2107.09282).
_PAPER_CROPS = {192 / 224: 0.86, 160 / 224: 0.715, 128 / 224: 0.571, 96 / 224: 0.429}


def crop_scale(size, image_size, smallest=0.2):
    """Shares of the image's area that a crop of the multi-crop recipe may cover.

    They shrink with the side of the crop, so that its pixels stay about as large: 0.2-1
    for 224 of 224 pixels, 0.086-0.429 for 96. The paper's figures are rounded; other
    sizes are given the same proportion.

    Args:
        size: side of the crop in pixels.
        image_size: side of the teacher's view in pixels.
        smallest: smallest share as a part of the largest.

    Returns:
        (smallest, largest) share.
    """
    largest = _PAPER_CROPS.get(size / image_size, min(size / image_size, 1.0))
    return round(smallest * largest, 3), largest
