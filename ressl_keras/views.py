"""Augmented views: what the teacher and the student see of an image.

The first half are deterministic functions on batches of float images in 0-1, each
matched to what the paper's recipe does through torchvision and Pillow. The second half
are Keras layers that draw the parameters, one draw an image, and `weak_view` and
`strong_view`, which put them together as in the paper (arXiv 2107.09282, section 4).

All of them take images channels first: an operation on a plane of a colour fills a
processor's vector registers, one on pixels of three numbers does not. `View` takes and
returns pixels.

Randomness is stateless: a draw is a function of the seed and of the image's place in
the global batch, so a step can be repeated exactly, on any number of replicas.
"""

import math

import keras
import tensorflow as tf

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

_LUMA = (0.2989, 0.5870, 0.1140)
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)


def _kernel(function):
    """Compiles a function by itself, so that its arithmetic is one pass over memory.

    Not the whole view at once: the fusions of several of these would repeat work, and
    the products of matrices are faster as TensorFlow's own. Nothing random is drawn in
    here, because XLA draws other numbers.
    """
    return tf.function(
        function, jit_compile=True, autograph=False, reduce_retracing=True
    )


@_kernel
def to_planes(pixels):
    """Images as `View` takes them, as the functions of this module do.

    Args:
        pixels: uint8 tensor [batch, height, width, 3], or float in 0-255.

    Returns:
        float32 tensor [batch, 3, height, width] in 0-1.
    """
    return tf.transpose(tf.cast(pixels, tf.float32) / 255, [0, 3, 1, 2])


@_kernel
def to_pixels(planes, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)):
    """The way back, with the normalisation.

    Args:
        planes: float tensor [batch, 3, height, width] in 0-1.
        mean: mean of each channel.
        std: standard deviation of each channel.

    Returns:
        Tensor [batch, height, width, 3] of (planes - mean) / std.
    """
    channels = [1, 3, 1, 1]
    mean, std = tf.reshape(mean, channels), tf.reshape(std, channels)
    return tf.transpose((planes - mean) / std, [0, 2, 3, 1])


@_kernel
def _normalize(pixels, mean, std):
    return (tf.cast(pixels, tf.float32) / 255 - mean) / std


def _per_image(values, like):
    """A scalar or [batch] of factors as [batch], in the images' dtype."""
    return tf.broadcast_to(tf.cast(values, like.dtype), tf.shape(like)[:1])


def _luma(images):
    red, green, blue = tf.split(images, 3, axis=1)
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


@_kernel
def _blend(images, kind, factor):
    """Moves each image away from what its kind says: black, mean luma or luma."""
    kind, factor = (values[:, None, None, None] for values in (kind, factor))
    luma = _luma(images)
    mean = tf.reduce_mean(luma, axis=[2, 3], keepdims=True)
    other = tf.where(kind == _CONTRAST, mean, luma)
    other = tf.where(kind == _BRIGHTNESS, 0.0, other)
    return tf.clip_by_value(factor * images + (1 - factor) * other, 0.0, 1.0)


def _adjust(images, kind, factor):
    kind = tf.fill(tf.shape(images)[:1], kind)
    return _blend(images, kind, _per_image(factor, images))


def rgb_to_grayscale(images):
    """Luma of each pixel, repeated over three channels.

    Args:
        images: float tensor [batch, 3, height, width] in 0-1.

    Returns:
        Tensor of the same shape and dtype.
    """
    return _adjust(images, _SATURATION, 0.0)


def adjust_brightness(images, factor):
    """Multiplies every pixel by `factor`.

    Args:
        images: float tensor [batch, 3, height, width] in 0-1.
        factor: number or tensor [batch]; 1 changes nothing, 0 is black.

    Returns:
        Tensor of the same shape and dtype, clipped to 0-1.
    """
    return _adjust(images, _BRIGHTNESS, factor)


def adjust_contrast(images, factor):
    """Moves every pixel away from the image's mean luma.

    Args:
        images: float tensor [batch, 3, height, width] in 0-1.
        factor: number or tensor [batch]; 1 changes nothing, 0 is uniform gray.

    Returns:
        Tensor of the same shape and dtype, clipped to 0-1.
    """
    return _adjust(images, _CONTRAST, factor)


def adjust_saturation(images, factor):
    """Moves every pixel away from its own luma.

    Args:
        images: float tensor [batch, 3, height, width] in 0-1.
        factor: number or tensor [batch]; 1 changes nothing, 0 is grayscale.

    Returns:
        Tensor of the same shape and dtype, clipped to 0-1.
    """
    return _adjust(images, _SATURATION, factor)


def adjust_hue(images, shift):
    """Turns the hue of every pixel.

    Args:
        images: float tensor [batch, 3, height, width] in 0-1.
        shift: number or tensor [batch] in full turns, -0.5 to 0.5; 0 changes nothing.

    Returns:
        Tensor of the same shape and dtype.
    """
    return _turn_hue(images, _per_image(shift, images))


@_kernel
def _turn_hue(images, shift):
    # A hue is a place on a ring of six sides: red at 0, green at 2, blue at 4. The
    # chroma, largest less smallest channel, is the length of a side here, which saves
    # the divisions of going through HSV.
    red, green, blue = tf.unstack(images, axis=1)
    largest = tf.maximum(tf.maximum(red, green), blue)
    smallest = tf.minimum(tf.minimum(red, green), blue)
    side = largest - smallest
    place = tf.where(
        largest == red,
        green - blue,
        tf.where(largest == green, 2 * side + blue - red, 4 * side + red - green),
    )
    place += 6 * shift[:, None, None] * side

    def channel(centre):
        # The larger, the nearer the hue is to the channel's place: a distance of up to
        # nine sides, folded into the three that half of the ring has.
        nearness = abs(3 * side - abs(place - centre * side))
        nearness = abs(3 * side - abs(3 * side - nearness))
        return tf.clip_by_value(nearness - side + smallest, smallest, largest)

    return tf.stack([channel(0), channel(2), channel(4)], axis=1)


def gaussian_blur(images, sigma, radius=8):
    """Blurs each image with its own Gaussian; borders repeat the edge pixel.

    Args:
        images: float tensor [batch, channels, height, width].
        sigma: number or tensor [batch], standard deviation in pixels; 0 changes
            nothing.
        radius: pixels to each side that are looked at; the rest of the Gaussian falls
            on the outermost of them. Four times the largest sigma leaves less than a
            thousandth of 1/255.

    Returns:
        Tensor of the same shape and dtype.
    """
    # The mass of the Gaussian on each pixel, from differences of its integral, which
    # stays exact for a sigma far below a pixel.
    scale = tf.maximum(_per_image(sigma, images), 1e-3)[:, None] * 2.0**0.5
    edges = tf.range(-radius, radius, dtype=images.dtype) + 0.5
    below = 0.5 + 0.5 * tf.math.erf(edges / scale)
    below = tf.pad(below, [[0, 0], [1, 0]])
    below = tf.pad(below, [[0, 0], [0, 1]], constant_values=1)
    weights = below[:, 1:] - below[:, :-1]
    rows = tf.concat(
        [
            tf.repeat(images[:, :, :1], radius, axis=2),
            images,
            tf.repeat(images[:, :, -1:], radius, axis=2),
        ],
        axis=2,
    )
    images = _weighted_rows(rows, weights, radius)
    columns = tf.concat(
        [
            tf.repeat(images[..., :1], radius, axis=3),
            images,
            tf.repeat(images[..., -1:], radius, axis=3),
        ],
        axis=3,
    )
    return _weighted_columns(columns, weights, radius)


def _weighted(slices, weights):
    total = 0.0
    for i, images in enumerate(slices):
        total += weights[:, i, None, None, None] * images
    return total


@_kernel
def _weighted_rows(images, weights, radius):
    height = tf.shape(images)[2] - 2 * radius
    return _weighted(
        [images[:, :, i : i + height] for i in range(2 * radius + 1)], weights
    )


@_kernel
def _weighted_columns(images, weights, radius):
    width = tf.shape(images)[3] - 2 * radius
    return _weighted(
        [images[..., i : i + width] for i in range(2 * radius + 1)], weights
    )


def _resampling_matrix(start, length, flip, source, target):
    """Weights [batch, target, source] of a triangle filter over part of an axis.

    As in Pillow: pixel centres at halves, the filter as wide as the scale when
    shrinking, and nothing outside the part [start, start + length) has weight.
    """
    start, length = start[:, None, None], length[:, None, None]
    scale = length / tf.cast(target, length.dtype)
    outputs = tf.range(target)
    outputs = tf.where(flip[:, None], target - 1 - outputs, outputs)[:, :, None]
    centres = start + (tf.cast(outputs, start.dtype) + 0.5) * scale
    pixels = tf.cast(tf.range(source), start.dtype) + 0.5
    weights = tf.nn.relu(1 - tf.abs(pixels - centres) / tf.maximum(scale, 1))
    weights = tf.where((pixels > start) & (pixels < start + length), weights, 0)
    return weights / tf.reduce_sum(weights, axis=-1, keepdims=True)


@_kernel
def _resampling_matrices(images, boxes, flip, height, width):
    """For the rows and the columns of each image."""
    top, left, box_height, box_width = tf.unstack(tf.cast(boxes, images.dtype), axis=-1)
    _, _, rows, columns = tf.unstack(tf.shape(images))
    return (
        _resampling_matrix(top, box_height, tf.zeros_like(flip), rows, height),
        _resampling_matrix(left, box_width, flip, columns, width),
    )


def resized_crop(images, boxes, size, flip=False):
    """Cuts a box out of each image and resizes it, bilinear with antialiasing.

    Args:
        images: float tensor [batch, channels, height, width].
        boxes: tensor [batch, 4] or [4]: top, left, height, width in pixels.
        size: side of the square result in pixels, or (height, width).
        flip: bool or bool tensor [batch]: mirror the result left to right.

    Returns:
        Tensor [batch, channels, *size] of the same dtype.
    """
    height, width = (size, size) if isinstance(size, int) else size
    batch = tf.shape(images)[0]
    boxes = tf.broadcast_to(tf.convert_to_tensor(boxes), [batch, 4])
    flip = tf.broadcast_to(flip, [batch])
    # Resampling is linear and separable, and two batched products of matrices run it
    # well on every device.
    rows, columns = _resampling_matrices(images, boxes, flip, height, width)
    images = tf.matmul(rows[:, None], images)
    return tf.matmul(images, columns[:, None], transpose_b=True)


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


def _uniform(seed, batch, first, count):
    """Draws [batch, count] in [0, 1): row i belongs to example `first` + i.

    Rows before `first` are drawn and dropped: a few numbers, and the draws of an
    example do not depend on how the global batch is spread over replicas.
    """
    first = tf.cast(first, tf.int32)
    # Named, because the default algorithm differs from device to device. XLA lays the
    # same algorithm out differently, so compiled views draw other numbers; there is
    # one replica then, and `first` is 0.
    return tf.random.stateless_uniform([first + batch, count], seed, alg="philox")[
        first:
    ]


class _RandomOperation(keras.layers.Layer):
    """What all operations share: float images [batch, 3, height, width] in 0-1 and a
    seed in, images out."""

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

    def draw(self, seed, batch, first=0):
        """Uniform draws [batch, 23]; row i belongs to example `first` + i."""
        return _uniform(seed, batch, first, 23)

    def boxes(self, draws, height, width):
        """Boxes as of `sample_crop_boxes`, for images of this height and width."""
        return sample_crop_boxes(draws[:, :22], height, width, self.scale, self.ratio)

    def flips(self, draws):
        """Which images are mirrored, bool [batch]."""
        return draws[:, 22] < self.flip

    def call(self, images, seed, first=0):
        batch, _, height, width = tf.unstack(tf.shape(images))
        draws = self.draw(seed, batch, first)
        boxes = self.boxes(draws, height, width)
        return resized_crop(images, boxes, self.size, self.flips(draws))

    def compute_output_shape(self, images_shape, **kwargs):
        return (*images_shape[:2], self.size, self.size)

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
        uniform = _uniform(seed, tf.shape(images)[0], first, 9)
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
        hue_place = tf.argmax(tf.cast(order == _HUE, tf.int32), axis=-1)
        factors = tf.gather(tf.pad(factors, [[0, 0], [0, 1]]), order, batch_dims=1)

        def blend(images, place, active):
            factor = tf.where(active, factors[:, place], 1.0)
            return _blend(images, order[:, place], factor)

        for place in range(3):
            images = blend(images, place, hue_place > place)
        images = _turn_hue(images, shift)
        for place in range(1, 4):
            images = blend(images, place, hue_place < place)
        return images

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
        apply = _uniform(seed, tf.shape(images)[0], first, 1)[:, 0] < self.probability
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
        uniform = _uniform(seed, tf.shape(images)[0], first, 2)
        sigma = self.sigma[0] + (self.sigma[1] - self.sigma[0]) * uniform[:, 1]
        apply = uniform[:, 0] < self.probability
        sigma = tf.where(apply, sigma, 0.0)
        return gaussian_blur(images, sigma, radius=math.ceil(4 * self.sigma[1]))

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
            float images [batch, 3, height, width] in 0-1.
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
        if not training:
            # No kernel here: encoders take this into files for other runtimes.
            images = tf.cast(images, tf.float32) / 255
            return tf.cast((images - self.mean) / self.std, self.compute_dtype)
        if not self.operations:
            images = _normalize(images, self.mean, self.std)
            return tf.cast(images, self.compute_dtype)
        if seed is None:
            seed = tf.cast(self.seed_generator.next(), tf.int32)
        planes = to_planes(images)
        for index, operation in enumerate(self.operations):
            fold = tf.random.experimental.stateless_fold_in(seed, index)
            planes = operation(planes, seed=fold, first=first)
        return tf.cast(to_pixels(planes, self.mean, self.std), self.compute_dtype)

    def compute_output_shape(self, images_shape, **kwargs):
        batch, height, width, channels = images_shape
        shape = (batch, channels, height, width)
        for operation in self.operations:
            shape = operation.compute_output_shape(shape)
        batch, channels, height, width = shape
        return (batch, height, width, channels)

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
