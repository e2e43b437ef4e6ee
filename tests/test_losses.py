"""The objective against golden files and NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from ressl_keras.method import losses

PAIRS = ("default", "warm", "sharp")


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def loss_and_gradient(golden, pair, dtype):
    file = golden("relational_loss")
    student, teacher, queue = (
        tf.Variable(file[name].astype(dtype))
        for name in ("student", "teacher", "queue")
    )
    temperatures = file[f"{pair}_temperatures"].tolist()
    with tf.GradientTape() as tape:
        loss = losses.relational_loss(student, teacher, queue, *temperatures)
        mean = tf.reduce_mean(loss)
    gradients = tape.gradient(mean, [student, teacher, queue])
    return file, loss, mean, gradients


@pytest.mark.parametrize("pair", PAIRS)
def test_loss_and_gradient_match_the_reference_in_float64(golden, pair):
    file, _, mean, (gradient, _, _) = loss_and_gradient(golden, pair, "float64")
    np.testing.assert_allclose(mean, file[f"{pair}_loss"], atol=1e-6)
    np.testing.assert_allclose(gradient, file[f"{pair}_grad_student"], atol=1e-6)


@pytest.mark.parametrize("pair", PAIRS)
def test_loss_and_gradient_match_the_reference_in_float32(golden, pair):
    file, _, mean, (gradient, _, _) = loss_and_gradient(golden, pair, "float32")
    np.testing.assert_allclose(mean, file[f"{pair}_loss"], rtol=1e-5)
    reference = file[f"{pair}_grad_student"]
    error = np.abs(gradient - reference).max() / np.abs(reference).max()
    assert error < 1e-5


def test_no_gradient_reaches_teacher_or_queue(golden):
    _, _, _, (_, teacher, queue) = loss_and_gradient(golden, "default", "float32")
    assert teacher is None and queue is None


def test_loss_is_one_number_an_image_and_matches_numpy(random):
    student, teacher = (unit(random.normal(size=[5, 7])) for _ in range(2))
    queue = unit(random.normal(size=[11, 7]))
    target = np.exp(log_softmax(teacher @ queue.T / 0.05))
    expected = -(target * log_softmax(student @ queue.T / 0.2)).sum(-1)
    loss = losses.relational_loss(student, teacher, queue, 0.2, 0.05)
    assert loss.dtype == tf.float64
    np.testing.assert_allclose(loss, expected, atol=1e-12)


@pytest.mark.parametrize("half", [tf.bfloat16, tf.float16])
def test_half_precision_is_computed_in_float32(random, half):
    arrays = [unit(random.normal(size=[n, 16])) for n in (4, 4, 32)]
    halves = [tf.cast(array, half) for array in arrays]
    loss = losses.relational_loss(*halves)
    assert loss.dtype == tf.float32
    exact = losses.relational_loss(*[tf.cast(x, tf.float64) for x in halves])
    np.testing.assert_allclose(loss, exact, rtol=1e-5)


def test_the_gradient_of_the_log_partition_is_the_softmax(random):
    logits = tf.constant(random.normal(size=[5, 7]) * 20)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        relation = losses.softmax(logits)
    gradient = tape.gradient(relation.log_partition, logits)
    expected = np.exp(log_softmax(logits.numpy()))
    np.testing.assert_allclose(gradient, expected, atol=1e-12)
    np.testing.assert_allclose(relation.probabilities, expected, atol=1e-12)
    shifted = logits.numpy() - log_softmax(logits.numpy())
    np.testing.assert_allclose(relation.log_partition, shifted[:, 0], atol=1e-12)


def test_info_nce_matches_numpy(random):
    student, teacher = (unit(random.normal(size=[5, 7])) for _ in range(2))
    queue = unit(random.normal(size=[11, 7]))
    positive = (student * teacher).sum(-1, keepdims=True)
    logits = np.concatenate([positive, student @ queue.T], -1) / 0.2
    loss = losses.info_nce_loss(student, teacher, queue, 0.2)
    np.testing.assert_allclose(loss, -log_softmax(logits)[:, 0], atol=1e-12)


def test_entropy_of_uniform_and_of_certain_relations():
    logits = tf.constant([[0.0] * 8, [100.0] + [0.0] * 7])
    np.testing.assert_allclose(
        losses.entropy(losses.softmax(logits)), [np.log(8), 0], atol=1e-6
    )
