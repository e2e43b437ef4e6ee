"""A run's steps, cut into calls of `fit` and of the compiled graph."""

import itertools
import math

import tensorflow as tf

# Most steps per call of the graph on a GPU unless another number is set.
_STEPS_ON_GPU = 16


def split(first, last, steps_per_epoch):
    """Splits a range of steps into the rest of an epoch, whole epochs, and a part.

    `fit` counts the same number of steps in each epoch of a call.

    Returns:
        List of (first, last) of each that is not empty.
    """
    whole_first = min(-(-first // steps_per_epoch) * steps_per_epoch, last)
    whole_last = max(last // steps_per_epoch * steps_per_epoch, whole_first)
    borders = [first, whole_first, whole_last, last]
    return [(a, b) for a, b in itertools.pairwise(borders) if a < b]


def steps_per_execution(wanted, segments, steps_per_epoch):
    """Steps per call of the compiled graph, a divisor of every part of an epoch.

    Args:
        wanted: as in `Config`: the most there may be; 0 chooses.
        segments: result of `split`.
        steps_per_epoch: steps of an epoch.
    """
    on_gpu = tf.config.list_physical_devices("GPU")
    most = wanted or (_STEPS_ON_GPU if on_gpu else 1)
    parts = [min(steps_per_epoch, last - first) for first, last in segments]
    common = math.gcd(*parts) or 1  # 0 if nothing is left to train
    return max(n for n in range(1, min(common, most) + 1) if common % n == 0)
