"""The queue of past teacher embeddings that both encoders are compared with."""

import keras
import numpy as np
import tensorflow as tf

from ressl_keras.errors import UsageError


@keras.saving.register_keras_serializable("ressl_keras")
class FeatureQueue(keras.layers.Layer):
    """A first-in-first-out queue of unit vectors, updated in place.

    It starts full of random unit vectors, as in the paper's script. An enqueue writes
    only the rows that it replaces, so its cost does not depend on the queue's size. It
    wraps around for any batch that is not larger than the queue.

    Args:
        size: number of rows, K in the paper.
        dim: length of a row.
        seed: integer seed of the random start.

    Raises:
        UsageError: if `size` or `dim` is not positive.

    Example:

    >>> queue = FeatureQueue(size=4096, dim=128)
    >>> queue.enqueue(tf.math.l2_normalize(tf.random.normal([256, 128]), axis=-1))
    >>> queue.features.shape
    TensorShape([4096, 128])
    """

    def __init__(self, size, dim, seed=0, **kwargs):
        super().__init__(**kwargs)
        if size < 1 or dim < 1:
            raise UsageError(
                f"A queue needs a positive size and dim; got size={size}, dim={dim}."
            )
        self.size, self.dim, self.seed = int(size), int(dim), int(seed)
        # A raw tf.Variable would be absent from Keras' weight files, and add_weight
        # takes no `synchronization`. On-read variables have one copy a replica that
        # the replica itself updates; since every replica enqueues the same gathered
        # batch, the copies stay equal and the first may stand for all.
        per_replica = dict(
            trainable=False,
            autocast=False,
            synchronization="on_read",
            aggregation="only_first_replica",
        )
        self._features = keras.Variable(
            _random_rows(self.size, self.dim, self.seed), name="features", **per_replica
        )
        # Not int32: TensorFlow keeps that on the CPU, where XLA on a GPU cannot get it.
        self._pointer = keras.Variable(0, dtype="int64", name="pointer", **per_replica)
        self.built = True

    @property
    def features(self):
        """All rows, float32 tensor [size, dim], in storage order."""
        return tf.convert_to_tensor(self._features.value)

    def share(self):
        """Lets the next read of `features` share the variable's memory.

        After a scatter update TensorFlow copies the variable on every read; this
        disables that until the next scatter. No tensor that was read may still be in
        use when `enqueue` runs. XLA has no such operation and does not need it.
        """
        tf.raw_ops.DisableCopyOnRead(resource=self._features.value.handle)

    @property
    def pointer(self):
        """Index of the oldest row, which is replaced next; int64 scalar."""
        return tf.convert_to_tensor(self._pointer.value)

    def enqueue(self, embeddings):
        """Replaces the oldest rows by `embeddings`.

        Under a distribution strategy, call it in replica context with the same
        global batch on every replica.

        Args:
            embeddings: float tensor [batch, dim], unit rows, batch <= size.

        Raises:
            UsageError: if the batch is larger than the queue or the rows do not fit.
        """
        batch, dim = embeddings.shape
        if dim != self.dim or (batch is not None and batch > self.size):
            raise UsageError(
                f"A batch of shape {tuple(embeddings.shape)} does not fit into a queue "
                f"of {self.size} rows of {self.dim}."
            )
        count = tf.shape(embeddings, tf.int64)[0]
        if batch is None:
            message = f"A batch is larger than the queue of {self.size} rows."
            most = tf.constant(self.size, tf.int64)
            fits = tf.debugging.assert_less_equal(count, most, message)
            with tf.control_dependencies([fits]):
                count = tf.identity(count)
        pointer = self.pointer
        rows = (pointer + tf.range(count)) % self.size
        # The method `scatter_nd_update` is not implemented for distributed variables;
        # the op on the replica's own handle is the same write.
        tf.raw_ops.ResourceScatterNdUpdate(
            ref=self._features.value.handle,
            indices=rows[:, tf.newaxis],
            updates=tf.cast(embeddings, tf.float32),
        )
        self._pointer.value.assign((pointer + count) % self.size)

    def call(self, embeddings):
        """Cosine similarities [batch, size] of unit `embeddings` [batch, dim]."""
        return tf.matmul(
            tf.cast(embeddings, tf.float32), self.features, transpose_b=True
        )

    def get_config(self):
        return {
            **super().get_config(),
            "size": self.size,
            "dim": self.dim,
            "seed": self.seed,
        }


def _random_rows(size, dim, seed, block=4096):
    """Random unit vectors [size, dim], made in blocks: at once, 131,072 rows of 512
    would take four times their memory."""
    rows = np.empty([size, dim], np.float32)
    for number, start in enumerate(range(0, size, block)):
        count = min(block, size - start)
        drawn = tf.random.stateless_normal([count, dim], [seed, number], alg="philox")
        rows[start : start + count] = tf.math.l2_normalize(drawn, axis=-1)
    return rows
