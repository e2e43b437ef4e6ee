"""The losses: relations of embeddings to a queue, their cross-entropy, and InfoNCE.

All functions are pure functions of tensors. Embeddings and queue rows must have unit
length, so that an inner product is a cosine similarity.

A relation is the softmax over an embedding's similarities to the references. Arrays of
shape [batch, queue size] are the largest of a training step; a relation keeps two of
them, logits and probabilities, and everything else is computed from these.
"""

from typing import NamedTuple

import tensorflow as tf


class Softmax(NamedTuple):
    """A relation: softmax over the references, with the logits it is computed from.

    Attributes:
        logits: [batch, references], similarities over the temperature.
        probabilities: [batch, references], their softmax; no gradient passes.
        log_partition: [batch], log of the sum of the logits' exponentials.
    """

    logits: tf.Tensor
    probabilities: tf.Tensor
    log_partition: tf.Tensor


def softmax(logits):
    """The softmax of logits.

    Args:
        logits: float tensor [batch, references].

    Returns:
        A `Softmax`.
    """
    probabilities = tf.nn.softmax(tf.stop_gradient(logits))

    largest = tf.reduce_max(tf.stop_gradient(logits), axis=-1)
    log_partition = largest - tf.math.log(tf.reduce_max(probabilities, axis=-1))
    return Softmax(
        logits,
        probabilities,
        _with_slope(log_partition, logits, lambda: probabilities),
    )


def _with_slope(value, logits, slope):
    """A value [batch] computed from logits, with its known gradient to them.

    Automatic differentiation would exponentiate again, forwards and backwards, and
    keep an array for each term of the gradient.
    """

    @tf.custom_gradient
    def known(logits):
        return tf.identity(value), lambda upstream: upstream[:, tf.newaxis] * slope()

    return known(logits)


def relate(embeddings, references, temperature, excluded=None):
    """The relation of each embedding to the references (arXiv 2107.09282, eq. 1).

    Args:
        embeddings: float tensor [batch, dim], unit rows.
        references: float tensor [references, dim], unit rows.
        temperature: positive number; smaller is sharper.
        excluded: bool tensor [batch, references] of pairs that get no weight, or None.

    Returns:
        A `Softmax`, in float64 for float64 inputs and in float32 otherwise.
    """
    embeddings, references = (
        _at_least_float32(embeddings),
        _at_least_float32(references),
    )
    # The temperature goes into the small factor.
    logits = tf.matmul(embeddings / temperature, references, transpose_b=True)
    if excluded is not None:
        logits = tf.where(excluded, tf.constant(-1e4, logits.dtype), logits)
    return softmax(logits)


def _at_least_float32(tensor):
    """Similarities and softmaxes in half precision lose the sharp teacher's tail."""
    tensor = tf.convert_to_tensor(tensor)
    return tf.cast(tensor, tf.float32) if tensor.dtype.size < 4 else tensor


def cross_entropy(student, teacher):
    """Cross-entropy from the teacher's relation to the student's.

    No gradient reaches the teacher's logits.

    Args:
        student: `Softmax`.
        teacher: `Softmax` over the same references.

    Returns:
        Loss per example, [batch], in nats.
    """
    logits = tf.stop_gradient(student.logits)
    expected = tf.einsum("br,br->b", teacher.probabilities, logits)
    return _with_slope(
        tf.stop_gradient(student.log_partition) - expected,
        student.logits,
        lambda: student.probabilities - teacher.probabilities,
    )


def entropy(relation):
    """Shannon entropy of a relation.

    A teacher entropy near log(queue size) says the relation is uniform and teaches
    nothing; one near zero says it names a single neighbour.

    Args:
        relation: `Softmax`.

    Returns:
        Entropy [batch], in nats; no gradient passes.
    """
    return tf.stop_gradient(cross_entropy(relation, relation))


def info_nce(relation, positive):
    """InfoNCE: cross-entropy of picking the positive among it and the references.

    Args:
        relation: `Softmax` over the negatives.
        positive: float tensor [batch], similarity to the positive over the same
            temperature.

    Returns:
        Loss per example, [batch], in nats.
    """
    return tf.nn.softplus(relation.log_partition - positive)


def relational_loss(
    student, teacher, queue, student_temperature=0.1, teacher_temperature=0.04
):
    """The ReSSL loss (arXiv 2107.09282, section 3.2).

    The teacher's similarities to the queue, through a sharp softmax, are the target
    for the student's similarities to the same queue. Gradients reach the student only.

    Args:
        student: float tensor [batch, dim], unit rows: embeddings of the strong views.
        teacher: float tensor [batch, dim], unit rows: embeddings of the weak views.
        queue: float tensor [queue size, dim], unit rows: past teacher embeddings.
        student_temperature: positive number.
        teacher_temperature: positive number, below the student's to sharpen the target.

    Returns:
        Loss per example, [batch], in nats. Half precision inputs are computed in
        float32.

    Example:

    >>> unit = lambda x: tf.math.l2_normalize(x, axis=-1)
    >>> student = unit(tf.random.normal([8, 128]))
    >>> teacher = unit(tf.random.normal([8, 128]))
    >>> queue = unit(tf.random.normal([4096, 128]))
    >>> relational_loss(student, teacher, queue).shape
    TensorShape([8])
    """
    teacher, queue = tf.stop_gradient(teacher), tf.stop_gradient(queue)
    return cross_entropy(
        relate(student, queue, student_temperature),
        relate(teacher, queue, teacher_temperature),
    )


def info_nce_loss(student, teacher, queue, temperature=0.2):
    """InfoNCE with one positive pair and the queue as negatives (arXiv 1911.05722).

    Args:
        student: float tensor [batch, dim], unit rows.
        teacher: float tensor [batch, dim], unit rows; row i is the positive of row i.
        queue: float tensor [queue size, dim], unit rows: the negatives.
        temperature: positive number.

    Returns:
        Loss per example, [batch], in nats.
    """
    student, teacher = _at_least_float32(student), _at_least_float32(teacher)
    positive = tf.reduce_sum(student * tf.stop_gradient(teacher), axis=-1)
    relation = relate(student, tf.stop_gradient(queue), temperature)
    return info_nce(relation, positive / temperature)
