"""Reading images in order; one that cannot be read is replaced by the next readable.

Which image is read for a place of a batch is then a function of the step, the place and
the files alone. Images that can be read go through one parallel map; Python looks for
what takes the place of another.
"""

import os

import numpy as np
import tensorflow as tf

from ressl_keras.data.plain import plain

# Images tried in a row. More, and a folder that vanished would be noticed late; fewer,
# and a class that vanished would end a run.
_TRIES = 4096


def read_in_order(
    images, block, first, last, size, read, spec, whole=True, counted=False
):
    """Reads blocks of images, each image replaced where that is necessary.

    Args:
        images: set of images with `unreadable`, which gets those that were replaced.
        block: function of a block's number, a scalar int64 tensor, to a tuple of the
            images' indices, int64 [count], and a nest of tensors [count, ...], the
            other argument of `read`. It is called again for what was replaced.
        first: number of the first block.
        last: number of the block to end before.
        size: images of a block.
        read: function of an index and a row of `block`'s nest to a nest of tensors,
            which fails if the image cannot be read.
        spec: nest of `tf.TensorSpec` of what `read` returns.
        whole: whether all blocks have `size` images; if not, the last one has fewer.
        counted: whether the images read here count for the share of unreadable ones.

    Returns:
        A `tf.data.Dataset` of nests of batches [size, ...], one for each block.
    """
    reader = _Reader(images, block, read, spec, first, size, counted)
    blocks = tf.data.Dataset.range(first, last).map(plain(reader.places))
    # What cannot be read is left out here, and filled in by the scan.
    found = blocks.unbatch().map(plain(reader.attempt), tf.data.AUTOTUNE)
    filled = found.ignore_errors().scan(tf.constant(0, tf.int64), plain(reader.fill))
    batches = filled.rebatch(size, drop_remainder=whole)
    # TensorFlow cannot know how many there are.
    batches = batches.apply(tf.data.experimental.assert_cardinality(last - first))
    return _with_own_threads(batches.prefetch(tf.data.AUTOTUNE))


class _Reader:
    """The steps of `read_in_order`, with its arguments.

    A place is the number of an image since the start. An element is a place, whether
    it is the mark behind a block, and what was read for it.
    """

    def __init__(self, images, block, read, spec, first, size, counted):
        # Both are called in Python, too.
        self.block = tf.function(block, autograph=False)
        self.read = tf.function(read, autograph=False)
        self.images, self.spec = images, spec
        self.first, self.size, self.counted = first, size, counted

    def places(self, number):
        """Places, marks, indices and rows of a block, to be read one by one."""
        indices, rows = self.block(number)
        count = tf.shape(indices, tf.int64)[0]
        place = tf.range(count + 1)
        # A mark ends a block, so that it is known to be over where nothing was read.
        padded = tf.nest.map_structure(_with_another_row, (indices, rows))
        return (number - self.first) * self.size + place, place == count, *padded

    def attempt(self, place, is_mark, index, row):
        """An element; an error if its image cannot be read."""
        found = tf.cond(
            is_mark, lambda: _zeros(self.spec), lambda: self.read(index, row)
        )
        return place, is_mark, found

    def fill(self, expected, element):
        """An element as a batch of one, behind what is missing before it.

        Args:
            expected: the place after that of the last element.
            element: the next one that could be read.

        Returns:
            Tuple of the next expected place and a nest of tensors [rows, ...]; a mark
            has no row of its own.
        """
        place, is_mark, found = element
        batch = tf.cond(
            (place == expected) & ~is_mark,
            lambda: tf.nest.map_structure(lambda each: each[tf.newaxis], found),
            lambda: self._with_missing(expected, *element),
        )
        return place + tf.cast(~is_mark, tf.int64), batch

    def _with_missing(self, expected, place, is_mark, found):
        def missing():
            types = [each.dtype for each in tf.nest.flatten(self.spec)]
            read = tf.numpy_function(self._replacements, [expected, place], types)
            return tf.nest.pack_sequence_as(self.spec, read)

        def nothing():
            return tf.nest.map_structure(lambda each: each[tf.newaxis][:0], found)

        before = tf.cond(expected < place, missing, nothing)
        kept = tf.cast(~is_mark, tf.int64)

        def joined(before, own, spec):
            rows = tf.concat([before, own[tf.newaxis][:kept]], axis=0)
            return tf.ensure_shape(rows, [None, *spec.shape])

        return tf.nest.map_structure(joined, before, found, self.spec)

    def _replacements(self, expected, place):
        """What is read for the places from one up to another, a list of arrays."""
        found = map(self._replacement, range(expected, place))
        return [np.stack(values) for values in zip(*found)]

    def _replacement(self, place):
        with tf.device("CPU"):
            number = tf.constant(self.first + place // self.size, tf.int64)
            indices, rows = self.block(number)
        own = place % self.size
        row = tf.nest.map_structure(lambda values: values[own], rows)
        found = read_or_next(
            self.images,
            indices[own],
            lambda index: self.read(index, row),
            count_read=place + 1 if self.counted else 0,
        )
        return [values.numpy() for values in tf.nest.flatten(found)]


def read_or_next(images, index, read, count_read=0):
    """What is read of the first readable image from an index on, outside of a graph.

    Args:
        images: the set of images.
        index: the image itself. It is tried again, since a network disk may fail once.
        read: function of an index, int64 scalar tensor, to a nest of tensors.
        count_read: how many images were read so far, for the share of the others.

    Returns:
        What `read` returns.

    Raises:
        tf.errors.OpError: that of the image itself, if no other can be read either.
    """
    count, index, first_error = len(images), int(index), None
    for distance in range(min(count, _TRIES)):
        try:
            with tf.device("CPU"):
                found = read(tf.constant((index + distance) % count, tf.int64))
        except tf.errors.OpError as error:
            first_error = first_error or error
            continue
        passed_over = (index + np.arange(distance)) % count
        images.unreadable.record(passed_over, count_read)
        return found
    raise first_error


def _with_own_threads(dataset):
    """A dataset that does not occupy the threads of TensorFlow's own operations.

    Python waits in them for operations; with few cores there might be no other.
    """
    options = tf.data.Options()
    options.threading.private_threadpool_size = max(os.cpu_count() or 1, 2)
    return dataset.with_options(options)


def _with_another_row(rows):
    return tf.concat([rows, tf.zeros_like(rows[:1])], axis=0)


def _zeros(spec):
    return tf.nest.map_structure(lambda s: tf.zeros(s.shape, s.dtype), spec)
