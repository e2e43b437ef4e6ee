"""The queue against a ring buffer in NumPy."""

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from ressl_keras import FeatureQueue, UsageError


def rows(random, count, dim):
    x = random.normal(size=[count, dim]).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@hypothesis.given(
    size=st.integers(1, 13),
    batches=st.lists(st.integers(0, 13), max_size=8),
    seed=st.integers(0, 2**16),
)
@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
def test_queue_is_a_ring_buffer_for_any_batch_sizes(size, batches, seed):
    random = np.random.default_rng(seed)
    queue = FeatureQueue(size, 3)
    ring, pointer = queue.features.numpy(), 0
    for count in batches:
        batch = rows(random, min(count, size), 3)
        queue.enqueue(tf.constant(batch))
        for row in batch:
            ring[pointer] = row
            pointer = (pointer + 1) % size
        np.testing.assert_array_equal(queue.features, ring)
        assert int(queue.pointer) == pointer


def test_queue_starts_full_of_unit_rows_fixed_by_the_seed():
    features = FeatureQueue(64, 8, seed=3).features.numpy()
    np.testing.assert_allclose(np.linalg.norm(features, axis=-1), 1, atol=1e-6)
    np.testing.assert_array_equal(features, FeatureQueue(64, 8, seed=3).features)
    assert not np.array_equal(features, FeatureQueue(64, 8, seed=4).features)


def test_enqueue_touches_only_the_rows_it_replaces():
    """No operation in the graph has an output of the queue's size."""
    queue = FeatureQueue(1000, 4)
    graph = (
        tf.function(queue.enqueue)
        .get_concrete_function(tf.TensorSpec([8, 4], tf.float32))
        .graph
    )
    assert any(op.type == "ResourceScatterNdUpdate" for op in graph.get_operations())
    for operation in graph.get_operations():
        for output in operation.outputs:
            assert 1000 not in (output.shape.as_list() if output.shape.rank else [])


def address(tensor):
    return np.asarray(memoryview(tensor)).__array_interface__["data"][0]


@pytest.mark.parametrize("shared", [False, True])
def test_a_queue_that_is_shared_is_read_without_a_copy(random, shared):
    """Two reads after an enqueue are the same memory."""
    queue = FeatureQueue(1000, 4)
    queue.enqueue(tf.constant(rows(random, 5, 4)))
    if shared:
        queue.share()
    first, second = queue.features, queue.features
    assert (address(first) == address(second)) is shared


def test_a_shared_queue_is_written_in_place_once_its_readers_are_done(random):
    queue = FeatureQueue(1000, 4)

    @tf.function
    def step(batch):
        queue.share()
        similarities = queue(batch)
        with tf.control_dependencies([similarities]):
            queue.enqueue(batch)
        return similarities

    places = []
    for _ in range(3):
        batch, old = rows(random, 5, 4), queue.features.numpy()
        np.testing.assert_allclose(step(tf.constant(batch)), batch @ old.T, atol=1e-6)
        queue.share()
        places.append(address(queue.features))
    assert places[0] == places[1] == places[2]
    np.testing.assert_array_equal(queue.features[10:15], batch)


def test_the_queue_holds_a_tf_variable():
    assert isinstance(FeatureQueue(4, 2)._features.value, tf.Variable)


@pytest.mark.parametrize("shape", [(9, 3), (2, 4)])
def test_a_batch_that_does_not_fit_is_refused(shape):
    with pytest.raises(UsageError, match="does not fit"):
        FeatureQueue(8, 3).enqueue(tf.zeros(shape))


def test_a_batch_whose_size_shows_late_is_refused_then():
    queue = FeatureQueue(4, 3)
    enqueue = tf.function(queue.enqueue, [tf.TensorSpec([None, 3])])
    enqueue(tf.ones([4, 3]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="larger than the queue"):
        enqueue(tf.ones([6, 3]))


def test_an_empty_queue_is_refused():
    with pytest.raises(UsageError, match="positive"):
        FeatureQueue(0, 3)


def test_similarities_are_inner_products(random):
    queue = FeatureQueue(16, 4)
    batch = rows(random, 5, 4)
    np.testing.assert_allclose(
        queue(tf.constant(batch)), batch @ queue.features.numpy().T, atol=1e-6
    )


def test_rows_and_pointer_survive_saving(tmp_path, random):
    inputs = keras.Input([4])
    model = keras.Model(inputs, FeatureQueue(16, 4)(inputs))
    queue = model.layers[-1]
    queue.enqueue(tf.constant(rows(random, 5, 4)))
    model.save(tmp_path / "queue.keras")
    loaded = keras.models.load_model(tmp_path / "queue.keras").layers[-1]
    np.testing.assert_array_equal(loaded.features, queue.features)
    assert int(loaded.pointer) == 5
