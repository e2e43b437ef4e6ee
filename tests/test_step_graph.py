"""What the graph of a training step holds: the step's cost, without a clock."""

import collections

import numpy as np
import pytest
import tensorflow as tf
import tiny

from ressl_keras import ReSSL
from ressl_keras.method import objectives

BATCH, QUEUE, DIM = 8, 1009, 6  # a size that nothing else has
# They pass on the memory that they are given.
FREE = {"Identity", "StopGradient", "IdentityN", "PreventGradient", "Placeholder"}
CALLBACKS = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}


def make(**options):
    return tiny.build_model(queue_size=QUEUE, **options)


def traced(model):
    """One step as a function; its graph goes when the function does."""
    step = tf.function(model.train_step)
    model.optimizer.build(model.trainable_variables)
    return step.get_concrete_function(tf.TensorSpec([BATCH, 8, 8, 3], tf.uint8))


def count(model, shape):
    """How many outputs of a shape, in use, each type of operation has."""
    found, step = collections.Counter(), traced(model)
    for operation in step.graph.get_operations():
        if operation.type not in FREE:
            used = [output for output in operation.outputs if output.consumers()]
            found[operation.type] += sum(output.shape == shape for output in used)
    return +found


@pytest.mark.parametrize("crops", [1, 3])
@pytest.mark.long
def test_a_relation_is_two_arrays_and_its_gradient_two(crops):
    """Logits and probabilities of the teacher and of each crop; their difference, and
    that times the gradient of the loss; nothing for the metrics."""
    found = count(make(crops=crops), [BATCH, QUEUE])
    assert found.pop("MatMul") == 1 + crops
    assert found.pop("Softmax") == 1 + crops
    assert found == {"Sub": crops, "Mul": crops}


@pytest.mark.long
def test_info_nce_needs_no_more():
    found = count(make(objective=objectives.InfoNCE()), [BATCH, QUEUE])
    assert found.pop("MatMul") == found.pop("Softmax") == 2
    assert found == {"Mul": 1}


@pytest.mark.long
def test_the_queue_is_read_once_and_never_built_anew():
    found = count(make(crops=3), [QUEUE, DIM])
    assert found == {"ReadVariableOp": 1}


def test_no_step_calls_python():
    step = traced(make(objective=objectives.build_objective("ressl", info_nce_steps=1)))
    outer = {operation.type for operation in step.graph.get_operations()}
    # A branch is a function of its own.
    library = step.graph.as_graph_def().library.function
    inner = {node.op for function in library for node in function.node_def}
    assert outer and inner and not CALLBACKS & (outer | inner)


class Counted(ReSSL):
    """Counts how often its step is traced: only then does Python run."""

    traced = 0

    def train_step(self, data):
        self.traced += 1
        return super().train_step(data)


def test_nothing_is_traced_again_after_the_first_step():
    model = make(kind=Counted)
    images = np.zeros([4 * BATCH, 8, 8, 3], np.uint8)
    dataset = tf.data.Dataset.from_tensor_slices(images)
    model.optimizer.build(model.trainable_variables)
    for _ in range(2):
        model.fit(
            dataset.batch(BATCH, drop_remainder=True),
            epochs=2,
            shuffle=False,
            verbose=0,
        )
    assert model.traced == 1
