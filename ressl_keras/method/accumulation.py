"""A step's gradients from parts of its batch, one part after the other.

The activations of one part are in memory at a time, so that a batch fits whose
activations together would not.
"""

import tensorflow as tf


def accumulate(function, batch, parts, variables):
    """Applies a function to a batch in equal parts; adds the gradients.

    A part begins when the one before has ended. The parts are rounds of one loop, so
    the size of the graph does not depend on their number.

    Args:
        function: from a part of each argument, [batch / parts, ...], to the gradients
            of `variables` and to float32 embeddings [batch / parts, dim]. Within it,
            replicas cannot exchange anything.
        batch: arguments of the function for the whole batch: tensors [batch, ...], or
            lists of such tensors.
        parts: number of parts. With 1 the function is called with the whole batch.
        variables: list of variables.

    Returns:
        Tuple of the sums of the gradients, 0 for variables without one, and the
        embeddings [batch, dim].

    Raises:
        tf.errors.InvalidArgumentError: if the batch cannot be split into so many equal
            parts.
    """
    if parts == 1:
        return function(*batch)
    split = tf.nest.map_structure(lambda tensor: _split(tensor, parts), batch)

    def learn(index, sums, embedded):
        part = tf.nest.map_structure(lambda tensor: tensor[index], split)
        gradients, embeddings = function(*part)
        sums = [_added(*each) for each in zip(sums, gradients, strict=True)]
        return index + 1, sums, embedded.write(index, embeddings)

    zeros = [tf.zeros(variable.shape, variable.dtype) for variable in variables]
    embedded = tf.TensorArray(tf.float32, parts)
    _, sums, embedded = tf.while_loop(
        lambda index, *_: index < parts,
        learn,
        (0, zeros, embedded),
        parallel_iterations=1,  # else a part begins before the one before has ended
    )
    return sums, embedded.concat()


def _added(total, gradient):
    """A sum with another gradient: none of a weight that the loss does not reach."""
    return total if gradient is None else total + tf.convert_to_tensor(gradient)


def _split(tensor, parts):
    """A tensor [batch, ...] as [parts, batch / parts, ...]."""
    remainder = (tensor.shape[0] or tf.shape(tensor)[0]) % parts
    message = f"A batch cannot be split into {parts} equal parts (accumulate_steps)."
    with tf.control_dependencies([tf.debugging.assert_equal(remainder, 0, message)]):
        return tf.reshape(tensor, [parts, -1, *tensor.shape[1:]])
