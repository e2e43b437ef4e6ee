"""SGD with the paper's weight decay, and its learning-rate schedule."""

import keras


@keras.saving.register_keras_serializable("ressl_keras")
class SGD(keras.optimizers.SGD):
    """SGD with momentum and L2 weight decay.

    Keras' own `weight_decay` is decoupled from the gradient. The paper's optimizer adds
    it to the gradient, where the momentum accumulates it: at momentum 0.9 the same
    number acts ten times as strongly. Biases and batch-norm scales (variables of rank
    below two) are not decayed.

    Args:
        learning_rate: number or `keras.optimizers.schedules.LearningRateSchedule`.
        momentum: number in [0, 1].
        l2: weight decay added to the gradient, as `l2 * weight`.
        **kwargs: further arguments of `keras.optimizers.SGD`.

    Example:

    >>> optimizer = SGD(learning_rate=0.06, momentum=0.9, l2=5e-4)
    """

    def __init__(self, learning_rate=0.06, momentum=0.9, l2=0.0, **kwargs):
        super().__init__(learning_rate=learning_rate, momentum=momentum, **kwargs)
        self.l2 = float(l2)

    def update_step(self, gradient, variable, learning_rate):
        if len(variable.shape) > 1:
            gradient = gradient + self.l2 * keras.ops.cast(variable, gradient.dtype)
        super().update_step(gradient, variable, learning_rate)

    def get_config(self):
        return {**super().get_config(), "l2": self.l2}


def warmup_cosine(
    peak: float, total_steps: int, warmup_steps: int = 0
) -> keras.optimizers.schedules.CosineDecay:
    """Linear warm-up to `peak`, then cosine decay to zero.

    Args:
        peak: learning rate at the end of the warm-up.
        total_steps: steps of the whole run.
        warmup_steps: steps of the warm-up, fewer than `total_steps`.

    Returns:
        A `keras.optimizers.schedules.CosineDecay`.
    """
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup_steps else peak,
        decay_steps=max(total_steps - warmup_steps, 1),
        warmup_target=peak if warmup_steps else None,
        warmup_steps=warmup_steps,
    )
