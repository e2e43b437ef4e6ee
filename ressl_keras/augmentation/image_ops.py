"""Operations on batches of planes: float images [batch, 3, height, width] in 0-1.

Each is deterministic and matched to what the paper's recipe does through torchvision
and Pillow. Channels come first because an operation on a plane of one colour fills a
processor's vector registers and an operation on pixels of three numbers does not.
`views` has the same functions for channels-last images.
"""

import functools

import tensorflow as tf

LUMA = (0.2989, 0.5870, 0.1140)
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
NO_JITTER = (1.0, 1.0, 1.0, 0.0)


def kernel(function):
    """Compiles a function with XLA, so that its arithmetic is one pass over memory.

    Not the whole view at once: fusing several of these would repeat work, and matrix
    products are faster as TensorFlow's own. Nothing random is drawn inside, because XLA
    draws other numbers.
    """
    return tf.function(
        function, jit_compile=True, autograph=False, reduce_retracing=True
    )


@kernel
def to_planes(pixels):
    """Converts channels-last images in 0-255 to planes in 0-1.

    Args:
        pixels: uint8 tensor [batch, height, width, 3], or float in 0-255.

    Returns:
        float32 tensor [batch, 3, height, width] in 0-1.
    """
    return tf.transpose(tf.cast(pixels, tf.float32) / 255, [0, 3, 1, 2])


@kernel
def to_pixels(planes, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)):
    """Converts planes to normalised channels-last images.

    Args:
        planes: float tensor [batch, 3, height, width] in 0-1.
        mean: mean of each channel.
        std: standard deviation of each channel.

    Returns:
        Tensor [batch, height, width, 3] of (planes - mean) / std.
    """
    channels = [1, -1, 1, 1]
    mean, std = tf.reshape(mean, channels), tf.reshape(std, channels)
    return tf.transpose((planes - mean) / std, [0, 2, 3, 1])


@kernel
def normalize(pixels, mean, std):
    """Normalises channels-last images in 0-255 without any other operation."""
    return (tf.cast(pixels, tf.float32) / 255 - mean) / std


@functools.cache
def one_by_one(operations, channels, in_planes):
    """A kernel that finishes the images of a batch one after the other.

    On a processor this is faster than an operation at a time: an image takes only those
    that its draws ask for, and stays in the cache from one to the next.

    Args:
        operations: tuple of functions of a batch of one image, as planes, and of their
            arguments for this image, such as `jitter_one`.
        channels: number of channels.
        in_planes: whether the images come as planes and not channels last.

    Returns:
        Function of images, of a tuple of the operations' arguments [batch, ...], and of
        the `mean` and `std` of `to_pixels`; it returns normalised channels-last images.
    """

    @kernel
    def finished(images, arguments, mean, std):
        def one(elements):
            image, arguments = tf.nest.map_structure(lambda t: t[tf.newaxis], elements)
            image = image if in_planes else to_planes(image)
            for operation, own in zip(operations, arguments):
                image = tf.ensure_shape(image, [1, channels, None, None])
                image = operation(image, *own)
            return to_pixels(image, mean, std)[0]

        pixels = tf.TensorSpec([None, None, channels], tf.float32)
        return tf.map_fn(one, (images, arguments), fn_output_signature=pixels)

    return finished


def _per_image(values, like):
    """A scalar or [batch] of factors as [batch], in the images' dtype."""
    return tf.broadcast_to(tf.cast(values, like.dtype), tf.shape(like)[:1])


def _luma(images):
    red, green, blue = tf.split(images, 3, axis=1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def blend(images, kind, factor):
    """Blends each image with black, its mean luma, or its luma, as its kind says."""
    of_channels = _blend_gray if images.shape[1] == 1 else _blend_colors
    return of_channels(images, kind, factor)


@kernel
def _blend_colors(images, kind, factor):
    return _blended(images, kind, factor, _luma(images))


@kernel
def _blend_gray(images, kind, factor):
    return _blended(images, kind, factor, images)  # gray is its own luma


def _blended(images, kind, factor, luma):
    kind, factor = (values[:, None, None, None] for values in (kind, factor))
    mean = tf.reduce_mean(luma, axis=[2, 3], keepdims=True)
    other = tf.where(kind == CONTRAST, mean, luma)
    other = tf.where(kind == BRIGHTNESS, 0.0, other)
    return tf.clip_by_value(factor * images + (1 - factor) * other, 0.0, 1.0)


def _adjust(images, kind, factor):
    kind = tf.fill(tf.shape(images)[:1], kind)
    return blend(images, kind, _per_image(factor, images))


def rgb_to_grayscale(images):
    """Luma of each pixel, repeated over three channels.

    Args:
        images: float tensor [batch, 3, height, width] in 0-1.

    Returns:
        Tensor of the same shape and dtype.
    """
    return _adjust(images, SATURATION, 0.0)


def adjust_brightness(images, factor):
    """Multiplies every pixel by `factor`.

    Args:
        images: float tensor [batch, 3, height, width] in 0-1.
        factor: number or tensor [batch]; 1 changes nothing, 0 is black.

    Returns:
        Tensor of the same shape and dtype, clipped to 0-1.
    """
    return _adjust(images, BRIGHTNESS, factor)


def adjust_contrast(images, factor):
    """Moves every pixel away from the image's mean luma.

    Args:
        images: float tensor [batch, 3, height, width] in 0-1.
        factor: number or tensor [batch]; 1 changes nothing, 0 is uniform gray.

    Returns:
        Tensor of the same shape and dtype, clipped to 0-1.
    """
    return _adjust(images, CONTRAST, factor)


def adjust_saturation(images, factor):
    """Moves every pixel away from its own luma.

    Args:
        images: float tensor [batch, 3, height, width] in 0-1.
        factor: number or tensor [batch]; 1 changes nothing, 0 is grayscale.

    Returns:
        Tensor of the same shape and dtype, clipped to 0-1.
    """
    return _adjust(images, SATURATION, factor)


def adjust_hue(images, shift):
    """Rotates the hue of every pixel.

    Args:
        images: float tensor [batch, 3, height, width] in 0-1.
        shift: number or tensor [batch] in full turns, -0.5 to 0.5; 0 changes nothing.

    Returns:
        Tensor of the same shape and dtype; gray images as they are.
    """
    if images.shape[1] == 1:
        return images
    return _turn_hue(images, _per_image(shift, images))


@kernel
def _turn_hue(images, shift):
    # A hue is a position on a ring of six sides: red at 0, green at 2, blue at 4. The
    # chroma, largest less smallest channel, is the length of a side here, which saves
    # the divisions of going through HSV.
    red, green, blue = tf.unstack(images, axis=1)
    largest = tf.maximum(tf.maximum(red, green), blue)
    smallest = tf.minimum(tf.minimum(red, green), blue)
    side = largest - smallest
    position = tf.where(
        largest == red,
        green - blue,
        tf.where(largest == green, 2 * side + blue - red, 4 * side + red - green),
    )
    position += 6 * shift[:, None, None] * side

    def channel(centre):
        # The larger, the nearer the hue is to the channel's centre: a distance of up to
        # nine sides, folded into the three of half the ring.
        nearness = abs(3 * side - abs(position - centre * side))
        nearness = abs(3 * side - abs(3 * side - nearness))
        return tf.clip_by_value(nearness - side + smallest, smallest, largest)

    return tf.stack([channel(0), channel(2), channel(4)], axis=1)


def gaussian_blur(images, sigma, radius=8):
    """Blurs each image with its own Gaussian; borders repeat the edge pixel.

    Args:
        images: float tensor [batch, channels, height, width].
        sigma: number or tensor [batch], standard deviation in pixels; 0 changes
            nothing.
        radius: pixels to each side within the kernel; the outermost carry the rest of
            the Gaussian. Four times the largest sigma leaves less than a thousandth of
            1/255.

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


@functools.cache
def gaussian_blur_one(radius):
    """The same for a batch of one image, which is spared if its sigma is 0."""

    def blur(image, sigma):
        blurred = functools.partial(gaussian_blur, image, sigma, radius)
        return tf.cond(sigma[0] > 0, blurred, lambda: image)

    return blur


def _weighted(slices, weights):
    total = 0.0
    for i, images in enumerate(slices):
        total += weights[:, i, None, None, None] * images
    return total


@kernel
def _weighted_rows(images, weights, radius):
    height = tf.shape(images)[2] - 2 * radius
    return _weighted(
        [images[:, :, i : i + height] for i in range(2 * radius + 1)], weights
    )


@kernel
def _weighted_columns(images, weights, radius):
    width = tf.shape(images)[3] - 2 * radius
    return _weighted(
        [images[..., i : i + width] for i in range(2 * radius + 1)], weights
    )


def _on_colors(operation):
    """Applies an operation to the first three of four channels."""

    @functools.wraps(operation)
    def on_colors(images, *arguments):
        if images.shape[1] != 4:
            return operation(images, *arguments)
        colors = operation(images[:, :3], *arguments)
        return tf.concat([colors, images[:, 3:]], axis=1)

    return on_colors


@_on_colors
def jitter(images, order, amounts):
    """Changes brightness, contrast, saturation and hue in an order of each image's own.

    Args:
        images: float tensor [batch, channels, height, width] in 0-1.
        order: int32 tensor [batch, 4], which of the four comes at each position.
        amounts: tensor [batch, 4], the factors of the first three and the shift of the
            hue, in the order above; `NO_JITTER` changes nothing.

    Returns:
        Tensor of the same shape and dtype.
    """
    # Three of the four blend with black, the mean or the luma, so each position in the
    # order is one blend for the whole batch, with factor 1 for images whose hue comes
    # there. The hue itself, the most expensive operation, is computed once.
    hue_position = tf.argmax(tf.cast(order == HUE, tf.int32), axis=-1)
    factors = tf.gather(amounts, order, batch_dims=1)

    def blended(images, position, active):
        factor = tf.where(active, factors[:, position], 1.0)
        return blend(images, order[:, position], factor)

    for position in range(3):
        images = blended(images, position, hue_position > position)
    images = adjust_hue(images, amounts[:, HUE])
    for position in range(1, 4):
        images = blended(images, position, hue_position < position)
    return images


@_on_colors
def jitter_one(image, order, amounts):
    """The same for a batch of one image, which takes what it needs alone."""
    adjustments = adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue

    def adjust_next(position, image):
        # Not `order[0, position]`: XLA compiles a slice anew for each place it begins.
        kind = tf.gather(order[0], position)
        amount = tf.gather(amounts[0], kind)
        branches = [functools.partial(adjust, image, amount) for adjust in adjustments]
        return position + 1, tf.switch_case(kind, branches)

    count = tf.where(tf.reduce_any(amounts != NO_JITTER), 4, 0)
    _, image = tf.while_loop(
        lambda position, _: position < count, adjust_next, (0, image)
    )
    return image


@_on_colors
def grayscale(images, chosen):
    """Converts the chosen images to grayscale; `chosen` is a bool tensor [batch]."""
    if images.shape[1] == 1:
        return images
    return adjust_saturation(images, tf.where(chosen, 0.0, 1.0))


def grayscale_one(image, chosen):
    """The same for a batch of one image, which is spared if it is not chosen."""
    return tf.cond(chosen[0], lambda: grayscale(image, chosen), lambda: image)


@_on_colors
def solarize(images, chosen):
    """Inverts the bright half of the values of the chosen images."""
    chosen = chosen[:, tf.newaxis, tf.newaxis, tf.newaxis]
    return tf.where(chosen & (images > 0.5), 1 - images, images)


def turn(images, mirrored, quarters=None):
    """Mirrors images top to bottom, then turns them by quarter turns.

    Args:
        images: tensor [batch, channels, height, width], square if `quarters` is given.
        mirrored: bool tensor [batch].
        quarters: int32 tensor [batch], 0 to 3.

    Returns:
        Tensor of the same shape and dtype.
    """
    mirrored = mirrored[:, tf.newaxis, tf.newaxis, tf.newaxis]
    images = tf.where(mirrored, images[:, :, ::-1], images)
    if quarters is None:
        return images
    quarters = quarters[:, tf.newaxis, tf.newaxis, tf.newaxis]
    images = tf.where(quarters >= 2, images[:, :, ::-1, ::-1], images)
    turned = tf.transpose(images, [0, 1, 3, 2])[:, :, ::-1]
    return tf.where(quarters % 2 == 1, turned, images)


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


@kernel
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
