"""What a training step exchanges between the replicas of a distribution strategy.

All functions are called in replica context; with one replica they do nothing.
"""

import tensorflow as tf

from ressl_keras.augmentation.bundle import first_index


def count():
    """Number of replicas."""
    return tf.distribute.get_replica_context().num_replicas_in_sync


def indices(batch_size):
    """Indices [batch] in the global batch of this replica's examples."""
    return first_index(batch_size) + tf.range(batch_size)


def gather(tensor):
    """The global batch, in replica order, on every replica.

    Args:
        tensor: [batch, ...], of equal length on all replicas.

    Returns:
        Tensor [global batch, ...].
    """
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return tensor
    batch, *rest = tensor.shape
    if batch is None:
        tensor = _of_equal_length(tensor, context)
    gathered = context.all_gather(tensor, axis=0)  # loses the static shape
    total = batch and batch * context.num_replicas_in_sync
    return tf.ensure_shape(gathered, [total, *rest])


def _of_equal_length(tensor, context):
    """The tensor, if those of all replicas are of its length."""
    length = tf.cast(tf.shape(tensor)[0], tf.float32)
    # Indices in the global batch are made of it.
    total = context.all_reduce(tf.distribute.ReduceOp.SUM, length)
    message = (
        "A batch cannot be split into equal parts for the replicas; make batches with "
        "drop_remainder=True."
    )
    equal = tf.debugging.assert_equal(
        total, length * context.num_replicas_in_sync, message
    )
    with tf.control_dependencies([equal]):
        return tf.identity(tensor)


def total(tensors):
    """The sums of tensors over the replicas, on every replica; None stays None."""
    context = tf.distribute.get_replica_context()
    given = [tensor for tensor in tensors if tensor is not None]
    if context.num_replicas_in_sync > 1:
        given = context.all_reduce(tf.distribute.ReduceOp.SUM, given)
    summed = iter(given)
    return [None if tensor is None else next(summed) for tensor in tensors]


def finite_on_all(gradients):
    """The gradients of this replica; all NaN if those of any are not finite.

    Keras' loss scaling skips an update by the gradients of the first replica alone.
    """
    if count() == 1:
        return gradients
    context = tf.distribute.get_replica_context()
    given = [tf.convert_to_tensor(g) for g in gradients if g is not None]
    finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(g)) for g in given])
    broken = tf.cast(~finite, tf.float32)
    broken = context.all_reduce(tf.distribute.ReduceOp.SUM, broken) > 0
    spoil = tf.where(broken, float("nan"), 0.0)
    return [None if g is None else g + tf.cast(spoil, g.dtype) for g in gradients]


def mean_std(embeddings):
    """Standard deviation over the global batch, averaged over the dimensions.

    Args:
        embeddings: float tensor [batch, dim].

    Returns:
        Scalar.
    """
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return tf.reduce_mean(tf.math.reduce_std(embeddings, axis=0))
    moments = tf.stack(
        [tf.reduce_mean(embeddings, axis=0), tf.reduce_mean(embeddings**2, axis=0)]
    )
    mean, square = tf.unstack(context.all_reduce(tf.distribute.ReduceOp.MEAN, moments))
    return tf.reduce_mean(tf.sqrt(tf.maximum(square - mean**2, 0)))


def shuffled(function, batch, draw_seed):
    """Applies a function to a batch whose examples are shuffled over the replicas.

    Every replica gets other examples than its own, and its own results back. A batch
    norm inside then takes its statistics from other images than the student's, as in
    the reference implementation.

    Args:
        function: from [batch, ...] to [batch, dim].
        batch: tensor [batch, ...].
        draw_seed: integer tensor [2], equal on all replicas.

    Returns:
        Tensor [batch, dim], in the order of `batch`.
    """
    size = tf.shape(batch)[0]
    own = indices(size)
    lots = tf.random.stateless_uniform([size * count()], draw_seed, alg="philox")
    order = tf.argsort(lots)  # the same on every replica
    dealt = tf.gather(gather(batch), tf.gather(order, own))
    results = gather(function(tf.ensure_shape(dealt, batch.shape)))
    results = tf.gather(results, tf.gather(tf.argsort(order), own))
    return tf.ensure_shape(results, [batch.shape[0], results.shape[-1]])
