"""Three objectives of one's own, as flags and from Python.

  ressl-train --recipe=quickstart --objective=examples.objectives:simclr

They show the shape of an objective; none of them is tuned. docs/own_method.md has the
flags of each: byol takes a predictor and a schedule of the momentum.
"""

import keras
import tensorflow as tf

from ressl_keras import Objective


@keras.saving.register_keras_serializable("examples")
def info_nce_in_batch(student_embeddings, teacher_embeddings):
    """SimCLR (arXiv 2002.05709): the other images of the batch are the negatives."""
    views = tf.concat([student_embeddings, teacher_embeddings], axis=0)  # [2b, D]
    count = tf.shape(student_embeddings)[0]
    similarities = tf.matmul(views, views, transpose_b=True) / 0.2
    similarities -= 1e9 * tf.eye(2 * count)  # no image is its own negative
    partner = tf.roll(tf.range(2 * count), count, axis=0)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(partner, similarities)
    return (losses[:count] + losses[count:]) / 2


@keras.saving.register_keras_serializable("examples")
def distance(positive):
    """BYOL (arXiv 2006.07733): the squared distance of two unit vectors."""
    return 2 - 2 * positive


@keras.saving.register_keras_serializable("examples")
def variance_and_covariance(student_embeddings, teacher_embeddings):
    """Like VICReg (arXiv 2105.04906), on embeddings scaled to length sqrt(D)."""
    dim = student_embeddings.shape[-1]
    views = [z * dim**0.5 for z in (student_embeddings, teacher_embeddings)]
    loss = 25 * tf.reduce_mean((views[0] - views[1]) ** 2, axis=-1)  # [b]
    for z in views:
        z -= tf.reduce_mean(z, axis=0)
        count = tf.cast(tf.shape(z)[0], z.dtype)
        covariance = tf.matmul(z, z, transpose_a=True) / (count - 1)  # [D, D]
        variance = tf.linalg.diag_part(covariance)
        loss += 25 * tf.reduce_mean(tf.nn.relu(1 - tf.sqrt(variance + 1e-4)))
        loss += (tf.reduce_sum(covariance**2) - tf.reduce_sum(variance**2)) / dim
    return loss


simclr = Objective(info_nce_in_batch, both_branches=True)
byol = Objective(distance, symmetric=True)
vicreg = Objective(variance_and_covariance, both_branches=True)
