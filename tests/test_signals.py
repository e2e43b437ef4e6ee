"""Signs of collapse, on embeddings that are or are not."""

import numpy as np
import pytest

from ressl_keras.evaluation import collapse


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_effective_rank_is_the_entropy_of_the_singular_values(random):
    embeddings = unit(random.normal(size=[50, 8]) * np.arange(1, 9))
    values = np.linalg.svd(embeddings, compute_uv=False)
    shares = values / values.sum()
    expected = np.exp(-(shares * np.log(shares)).sum())
    assert collapse.effective_rank(embeddings) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dimensions", [1, 3, 8])
def test_effective_rank_counts_the_dimensions_in_use(dimensions):
    embeddings = np.eye(8)[:dimensions].repeat(5, axis=0)
    assert collapse.effective_rank(embeddings) == pytest.approx(dimensions)


def test_effective_rank_of_nothing_is_zero():
    assert collapse.effective_rank(np.zeros([4, 3])) == 0


def test_spread_is_that_of_random_directions_or_less(random):
    everywhere = unit(random.normal(size=[20000, 64]))
    assert collapse.relative_std(everywhere) == pytest.approx(1, abs=0.02)
    assert collapse.relative_std(np.ones([10, 4]) / 2) == 0


def test_healthy_embeddings_are_not_warned_of():
    assert collapse.warnings(60.0, 0.9, 2.9, 4096) == []
    assert collapse.warnings(60.0, 0.9) == []


@pytest.mark.parametrize(
    "rank, spread, entropy, words",
    [
        (1.0, 0.9, 2.9, "embeddings collapse"),
        (60.0, 0.01, 2.9, "embeddings collapse"),
        (60.0, 0.9, np.log(4096), "nearly uniform"),
        (60.0, 0.9, 0.0, "nearly one-hot"),
    ],
)
def test_each_kind_of_collapse_is_named_with_a_flag(rank, spread, entropy, words):
    (warning,) = collapse.warnings(rank, spread, entropy, 4096)
    assert words in warning and "--" in warning
