"""Augmented views: what the teacher and the student see of an image.

The first half are deterministic functions on batches of float images in 0-1, each
matched to what the paper's recipe does through torchvision and Pillow. The second half
are Keras layers that draw the parameters, one draw an image, and `weak_view` and
`strong_view`, which put them together as in the paper (arXiv 2107.09282, section 4).

Randomness is stateless: a draw is a function of the seed and of the image's place in
the global batch, so a step can be repeated exactly, on any number of replicas.
"""

import keras
import tensorflow as tf

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def _per_image(values, like):
    """A scalar or [batch] of factors, shaped to broadcast over [batch, h, w, c]."""
    values = tf.cast(values, like.dtype)
    return tf.reshape(values, [-1, 1, 1, 1]) if values.shape.rank else values


def _blend(images, other, factor):
    factor = _per_image(factor, images)
    return tf.clip_by_value(factor * images + (1 - factor) * other, 0.0, 1.0)


def rgb_to_grayscale(images):
    """Luma of each pixel, repeated over three channels.

    Args:
        images: float tensor [batch, height, width, 3] in 0-1.

    Returns:
        Tensor of the same shape and dtype.
    """
    return tf.repeat(tf.image.rgb_to_grayscale(images), 3, axis=-1)


def adjust_brightness(images, factor):
    """Multiplies every pixel by `factor`.

    Args:
        images: float tensor [batch, height, width, 3] in 0-1.
        factor: number or tensor [batch]; 1 changes nothing, 0 is black.

    Returns:
        Tensor of the same shape and dtype, clipped to 0-1.
    """
    return _blend(images, 0.0, factor)


def adjust_contrast(images, factor):
    """Moves every pixel away from the image's mean luma.

    Args:
        images: float tensor [batch, height, width, 3] in 0-1.
        factor: number or tensor [batch]; 1 changes nothing, 0 is uniform gray.

    Returns:
        Tensor of the same shape and dtype, clipped to 0-1.
    """
    luma = tf.image.rgb_to_grayscale(images)
    return _blend(images, tf.reduce_mean(luma, axis=[1, 2], keepdims=True), factor)


def adjust_saturation(images, factor):
    """Moves every pixel away from its own luma.

    Args:
        images: float tensor [batch, height, width, 3] in 0-1.
        factor: number or tensor [batch]; 1 changes nothing, 0 is grayscale.

    Returns:
        Tensor of the same shape and dtype, clipped to 0-1.
    """
    return _blend(images, tf.image.rgb_to_grayscale(images), factor)


def adjust_hue(images, shift):
    """Turns the hue of every pixel.

    Args:
        images: float tensor [batch, height, width, 3] in 0-1.
        shift: number or tensor [batch] in full turns, -0.5 to 0.5; 0 changes nothing.

    Returns:
        Tensor of the same shape and dtype.
    """
    hue, saturation, value = tf.split(tf.image.rgb_to_hsv(images), 3, axis=-1)
    hue = tf.math.floormod(hue + _per_image(shift, images), 1.0)
    return tf.image.hsv_to_rgb(tf.concat([hue, saturation, value], axis=-1))


def _filter_separably(images, rows, columns):
    """Applies one matrix to the rows and one to the columns of each image.

    Per-image resampling and per-image blurring are both linear and separable, and two
    batched matrix products run them well on every device.

    Args:
        images: float tensor [batch, height, width, channels].
        rows: float tensor [batch, out height, height].
        columns: float tensor [batch, out width, width].

    Returns:
        Tensor [batch, out height, out width, channels].
    """
    images = tf.einsum("boh,bhwc->bowc", rows, images)
    return tf.einsum("bpw,bowc->bopc", columns, images)


def gaussian_blur(images, sigma):
    """Blurs each image with its own Gaussian; borders repeat the edge pixel.

    Args:
        images: float tensor [batch, height, width, channels].
        sigma: number or tensor [batch], standard deviation in pixels; 0 changes
            nothing.

    Returns:
        Tensor of the same shape and dtype.
    """
    sigma = tf.broadcast_to(tf.cast(sigma, images.dtype), tf.shape(images)[:1])

    def matrix(length):
        # The mass that a Gaussian around pixel i has on each pixel j; what falls
        # outside belongs to the edge pixels. From differences of its integral, which
        # stays exact for a sigma far below a pixel.
        pixels = tf.range(length, dtype=images.dtype)
        scale = tf.maximum(sigma, 1e-3)[:, tf.newaxis, tf.newaxis] * 2.0**0.5
        edges = pixels[tf.newaxis, :-1] + 0.5 - pixels[:, tf.newaxis]
        below = 0.5 + 0.5 * tf.math.erf(edges[tf.newaxis] / scale)
        below = tf.pad(below, [[0, 0], [0, 0], [1, 0]])
        below = tf.pad(below, [[0, 0], [0, 0], [0, 1]], constant_values=1)
        return below[:, :, 1:] - below[:, :, :-1]

    height, width = tf.shape(images)[1], tf.shape(images)[2]
    return _filter_separably(images, matrix(height), matrix(width))


def _resampling_matrix(start, length, flip, source, target, dtype):
    """Weights [batch, target, source] of a triangle filter over part of an axis.

    As in Pillow: pixel centres at halves, the filter as wide as the scale when
    shrinking, and nothing outside the part [start, start + length) has weight.
    """
    start = tf.cast(start, dtype)[:, tf.newaxis, tf.newaxis]
    length = tf.cast(length, dtype)[:, tf.newaxis, tf.newaxis]
    scale = length / tf.cast(target, dtype)
    outputs = (tf.range(target, dtype=dtype) + 0.5)[:, tf.newaxis]
    centres = start + outputs * scale
    pixels = tf.range(source, dtype=dtype) + 0.5
    weights = tf.nn.relu(1 - tf.abs(pixels - centres) / tf.maximum(scale, 1))
    inside = (pixels > start) & (pixels < start + length)
    weights = tf.where(inside, weights, 0)
    weights /= tf.reduce_sum(weights, axis=-1, keepdims=True)
    return tf.where(flip[:, tf.newaxis, tf.newaxis], weights[:, ::-1], weights)


def resized_crop(images, boxes, size, flip=False):
    """Cuts a box out of each image and resizes it, bilinear with antialiasing.

    Args:
        images: float tensor [batch, height, width, channels].
        boxes: tensor [batch, 4] or [4]: top, left, height, width in pixels.
        size: side of the square result in pixels, or (height, width).
        flip: bool or bool tensor [batch]: mirror the result left to right.

    Returns:
        Tensor [batch, *size, channels] of the same dtype.
    """
    out_height, out_width = (size, size) if isinstance(size, int) else size
    batch, height, width = tf.unstack(tf.shape(images)[:3])
    boxes = tf.broadcast_to(tf.convert_to_tensor(boxes), [batch, 4])
    top, left, box_height, box_width = tf.unstack(boxes, axis=-1)
    unflipped, flip = tf.zeros([batch], bool), tf.broadcast_to(flip, [batch])
    return _filter_separably(
        images,
        _resampling_matrix(
            top, box_height, unflipped, height, out_height, images.dtype
        ),
        _resampling_matrix(left, box_width, flip, width, out_width, images.dtype),
    )


def sample_crop_boxes(uniform, height, width, scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3)):
    """Boxes of random area and aspect, as torchvision's RandomResizedCrop draws them.

    Ten candidates are drawn for each image and the first that fits is taken; if none
    fits, the largest central box of an allowed aspect.

    Args:
        uniform: float tensor [batch, 22] of uniform draws in [0, 1).
        height: height of the images in pixels, integer or scalar tensor.
        width: width of the images in pixels, integer or scalar tensor.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width/height.

    Returns:
        int32 tensor [batch, 4]: top, left, height, width in pixels.
    """
    height, width = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    area_draws, ratio_draws = uniform[:, :10], uniform[:, 10:20]
    area = height * width * (scale[0] + (scale[1] - scale[0]) * area_draws)
    log_ratio = tf.math.log(tf.constant(ratio, tf.float32))
    aspect = tf.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * ratio_draws)
    candidate_widths = tf.round(tf.sqrt(area * aspect))
    candidate_heights = tf.round(tf.sqrt(area / aspect))
    fits = (
        (candidate_widths >= 1)
        & (candidate_widths <= width)
        & (candidate_heights >= 1)
        & (candidate_heights <= height)
    )
    first = tf.argmax(tf.cast(fits, tf.int32), axis=-1)
    box_width = tf.gather(candidate_widths, first, axis=-1, batch_dims=1)
    box_height = tf.gather(candidate_heights, first, axis=-1, batch_dims=1)
    found = tf.reduce_any(fits, axis=-1)
    largest_width = tf.minimum(width, tf.round(height * ratio[1]))
    largest_height = tf.minimum(height, tf.round(width / ratio[0]))
    box_width = tf.where(found, box_width, largest_width)
    box_height = tf.where(found, box_height, largest_height)
    place = tf.where(found[:, tf.newaxis], uniform[:, 20:], 0.5)
    top = tf.floor(place[:, 0] * (height - box_height + 1))
    left = tf.floor(place[:, 1] * (width - box_width + 1))
    return tf.cast(tf.stack([top, left, box_height, box_width], axis=-1), tf.int32)


def fold(view, while_reading=False):
    """Number to fold into a step's seed for the draws of one of its views.

    A view may be made in two parts, the crop while reading and the rest on the device,
    which must not draw the same.

    Args:
        view: 0 for the teacher's view, from 1 on for the student's.
        while_reading: which of the two parts.

    Returns:
        An integer.
    """
    return view // 2 * 4 + view % 2 + 2 * while_reading


def _uniform(seed, images, first, count):
    """Draws [batch, count] in [0, 1): row i belongs to example `first` + i.

    Rows before `first` are drawn and dropped: a few numbers, and the draws of an
    example do not depend on how the global batch is spread over replicas.
    """
    batch, first = tf.shape(images)[0], tf.cast(first, tf.int32)
    # Named, because the default algorithm differs from device to device. XLA lays the
    # same algorithm out differently, so compiled views draw other numbers; there is
    # one replica then, and `first` is 0.
    return tf.random.stateless_uniform([first + batch, count], seed, alg="philox")[
        first:
    ]


class _RandomOperation(keras.layers.Layer):
    """What all operations share: float images in 0-1 and a seed in, images out."""

    def __init__(self, **kwargs):
        # Half precision is too coarse for pixels; `View` casts once at the end.
        super().__init__(autocast=False, **kwargs)

    def compute_output_shape(self, images_shape, **kwargs):
        return images_shape


@keras.saving.register_keras_serializable("ressl_keras")
class RandomResizedCropAndFlip(_RandomOperation):
    """Random box, resized to a square, mirrored in half of the cases.

    Args:
        size: side of the result in pixels.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width/height.
        flip: probability of mirroring left to right.
    """

    def __init__(
        self, size, scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, **kwargs
    ):
        super().__init__(**kwargs)
        self.size, self.flip = int(size), float(flip)
        self.scale, self.ratio = tuple(scale), tuple(ratio)

    def call(self, images, seed, first=0):
        uniform = _uniform(seed, images, first, 23)
        _, height, width, _ = tf.unstack(tf.shape(images))
        boxes = sample_crop_boxes(
            uniform[:, :22], height, width, self.scale, self.ratio
        )
        return resized_crop(images, boxes, self.size, uniform[:, 22] < self.flip)

    def compute_output_shape(self, images_shape, **kwargs):
        return (images_shape[0], self.size, self.size, images_shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "size": self.size,
            "scale": self.scale,
            "ratio": self.ratio,
            "flip": self.flip,
        }


@keras.saving.register_keras_serializable("ressl_keras")
class RandomColorJitter(_RandomOperation):
    """Brightness, contrast, saturation and hue, in a random order.

    Keras' and KerasCV's layers of this kind add to the brightness, keep one order and
    jitter every image; the paper's recipe multiplies, shuffles and spares some.

    Args:
        brightness: factors are drawn from [1 - brightness, 1 + brightness].
        contrast: likewise.
        saturation: likewise.
        hue: shifts are drawn from [-hue, hue], in full turns.
        probability: share of the images that are changed.
    """

    def __init__(
        self,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
        probability=0.8,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.brightness, self.contrast = float(brightness), float(contrast)
        self.saturation, self.hue = float(saturation), float(hue)
        self.probability = float(probability)

    def call(self, images, seed, first=0):
        uniform = _uniform(seed, images, first, 9)
        apply = uniform[:, 0] < self.probability
        strengths = tf.stack([self.brightness, self.contrast, self.saturation])
        factors = 1 + strengths * (2 * uniform[:, 1:4] - 1)
        factors = tf.where(apply[:, tf.newaxis], factors, 1.0)
        shift = tf.where(apply, self.hue * (2 * uniform[:, 4] - 1), 0.0)
        # Ranks of four uniform draws are a random order. Three of the four operations
        # blend with something (black, the mean, the luma), so a place in the order is
        # one blend for the whole batch, with a factor of 1 for images whose hue comes
        # there; the hue itself, which is dear, is computed once.
        order = tf.argsort(uniform[:, 5:9], axis=-1)
        hue_place = tf.argmax(tf.cast(order == 3, tf.int32), axis=-1)
        factors = tf.gather(tf.pad(factors, [[0, 0], [0, 1]]), order, batch_dims=1)
        for place in range(3):
            before = hue_place > place
            images = self._blend_with(images, order, factors, place, before)
        images = adjust_hue(images, shift)
        for place in range(1, 4):
            after = hue_place < place
            images = self._blend_with(images, order, factors, place, after)
        return images

    def _blend_with(self, images, order, factors, place, active):
        kind = _per_image(order[:, place], order)
        luma = tf.image.rgb_to_grayscale(images)
        mean = tf.reduce_mean(luma, axis=[1, 2], keepdims=True)
        other = tf.where(kind == 0, 0.0, tf.where(kind == 1, mean, luma))
        return _blend(images, other, tf.where(active, factors[:, place], 1.0))

    def get_config(self):
        return {
            **super().get_config(),
            "brightness": self.brightness,
            "contrast": self.contrast,
            "saturation": self.saturation,
            "hue": self.hue,
            "probability": self.probability,
        }


@keras.saving.register_keras_serializable("ressl_keras")
class RandomGrayscale(_RandomOperation):
    """Takes the colour out of some images.

    Args:
        probability: share of the images that are changed.
    """

    def __init__(self, probability=0.2, **kwargs):
        super().__init__(**kwargs)
        self.probability = float(probability)

    def call(self, images, seed, first=0):
        apply = _uniform(seed, images, first, 1)[:, 0] < self.probability
        return adjust_saturation(images, tf.where(apply, 0.0, 1.0))

    def get_config(self):
        return {**super().get_config(), "probability": self.probability}


@keras.saving.register_keras_serializable("ressl_keras")
class RandomGaussianBlur(_RandomOperation):
    """Blurs some images, each with a sigma of its own.

    Args:
        sigma: smallest and largest standard deviation in pixels.
        probability: share of the images that are changed.
    """

    def __init__(self, sigma=(0.1, 2.0), probability=0.5, **kwargs):
        super().__init__(**kwargs)
        self.sigma, self.probability = tuple(sigma), float(probability)

    def call(self, images, seed, first=0):
        uniform = _uniform(seed, images, first, 2)
        sigma = self.sigma[0] + (self.sigma[1] - self.sigma[0]) * uniform[:, 1]
        apply = uniform[:, 0] < self.probability
        return gaussian_blur(images, tf.where(apply, sigma, 0.0))

    def get_config(self):
        return {
            **super().get_config(),
            "sigma": self.sigma,
            "probability": self.probability,
        }


@keras.saving.register_keras_serializable("ressl_keras")
class View(keras.layers.Layer):
    """Random operations one after the other, then normalisation.

    Works on batches, inside `tf.data` and on the device alike. Outside training the
    operations are left out and the image is only normalised.

    Args:
        operations: list of layers called as `operation(images, seed=, first=)` on
            float images in 0-1.
        mean: mean of each channel, on the scale 0-1.
        std: standard deviation of each channel, on the scale 0-1.
        seed: integer seed of the draws when a call brings none.

    Call arguments:
        images: uint8 tensor [batch, height, width, 3], or float in 0-255.
        training: whether to augment.
        seed: integer tensor [2]; the same seed repeats the same draws. Without one,
            the layer counts its own calls.
        first: place of the first image in the global batch.

    Returns:
        Normalised images in the layer's compute dtype.
    """

    def __init__(self, operations, mean=MEAN, std=STD, seed=0, **kwargs):
        # Inputs are uint8 and must not be cast to a half precision before 1/255.
        super().__init__(autocast=False, **kwargs)
        self.operations = [
            keras.saving.deserialize_keras_object(op) if isinstance(op, dict) else op
            for op in operations
        ]
        self.mean, self.std, self.seed = tuple(mean), tuple(std), seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, images, training=False, seed=None, first=0):
        images = tf.cast(images, tf.float32) / 255
        if training:
            if seed is None:
                seed = tf.cast(self.seed_generator.next(), tf.int32)
            for index, operation in enumerate(self.operations):
                fold = tf.random.experimental.stateless_fold_in(seed, index)
                images = operation(images, seed=fold, first=first)
        return tf.cast((images - self.mean) / self.std, self.compute_dtype)

    def compute_output_shape(self, images_shape, **kwargs):
        for operation in self.operations:
            images_shape = operation.compute_output_shape(images_shape)
        return images_shape

    def get_config(self):
        return {
            **super().get_config(),
            "operations": [
                keras.saving.serialize_keras_object(op) for op in self.operations
            ],
            "mean": self.mean,
            "std": self.std,
            "seed": self.seed,
        }


def weak_view(size, scale=(0.2, 1.0), **kwargs):
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


def strong_view(size, scale=(0.2, 1.0), **kwargs):
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


def crop_scale(size, image_size):
    """Shares of the image's area that a crop of the multi-crop recipe may cover.

    They shrink with the side of the crop, so that its pixels stay about as large: 0.2-1
    for 224 of 224 pixels, 0.086-0.429 for 96. The paper's figures are rounded; other
    sizes are given the same proportion.

    Args:
        size: side of the crop in pixels.
        image_size: side of the teacher's view in pixels.

    Returns:
        (smallest, largest) share.
    """
    largest = _PAPER_CROPS.get(size / image_size, min(size / image_size, 1.0))
    return round(0.2 * largest, 3), largest


# Side of a crop as a share of the teacher's, and the largest area (arXiv 2107.09282).
_PAPER_CROPS = {192 / 224: 0.86, 160 / 224: 0.715, 128 / 224: 0.571, 96 / 224: 0.429}


def crops_and_flips(image_size, crops=None):
    """The parts of all views that move pixels: the teacher's, then the student's.

    Args:
        image_size: side of the teacher's view in pixels.
        crops: sides of the student's views; by default one like the teacher's.

    Returns:
        List of `RandomResizedCropAndFlip`.
    """
    return [
        RandomResizedCropAndFlip(size, crop_scale(size, image_size))
        for size in (image_size, *(crops or [image_size]))
    ]


def photometric_operations():
    """The part of the strong view that leaves every pixel in its place."""
    return [RandomColorJitter(), RandomGrayscale(), RandomGaussianBlur()]
