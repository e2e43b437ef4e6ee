"""How a run's steps are cut into calls of `fit`."""

import collections
import itertools

import pytest

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


@pytest.mark.parametrize("wanted, taken", [(1, 1), (2, 2), (4, 2), (100, 2)])
def test_of_the_steps_wanted_as_many_as_divide_every_part_are_taken(wanted, taken):
    parts = segments.split(2, 26, 8)
    assert parts == [(2, 8), (8, 24), (24, 26)]
    assert segments.steps_per_execution(wanted, parts, 8) == taken
    assert segments.split(5, 5, 8) == []
    assert segments.steps_per_execution(wanted, [], 8) == 1
