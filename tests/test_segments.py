"""How a run's steps are cut into calls of `fit`."""

import collections
import itertools

import pytest

from ressl_keras import UsageError
from ressl_keras.training import segments


def test_every_call_of_fit_has_epochs_of_equal_length():
    """All ranges of up to four epochs of up to five steps, step by step."""
    for per_epoch in range(1, 6):
        for first, last in itertools.combinations(range(4 * per_epoch + 1), 2):
            parts = segments.split(first, last, per_epoch)
            assert [s for a, b in parts for s in range(a, b)] == [*range(first, last)]
            for a, b in parts:
                lengths = collections.Counter(s // per_epoch for s in range(a, b))
                assert len(set(lengths.values())) == 1
            call = segments.steps_per_execution(0, parts, per_epoch)
            assert not any(min(per_epoch, b - a) % call for a, b in parts)


def test_a_number_that_divides_no_part_is_refused_with_one_that_does():
    parts = segments.split(2, 26, 8)
    assert parts == [(2, 8), (8, 24), (24, 26)]
    assert segments.steps_per_execution(2, parts, 8) == 2
    with pytest.raises(UsageError, match=r"=4 does not divide the 6 steps.*; 2 does"):
        segments.steps_per_execution(4, parts, 8)
    assert segments.split(5, 5, 8) == []
