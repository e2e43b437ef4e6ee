"""Keras layers that draw the parameters of image operations, one draw per image.

The random layers work on planes (see `image_ops`); `View` takes and returns
channels-last images. Randomness is stateless: a draw is a function of the seed and of
the image's index in the global batch, so that a step can be repeated exactly, on any
number of replicas.
"""

import math

import keras
import tensorflow as tf

from ressl_keras.augmentation import foreign, image_ops
from ressl_keras.augmentation.statistics import MEAN, STD
from ressl_keras.augmentations import Augmentation

# From here on images are made one after the other on a processor. At 32 pixels that
# saves hundredths of a millisecond, and the kernel takes two seconds more to compile.
SIDE_OF_LARGE_IMAGES = 64  # pixels


def _uniform(seed, batch, first, count):
    """Draws [batch, count] in [0, 1): row i belongs to example `first` + i.

    Rows before `first` are drawn and dropped. They cost little, and the draws of an
    example do not depend on how the global batch is split over replicas.
    """
    first = tf.cast(first, tf.int32)
    # Named, because the default algorithm differs from device to device. XLA lays the
    # same algorithm out differently, so compiled views draw other numbers; there is
    # one replica then, and `first` is 0.
    return tf.random.stateless_uniform([first + batch, count], seed, alg="philox")[
        first:
    ]


class _RandomOperation(keras.layers.Layer):
    """Base of the random operations: planes [batch, 3, height, width] in 0-1 and a seed
    in, planes out."""

    def __init__(self, **kwargs):
        # Half precision is too coarse for pixels; `View` casts once at the end.
        super().__init__(autocast=False, **kwargs)

    def compute_output_shape(self, images_shape, **kwargs):
        return images_shape


class _OperationOnEach(_RandomOperation):
    """Base of those that a `View` can also apply to one image after the other.

    `draw` draws the arguments of `operation` for a batch, each [batch, ...];
    `operation_on_one` does the same for a batch of one image, in less time.
    """

    def call(self, images, seed, first=0):
        drawn = self.draw(seed, tf.shape(images)[0], first)
        return self.operation(images, *drawn)


class _OperationOnChosen(_OperationOnEach):
    """Base of those that change a share of the images, and leave the others."""

    def __init__(self, probability=0.2, **kwargs):
        super().__init__(**kwargs)
        self.probability = float(probability)

    def draw(self, seed, batch, first=0):
        """Which images are changed."""
        return (_uniform(seed, batch, first, 1)[:, 0] < self.probability,)

    def get_config(self):
        return {**super().get_config(), "probability": self.probability}


@keras.saving.register_keras_serializable("ressl_keras")
class RandomResizedCropAndFlip(_RandomOperation):
    """Random resized crop and horizontal flip.

    Args:
        size: side of the result in pixels.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width/height.
        flip: probability of a horizontal flip.
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
        """Boxes of `sample_crop_boxes`, for images of this height and width."""
        return image_ops.sample_crop_boxes(
            draws[:, :22], height, width, self.scale, self.ratio
        )

    def flips(self, draws):
        """Which images are mirrored, bool [batch]."""
        return draws[:, 22] < self.flip

    def call(self, images, seed, first=0):
        batch, _, height, width = tf.unstack(tf.shape(images))
        draws = self.draw(seed, batch, first)
        boxes = self.boxes(draws, height, width)
        return image_ops.resized_crop(images, boxes, self.size, self.flips(draws))

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
class RandomColorJitter(_OperationOnEach):
    """Brightness, contrast, saturation and hue, in a random order.

    Gray images have brightness and contrast only; an alpha channel stays as it is.

    Keras' and KerasCV's layers add to the brightness, keep one order and change every
    image. The paper's recipe multiplies the brightness, shuffles the order and leaves
    some images unchanged.

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

    operation = staticmethod(image_ops.jitter)
    operation_on_one = staticmethod(image_ops.jitter_one)

    def draw(self, seed, batch, first=0):
        """Order and amounts, as `image_ops.jitter` takes them."""
        uniform = _uniform(seed, batch, first, 9)
        reach = [self.brightness, self.contrast, self.saturation, self.hue]
        amounts = image_ops.NO_JITTER + tf.stack(reach) * (2 * uniform[:, 1:5] - 1)
        chosen = uniform[:, :1] < self.probability
        amounts = tf.where(chosen, amounts, image_ops.NO_JITTER)
        # Ranks of four uniform draws are a random order.
        return tf.argsort(uniform[:, 5:9], axis=-1), amounts

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
class RandomGrayscale(_OperationOnChosen):
    """Converts some images to grayscale.

    Args:
        probability: share of the images that are changed.
    """

    operation = staticmethod(image_ops.grayscale)
    operation_on_one = staticmethod(image_ops.grayscale_one)


@keras.saving.register_keras_serializable("ressl_keras")
class RandomGaussianBlur(_OperationOnEach):
    """Applies a Gaussian blur of random sigma to some images.

    Args:
        sigma: smallest and largest standard deviation in pixels.
        probability: share of the images that are changed.
    """

    def __init__(self, sigma=(0.1, 2.0), probability=0.5, **kwargs):
        super().__init__(**kwargs)
        self.sigma, self.probability = tuple(sigma), float(probability)

    def draw(self, seed, batch, first=0):
        """Sigma of each image, 0 for those that are not changed."""
        uniform = _uniform(seed, batch, first, 2)
        sigma = self.sigma[0] + (self.sigma[1] - self.sigma[0]) * uniform[:, 1]
        return (tf.where(uniform[:, 0] < self.probability, sigma, 0.0),)

    @property
    def radius(self):
        return math.ceil(4 * self.sigma[1])

    def operation(self, images, sigma):
        return image_ops.gaussian_blur(images, sigma, self.radius)

    @property
    def operation_on_one(self):
        return image_ops.gaussian_blur_one(self.radius)

    def get_config(self):
        return {
            **super().get_config(),
            "sigma": self.sigma,
            "probability": self.probability,
        }


@keras.saving.register_keras_serializable("ressl_keras")
class RandomSolarize(_OperationOnChosen):
    """Inverts the bright half of the values of some images (arXiv 2006.07733).

    Args:
        probability: share of the images that are changed.
    """

    operation = operation_on_one = staticmethod(image_ops.solarize)


@keras.saving.register_keras_serializable("ressl_keras")
class RandomTurn(_OperationOnEach):
    """Mirrors some images top to bottom, and turns some by quarter turns.

    Args:
        vertical_flip: share of the images that are mirrored.
        turn: share of the images that are turned by one, two or three quarters, each
            as likely; the images must be square.
    """

    def __init__(self, vertical_flip=0.5, turn=0.75, **kwargs):
        super().__init__(**kwargs)
        self.vertical_flip, self.turn = float(vertical_flip), float(turn)

    operation = operation_on_one = staticmethod(image_ops.turn)

    def draw(self, seed, batch, first=0):
        """Which images are mirrored, and quarter turns if there are any."""
        uniform = _uniform(seed, batch, first, 3)
        mirrored = uniform[:, 0] < self.vertical_flip
        if not self.turn:
            return (mirrored,)
        quarters = 1 + tf.cast(3 * uniform[:, 2], tf.int32)
        return mirrored, tf.where(uniform[:, 1] < self.turn, quarters, 0)

    def get_config(self):
        return {
            **super().get_config(),
            "vertical_flip": self.vertical_flip,
            "turn": self.turn,
        }


@keras.saving.register_keras_serializable("ressl_keras")
class View(keras.layers.Layer):
    """Random operations in sequence, then normalisation.

    Works on batches, inside `tf.data` and on the device alike. Outside training the
    images are only normalised.

    Args:
        operations: list of layers. One whose `call` has an argument `seed` is called
            as `operation(images, seed=, first=)` on float images [batch, 3, height,
            width] in 0-1. Any other, such as a preprocessing layer of Keras, is called
            on channels-last images in 0-1, and its seed generators are set from the
            seed of the step.
        mean: mean of each channel, on the scale 0-1.
        std: standard deviation of each channel, on the scale 0-1.
        seed: integer seed of the draws when a call brings none.

    Call arguments:
        images: uint8 tensor [batch, height, width, 3], or float in 0-255.
        training: whether to augment.
        seed: integer tensor [2]; the same seed repeats the same draws. Without one,
            the layer draws from a seed generator of its own.
        first: index of the first image in the global batch.

    Returns:
        Normalised images in the layer's compute dtype.

    Raises:
        tf.errors.InvalidArgumentError: if float images lie in 0-1.
    """

    def __init__(self, operations, mean=MEAN, std=STD, seed=0, **kwargs):
        # Inputs are uint8 and must not be cast to a half precision before 1/255.
        super().__init__(autocast=False, **kwargs)
        self.operations = [
            keras.saving.deserialize_keras_object(op) if isinstance(op, dict) else op
            for op in operations
        ]
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, images_shape):
        # Each operation is built when it is called. Without this method Keras traces
        # all of them once more, to build them.
        pass

    def call(self, images, training=False, seed=None, first=0):
        if not training:
            # Without XLA, since encoders are exported to other runtimes.
            images = tf.cast(images, tf.float32) / 255
            return tf.cast((images - self.mean) / self.std, self.compute_dtype)
        if not self.operations:
            images = image_ops.normalize(images, self.mean, self.std)
            return tf.cast(images, self.compute_dtype)
        if seed is None:
            seed = tf.cast(self.seed_generator.next(), tf.int32)
        if self._starts_with_crop():
            _check_range(images)  # whole images; those that are cropped may be dark
        folds = [
            tf.random.experimental.stateless_fold_in(seed, index)
            for index in range(len(self.operations))
        ]
        apart = self._is_faster_one_by_one(images)
        make = self._make_one_by_one if apart else self._make_together
        return tf.cast(make(images, folds, first), self.compute_dtype)

    def _is_faster_one_by_one(self, images):
        """Large images are, on a processor; an image alone keeps no GPU busy."""
        cropped = self._starts_with_crop()
        side = self.operations[0].size if cropped else images.shape[1]
        # Told by `call`, which a class of one's own may replace.
        each = [
            getattr(type(operation), "call", None) is _OperationOnEach.call
            for operation in self.operations[cropped:]
        ]
        small = side is not None and side < SIDE_OF_LARGE_IMAGES
        on_gpu = tf.config.get_visible_devices("GPU")
        return bool(each) and all(each) and not small and not on_gpu

    def _make_one_by_one(self, images, folds, first):
        shape = self.compute_output_shape(images.shape)
        # The crop, a product of matrices, is made of all images together.
        operations, cropped = self.operations, self._starts_with_crop()
        if cropped:
            crop, *operations = operations
            seed, *folds = folds
            images = crop(image_ops.to_planes(images), seed=seed, first=first)
        batch = tf.shape(images)[0]
        drawn = tuple(
            each.draw(fold, batch, first) for each, fold in zip(operations, folds)
        )
        functions = tuple(each.operation_on_one for each in operations)
        finished = image_ops.one_by_one(functions, len(self.mean), cropped)
        # A kernel that has had several batches forgets how many images it is given,
        # which a step that is traced must know.
        return tf.ensure_shape(finished(images, drawn, self.mean, self.std), shape)

    def _make_together(self, images, folds, first):
        planes = image_ops.to_planes(images)
        planes = tf.ensure_shape(planes, [None, len(self.mean), None, None])
        for operation, fold in zip(self.operations, folds):
            if foreign.takes_seed(operation):
                planes = operation(planes, seed=fold, first=first)
            else:
                planes = foreign.apply(operation, planes, fold, first)
            if len(self.mean) != 3:  # kernels forget the number of channels
                planes = tf.ensure_shape(planes, [None, len(self.mean), None, None])
        return image_ops.to_pixels(planes, self.mean, self.std)

    def _starts_with_crop(self):
        return isinstance(self.operations[0], RandomResizedCropAndFlip)

    def compute_output_shape(self, images_shape, **kwargs):
        batch, height, width, channels = images_shape
        shape = (batch, channels, height, width)
        for operation in self.operations:
            if foreign.takes_seed(operation):
                shape = operation.compute_output_shape(shape)
            else:
                shape = foreign.output_shape(operation, shape)
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


def _check_range(images):
    """Refuses float images in 0-1, which would become nearly black."""
    if images.dtype.is_floating:
        highest = tf.reduce_max(images)
        tf.debugging.Assert(
            (highest <= 0) | (highest > 1),
            ["Images must lie in 0-255; these lie in 0-1. Multiply them by 255."],
        )


def photometric_operations(augmentation=Augmentation()):  # noqa: B008, immutable
    """The operations of a view that follow the crop; by default the strong view's.

    Args:
        augmentation: `Augmentation`. What has probability zero is left out.

    Returns:
        List of layers.
    """
    a = augmentation
    color = RandomColorJitter(a.brightness, a.contrast, a.saturation, a.hue, a.jitter)
    operations = {
        color: a.jitter,
        RandomGrayscale(a.grayscale): a.grayscale,
        RandomGaussianBlur((a.blur_min, a.blur_max), a.blur): a.blur,
        RandomSolarize(a.solarize): a.solarize,
        RandomTurn(a.vertical_flip, a.turn): a.vertical_flip or a.turn,
    }
    return [operation for operation, share in operations.items() if share]
