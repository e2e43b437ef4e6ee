"""What statistics an image is normalised with, for each --batch_norm.

On two replicas, in a process of their own (see test_distribution).
"""

import itertools
import pathlib
import subprocess
import sys

import numpy as np
import pytest

PROGRAM = pathlib.Path(__file__).parent / "normalizing.py"
FIRST, SECOND = [0, 1, 2, 3], [4, 5, 6, 7]  # the images of each replica


def normalized(images, groups):
    """Unit rows, each image normalised with the mean and variance of its group."""
    rows = np.empty_like(images)
    for group in map(list, groups):
        part = images[group]
        rows[group] = (part - part.mean(0)) / np.sqrt(part.var(0) + 1e-5)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Eight images of one pixel, and what became of them."""
    folder = tmp_path_factory.mktemp("normalizing")
    images = np.random.default_rng(0).normal(size=[8, 1, 1, 3]).astype(np.float32)
    np.save(folder / "images.npy", images)
    subprocess.run(
        [sys.executable, PROGRAM, folder / "images.npy", folder / "results.npz"],
        check=True,
    )
    return images.reshape(8, 3), np.load(folder / "results.npz")


@pytest.mark.parametrize("network", ["student", "teacher"])
@pytest.mark.long
def test_per_replica_an_image_is_normalised_with_those_of_its_replica(seen, network):
    images, results = seen
    expected = normalized(images, [FIRST, SECOND])
    np.testing.assert_allclose(results[f"per_replica_{network}_0"], expected, atol=1e-5)


@pytest.mark.parametrize("network", ["student", "teacher"])
@pytest.mark.long
def test_synchronized_an_image_is_normalised_with_the_global_batch(seen, network):
    images, results = seen
    expected = normalized(images, [FIRST + SECOND])
    np.testing.assert_allclose(
        results[f"synchronized_{network}_0"], expected, atol=1e-5
    )


def halves_that_explain(images, embeddings):
    """All partitions into two halves whose statistics give these embeddings."""
    found = []
    for others in itertools.combinations(range(1, 8), 3):
        half = [0, *others]
        rest = sorted(set(range(8)) - set(half))
        if np.allclose(normalized(images, [half, rest]), embeddings, atol=1e-4):
            found.append(half)
    return found


@pytest.mark.long
def test_shuffled_the_teacher_normalises_an_image_with_one_half_of_the_global_batch(
    seen,
):
    """One that is drawn anew at each step and is not its replica's, as the student's
    is; each embedding comes back to its own image."""
    images, results = seen
    halves = []
    for step in range(2):
        own = results[f"shuffled_student_{step}"]
        np.testing.assert_allclose(own, normalized(images, [FIRST, SECOND]), atol=1e-5)
        found = halves_that_explain(images, results[f"shuffled_teacher_{step}"])
        assert len(found) == 1
        halves += found
    assert FIRST not in halves
    assert halves[0] != halves[1]
