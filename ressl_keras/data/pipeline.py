"""Batches for training and evaluation, and the order in which images are read.

The order is a function of (seed, pass), and the batch of a step a function of (seed,
step): a pipeline can start at any step without reading what came before.
"""

import tensorflow as tf

from ressl_keras.augmentation import bundle, image_ops
from ressl_keras.augmentation.layers import RandomResizedCropAndFlip
from ressl_keras.data.decoding import DEFAULT, decode_crops
from ressl_keras.data.images import files_of, spread_indices
from ressl_keras.data.plain import plain
from ressl_keras.data.replacement import read_in_order, read_or_next


def training_batches(
    images,
    batch_size,
    seed,
    first_step,
    last_step,
    size=None,
    worker=0,
    workers=1,
    crops=None,
    augmentations=None,
):
    """Batches of the steps from `first_step` up to, not including, `last_step`.

    A pass over the images is `len(images) // batch_size` steps; what is left of the
    order at its end is dropped, and the next pass has another order.

    Args:
        images: any set of images.
        batch_size: size of the global batch.
        seed: integer seed of the order.
        first_step: step to start at.
        last_step: step to end before.
        size: side of the crops, for images of several sizes.
        worker: number of this worker, from 0.
        workers: how many workers share each global batch, in equal parts.
        crops: sides of the student's crops, for images of several sizes; by default
            one of `size`.
        augmentations: the teacher's and the student's `Augmentation`, for images of
            several sizes; by default the weak and the strong view's.

    Returns:
        A `tf.data.Dataset`: of uint8 batches [batch_size / workers, height, width, 3]
        where the images have one size, so that the views can be made on the device;
        else of dicts of two such batches, `teacher` and `student`, each a random
        resized crop and flip of its own, since only crops can be batched; with several
        `crops`, `student` is a tuple of batches.
    """
    share, steps = batch_size // workers, (first_step, last_step)
    place = worker, workers
    if images.same_size:
        indices = shuffled_indices(len(images), batch_size, seed, *steps, *place)
        batches = indices.map(plain(images.read), tf.data.AUTOTUNE)
        return batches.prefetch(tf.data.AUTOTUNE)

    geometric = bundle.GeometricViews(size, crops, seed, augmentations)
    operations, decoder = geometric.operations, images.decoder

    def draws(step):
        return geometric.draws(step, share, first=worker * share)

    def crop(encoded, draws):
        return bundle.pack(read_crops(encoded, operations, draws, decoder))

    def block(step):
        return step_indices(step, len(images), batch_size, seed, *place), draws(step)

    def read(index, draws):
        return crop(images.encoded(index), draws)

    spec = bundle.pack([_crop_spec(images, operation) for operation in operations])
    return read_in_order(images, block, *steps, share, read, spec, counted=True)


def _crop_spec(images, operation):
    shape = [operation.size, operation.size, images.channels]
    return tf.TensorSpec(shape, tf.uint8)


class InputTimer:
    """Measures the seconds that a consumer waits for its batches."""

    def __init__(self):
        with tf.device("CPU"):
            self._seconds = tf.Variable(0.0, trainable=False, dtype=tf.float64)

    @staticmethod
    def possible():
        """Whether TensorFlow has a clock: not under op determinism."""
        try:
            tf.timestamp()
        except tf.errors.FailedPreconditionError:
            return False
        return True

    @property
    def seconds(self):
        """Seconds waited so far."""
        return float(self._seconds.numpy())

    def watch(self, batches):
        """The same batches, each between two readings of the clock.

        Args:
            batches: `tf.data.Dataset`, with a prefetch at its end as a rule.

        Returns:
            A `tf.data.Dataset` for a consumer that asks when it needs a batch. Several
            devices fetch ahead of time; their wait would mean little.
        """

        def count(asked, batch, given):
            self._seconds.assign_add(given - asked)
            return batch

        clock = tf.data.Dataset.range(tf.int64.max).map(plain(lambda _: tf.timestamp()))
        # `zip` reads the three in order.
        watched = tf.data.Dataset.zip(clock, batches, clock).map(plain(count))
        options = tf.data.Options()
        options.experimental_optimization.inject_prefetch = False
        return watched.with_options(options)


def shuffled_indices(
    count, batch_size, seed, first_step, last_step, worker=0, workers=1
):
    """Which of `count` examples each step takes: a dataset of int64 vectors.

    Args and order as in `training_batches`.
    """

    def indices(step):
        return step_indices(step, count, batch_size, seed, worker, workers)

    return tf.data.Dataset.range(first_step, last_step).map(plain(indices))


def step_indices(step, count, batch_size, seed, worker=0, workers=1):
    """Which of `count` examples a step takes: int64 vector, in a graph.

    Args and order as in `training_batches`.
    """
    steps_per_pass, share = count // batch_size, batch_size // workers
    positions = worker * share + tf.range(share, dtype=tf.int64)
    first = step % steps_per_pass * batch_size
    return shuffled_order(first + positions, seed, step // steps_per_pass, count)


def files_of_steps(images, batch_size, seed, first_step, last_step):
    """Paths of the files that some steps of `training_batches` read, a list of bytes.

    Empty for images that are not read from files of their own.
    """
    files = files_of(images)
    if not files:
        return []
    indices = shuffled_indices(len(files), batch_size, seed, first_step, last_step)
    return [files[i] for step in indices.as_numpy_iterator() for i in step]


def shuffled_order(position, seed, epoch, count):
    """Index of the example at a position in an epoch's order; nothing is stored."""
    key = tf.random.stateless_uniform(
        [3],
        tf.stack([tf.constant(seed, tf.int64), tf.cast(epoch, tf.int64)]),
        minval=None,
        maxval=None,
        dtype=tf.int32,
        alg="philox",
    )
    # tf.random.experimental.index_shuffle is this op with 4 rounds and the plain seed:
    # orders of neighbouring epochs then correlate at up to 0.7. From 8 rounds on they
    # look independent.
    return tf.raw_ops.RandomIndexShuffle(
        index=position, seed=key, max_index=tf.cast(count - 1, tf.int64), rounds=12
    )


def read_crops(encoded, operations, draws, decoder=DEFAULT):
    """Crops and flips of one encoded image, in a graph.

    Args:
        encoded: scalar string tensor, the bytes of the image.
        operations: list of `RandomResizedCropAndFlip`.
        draws: for each, the row of its `draw` that belongs to the image.
        decoder: `decoding.Decoder`.

    Returns:
        For each, a uint8 tensor [size, size, 3].
    """
    pairs = [(op, draw[tf.newaxis]) for op, draw in zip(operations, draws)]

    def boxes(height, width):
        found = [op.boxes(draw, height, width) for op, draw in pairs]
        return tf.concat(found, axis=0)

    flips = tf.concat([op.flips(draw) for op, draw in pairs], axis=0)
    sizes = [operation.size for operation in operations]
    return decode_crops(encoded, boxes, sizes, flips, decoder)


def evaluation_batches(images, size, batch_size=256, count=None):
    """Images in their order, each brought to size by `center_crop`.

    Args:
        images: any set of images.
        size: side of the result in pixels.
        batch_size: images per batch; the last may be smaller.
        count: take only so many, evenly spread over the set; None takes all.

    Returns:
        A `tf.data.Dataset` of batches [batch, size, size, 3] in 0-255: uint8 of images
        in memory that have the size, else float32.
    """

    indices = spread_indices(images, count)
    if images.same_size:
        fits = images.size == (size, size)

        def brought_to_size(index):
            image = images.read(index)
            return image if fits else center_crop(image, size)

        dataset = tf.data.Dataset.from_tensor_slices(indices)
        dataset = dataset.map(plain(brought_to_size), tf.data.AUTOTUNE)
        return dataset.batch(batch_size).prefetch(tf.data.AUTOTUNE)

    with tf.device("CPU"):
        indices = tf.constant(indices, tf.int64)

    def block(number):
        return indices[number * batch_size : (number + 1) * batch_size], ()

    def read(index, _):
        return center_crop(images.read(index), size)

    blocks = 0, -(-len(indices) // batch_size)
    spec = tf.TensorSpec([size, size, images.channels], tf.float32)
    return read_in_order(images, block, *blocks, batch_size, read, spec, whole=False)


def readable_images(images, indices):
    """Images as they are; one that cannot be read is replaced as in training.

    Args:
        images: any set of images.
        indices: integers.

    Returns:
        List of uint8 arrays [height, width, channels].
    """
    if images.same_size:
        return list(images.read(indices).numpy())
    found = (read_or_next(images, index, images.read) for index in indices)
    return [image.numpy() for image in found]


def center_crop(image, size):
    """Resizes the shorter side and cuts out the central square.

    The shorter side becomes 8/7 of `size`, bilinear with antialiasing: 256 for 224. An
    image that already has the size is not changed.

    Args:
        image: uint8 tensor [height, width, channels].
        size: side of the result in pixels.

    Returns:
        float32 tensor [size, size, channels] in 0-255.
    """

    def resized():
        pixels = tf.cast(shape, tf.float32)
        shorter = round(size * 8 / 7)
        whole = tf.round(pixels * (shorter / tf.reduce_min(pixels)))
        # `tf.image.resize` and a cut in one: of an image of extreme aspect, the whole
        # would be large.
        # It takes uint8: a float copy of the image would be four times as large.
        square = tf.raw_ops.ScaleAndTranslate(
            images=image[tf.newaxis],
            size=[size, size],
            scale=whole / pixels,
            translation=-tf.floor((whole - size) / 2),
            kernel_type="triangle",
            antialias=True,
        )[0]
        return tf.clip_by_value(square, 0, 255)

    shape = tf.shape(image)[:2]
    as_it_is = tf.reduce_all(shape == size)
    square = tf.cond(as_it_is, lambda: tf.cast(image, tf.float32), resized)
    return tf.ensure_shape(square, [size, size, image.shape[-1]])


def labelled_crops(
    images,
    batch_size,
    epochs,
    size,
    seed=0,
    scale=(0.2, 1.0),
    first_epoch=0,
    worker=0,
    workers=1,
):
    """Batches of random crops and flips with their labels, epoch after epoch.

    Args:
        images: labelled images.
        batch_size: images per global batch; what is left at the end of an epoch is
            dropped.
        epochs: passes over the images, each in a different order.
        size: side of the crops in pixels.
        seed: integer seed of order, crops and flips.
        scale: smallest and largest share of an image's area.
        first_epoch: passes that are left out at the start.
        worker: number of this worker, from 0.
        workers: how many workers share each global batch, in equal parts.

    Returns:
        A `tf.data.Dataset` of float32 batches [batch_size / workers, size, size, 3] in
        0-255 and int64 labels [batch_size / workers]; the label is that of the image
        that was read.
    """
    labels = tf.constant(images.labels, tf.int64)
    crop = RandomResizedCropAndFlip(size, scale)
    share = batch_size // workers
    first = worker * share

    steps_per_epoch = len(images) // batch_size
    steps = first_epoch * steps_per_epoch, epochs * steps_per_epoch
    place = worker, workers

    def draws(step):
        return tf.stack([tf.constant(seed, tf.int64), step])

    def crops(step, indices):
        planes = image_ops.to_planes(images.read(indices))
        batch = 255 * image_ops.to_pixels(crop(planes, seed=draws(step), first=first))
        batch = tf.ensure_shape(batch, [share, size, size, images.channels])
        return batch, tf.gather(labels, indices)

    if images.same_size:
        indices = shuffled_indices(len(images), batch_size, seed, *steps, *place)
        numbers = tf.data.Dataset.range(*steps)
        numbered = tf.data.Dataset.zip(numbers, indices)
        batches = numbered.map(plain(crops), tf.data.AUTOTUNE)
        return batches.prefetch(tf.data.AUTOTUNE)

    def block(step):
        indices = step_indices(step, len(images), batch_size, seed, *place)
        return indices, crop.draw(draws(step), share, first)

    def read(index, draw):
        (pixels,) = read_crops(images.encoded(index), [crop], [draw], images.decoder)
        return pixels, labels[index]

    spec = _crop_spec(images, crop), tf.TensorSpec([], tf.int64)
    batches = read_in_order(images, block, *steps, share, read, spec)
    return batches.map(plain(lambda images, y: (tf.cast(images, tf.float32), y)))
