"""A run's steps, cut into calls of `fit` and of the compiled graph."""

import itertools
import math

import tensorflow as tf

from ressl_keras.errors import UsageError

# Steps per call of the graph on a GPU unless another number is set.
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
        wanted: as in `Config`; 0 chooses.
        segments: result of `split`.
        steps_per_epoch: steps of an epoch.

    Raises:
        UsageError: if a number is wanted that is no divisor.
    """
    parts = [min(steps_per_epoch, last - first) for first, last in segments]
    common = math.gcd(*parts) or 1  # 0 if nothing is left to train
    if not wanted:
        most = _STEPS_ON_GPU if tf.config.list_physical_devices("GPU") else 1
        return _largest_divisor(common, most)
    if common % wanted:
        unfit = next(part for part in parts if part % wanted)
        raise UsageError(
            f"steps_per_execution={wanted} does not divide the {unfit} steps of a part "
            f"of this run; {_largest_divisor(common, wanted)} does."
        )
    return wanted


def _largest_divisor(number, most):
    return max(n for n in range(1, min(number, most) + 1) if number % n == 0)
