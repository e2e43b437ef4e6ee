"""Reading images in order; one that cannot be read is replaced by the next readable.

Which image is read for a place of a batch is then a function of the step, the place and
the files alone. Images that can be read go through one parallel map; Python looks for
what takes the place of another.
"""

import os

import numpy as np
import tensorflow as tf

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
    # Both are called in Python, too.
    block = tf.function(block, autograph=False)
    read = tf.function(read, autograph=False)

    def places(number):
        indices, rows = block(number)
        count = tf.shape(indices, tf.int64)[0]
        place = tf.range(count + 1)
        # A mark ends a block, so that it is known to be over where nothing was read.
        padded = tf.nest.map_structure(_with_another_row, (indices, rows))
        return (number - first) * size + place, place == count, *padded

    def attempt(place, is_mark, index, row):
        found = tf.cond(is_mark, lambda: _zeros(spec), lambda: read(index, row))
        return place, is_mark, found

    def replacement(place):
        with tf.device("CPU"):
            indices, rows = block(tf.constant(first + place // size, tf.int64))
        own = place % size
        row = tf.nest.map_structure(lambda values: values[own], rows)
        so_far = place + 1 if counted else 0
        found = read_or_next(images, indices[own], lambda i: read(i, row), so_far)
        return [values.numpy() for values in tf.nest.flatten(found)]

    def replacements(expected, place):
        """What is read for the places from one up to another, a list of arrays."""
        found = map(replacement, range(expected, place))
        return [np.stack(values) for values in zip(*found)]

    def with_missing(expected, place, is_mark, found):
        def missing():
            types = [each.dtype for each in tf.nest.flatten(spec)]
            read = tf.numpy_function(replacements, [expected, place], types)
            return tf.nest.pack_sequence_as(spec, read)

        def nothing():
            return tf.nest.map_structure(lambda each: each[tf.newaxis][:0], found)

        before = tf.cond(expected < place, missing, nothing)
        kept = tf.cast(~is_mark, tf.int64)

        def joined(before, own, spec):
            rows = tf.concat([before, own[tf.newaxis][:kept]], axis=0)
            return tf.ensure_shape(rows, [None, *spec.shape])

        return tf.nest.map_structure(joined, before, found, spec)

    def fill(expected, one):
        """One element as a batch, behind what is missing before it."""
        place, is_mark, found = one
        batch = tf.cond(
            (place == expected) & ~is_mark,
            lambda: tf.nest.map_structure(lambda each: each[tf.newaxis], found),
            lambda: with_missing(expected, *one),
        )
        return place + tf.cast(~is_mark, tf.int64), batch

    elements = tf.data.Dataset.range(first, last).map(_plain(places)).unbatch()
    read_once = elements.map(_plain(attempt), tf.data.AUTOTUNE).ignore_errors()
    filled = read_once.scan(tf.constant(0, tf.int64), _plain(fill))
    batches = filled.rebatch(size, drop_remainder=whole)
    # TensorFlow cannot know how many there are.
    batches = batches.apply(tf.data.experimental.assert_cardinality(last - first))
    return _with_own_threads(batches.prefetch(tf.data.AUTOTUNE))


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


def _plain(function):
    """A function that AutoGraph leaves as it is, which takes half as long to trace."""
    return tf.autograph.experimental.do_not_convert(function)


def _with_another_row(rows):
    return tf.concat([rows, tf.zeros_like(rows[:1])], axis=0)


def _zeros(spec):
    return tf.nest.map_structure(lambda s: tf.zeros(s.shape, s.dtype), spec)
