"""The objective: relations between embeddings and a queue, and their cross-entropy.

Everything here is a function of tensors. Embeddings and queue rows are expected to
have unit length, so that an inner product is a cosine similarity.
"""

import tensorflow as tf


def _at_least_float32(tensor):
    """Similarities and softmaxes in half precision lose the sharp teacher's tail."""
    tensor = tf.convert_to_tensor(tensor)
    return tf.cast(tensor, tf.float32) if tensor.dtype.size < 4 else tensor


def relation_logits(embeddings, queue, temperature):
    """Scaled similarities of each embedding to each queue entry.

    Args:
        embeddings: float tensor [batch, dim], unit rows.
        queue: float tensor [queue size, dim], unit rows.
        temperature: positive number; smaller is sharper.

    Returns:
        Logits [batch, queue size], float64 for float64 inputs and float32 otherwise.
    """
    embeddings, queue = _at_least_float32(embeddings), _at_least_float32(queue)
    return tf.matmul(embeddings, queue, transpose_b=True) / temperature


def cross_entropy(student_logits, teacher_logits):
    """Cross-entropy from the teacher's relation to the student's.

    No gradient reaches the teacher's logits.

    Args:
        student_logits: float tensor [batch, queue size].
        teacher_logits: float tensor [batch, queue size], same dtype.

    Returns:
        Loss per example, [batch], in nats.
    """
    target = tf.stop_gradient(tf.nn.softmax(teacher_logits))
    return tf.nn.softmax_cross_entropy_with_logits(labels=target, logits=student_logits)


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
    queue = tf.stop_gradient(queue)
    return cross_entropy(
        relation_logits(student, queue, student_temperature),
        relation_logits(tf.stop_gradient(teacher), queue, teacher_temperature),
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
    return contrast(
        relation_logits(student, tf.stop_gradient(queue), 1.0), positive, temperature
    )


def contrast(negatives, positive, temperature):
    """InfoNCE from similarities.

    Args:
        negatives: float tensor [batch, count], similarities to the negatives.
        positive: float tensor [batch], similarity to the positive.
        temperature: positive number.

    Returns:
        Loss per example, [batch], in nats.
    """
    logits = tf.concat([positive[:, tf.newaxis], negatives], axis=-1) / temperature
    return tf.reduce_logsumexp(logits, axis=-1) - logits[:, 0]


def entropy(logits):
    """Shannon entropy of softmax(logits), per row.

    A teacher entropy near log(queue size) says the relation is uniform and teaches
    nothing; one near zero says it names a single neighbour.

    Args:
        logits: float tensor [batch, classes].

    Returns:
        Entropy [batch], in nats.
    """
    return tf.nn.softmax_cross_entropy_with_logits(
        labels=tf.nn.softmax(logits), logits=logits
    )
