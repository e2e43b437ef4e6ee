"""Optimizers: SGD with the paper's weight decay, AdamW, LAMB; the schedule."""

import math

import keras
import tensorflow as tf

from ressl_keras.errors import UsageError, closest
from ressl_keras.method import replicas

# Without weight decay, as in vision transformers' usual training: weights, and layers
# that hold them.
_UNDECAYED = {"bias", "class_token", "position", "positions", "pos_embed"}
_UNDECAYED |= {"position_embedding", "position_embeddings"}


def is_decayed(variable):
    """Whether weight decay acts on a variable: on no norm, bias or position."""
    names = getattr(variable, "path", "").split("/")
    return len(variable.shape) > 1 and not _UNDECAYED.intersection(names)


class _ByGlobalNorm:
    """Clips by the norm of the gradients of the global batch.

    Keras clips what each replica has, before it is summed.
    """

    def _clip_gradients(self, grads):
        if not self.global_clipnorm or replicas.count() == 1:
            return super()._clip_gradients(grads)
        norm = tf.linalg.global_norm(replicas.total(grads))
        factor = self.global_clipnorm / tf.maximum(norm, self.global_clipnorm)
        return [None if g is None else g * factor for g in grads]


class _Decoupled(_ByGlobalNorm):
    """Decoupled weight decay that spares norms, biases and positions."""

    def build(self, variables):
        spared = [variable for variable in variables if not is_decayed(variable)]
        self.exclude_from_weight_decay(spared)
        super().build(variables)


@keras.saving.register_keras_serializable("ressl_keras")
class SGD(_ByGlobalNorm, keras.optimizers.SGD):
    """SGD with momentum and L2 weight decay.

    Keras' own `weight_decay` is decoupled from the gradient. The paper's optimizer adds
    it to the gradient, where the momentum accumulates it: at momentum 0.9 the same
    number acts ten times as strongly. Biases, scales of norms and positions are not
    decayed.

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

    def build(self, variables):
        self._decayed = [is_decayed(variable) for variable in variables]
        super().build(variables)

    def update_step(self, gradient, variable, learning_rate):
        # A variable of TensorFlow, which does not know its path.
        if self._decayed[self._get_variable_index(variable)]:
            gradient = gradient + self.l2 * keras.ops.cast(variable, gradient.dtype)
        super().update_step(gradient, variable, learning_rate)

    def get_config(self):
        return {**super().get_config(), "l2": self.l2}


@keras.saving.register_keras_serializable("ressl_keras")
class AdamW(_Decoupled, keras.optimizers.AdamW):
    """Keras' AdamW, with no weight decay on norms, biases and positions."""


@keras.saving.register_keras_serializable("ressl_keras")
class Lamb(_Decoupled, keras.optimizers.Lamb):
    """Keras' LAMB, with no weight decay on norms, biases and positions."""


def build_optimizer(
    name, learning_rate, weight_decay=0.0, momentum=0.9, betas=(0.9, 0.999), clip=0.0
):
    """An optimizer by its name.

    Args:
        name: `sgd`, `adamw` or `lamb`.
        learning_rate: number or schedule.
        weight_decay: of SGD, L2 added to the gradient; else decoupled from it.
        momentum: of SGD.
        betas: decay rates of AdamW's and LAMB's two averages.
        clip: largest norm of the gradients of all weights together; 0 for any.

    Returns:
        A Keras optimizer.

    Raises:
        UsageError: if the name is unknown.
    """
    options = {"learning_rate": learning_rate, "global_clipnorm": clip or None}
    adaptive = {"adamw": AdamW, "lamb": Lamb}
    if name == "sgd":
        return SGD(momentum=momentum, l2=weight_decay, **options)
    if name not in adaptive:
        raise UsageError(
            f"Unknown optimizer '{name}'. {closest(name, ['sgd', *adaptive])}"
        )
    beta_1, beta_2 = betas
    return adaptive[name](
        weight_decay=weight_decay, beta_1=beta_1, beta_2=beta_2, **options
    )


@keras.saving.register_keras_serializable("ressl_keras")
class CosineMomentum(keras.optimizers.schedules.LearningRateSchedule):
    """An EMA momentum that rises along a half cosine (arXiv 2006.07733).

    Args:
        start: momentum at the first step.
        end: momentum from the last step on.
        steps: steps of the whole run.
    """

    def __init__(self, start=0.99, end=1.0, steps=10000):
        for name, momentum in (("start", start), ("end", end)):
            if not 0 <= momentum <= 1:
                raise UsageError(f"{name} must lie in [0, 1]; got {momentum}.")
        self.start, self.end, self.steps = float(start), float(end), int(steps)

    def __call__(self, step):
        done = tf.minimum(tf.cast(step, tf.float32) / self.steps, 1.0)
        remaining = (tf.cos(math.pi * done) + 1) / 2
        return self.end - (self.end - self.start) * remaining

    def get_config(self):
        return {"start": self.start, "end": self.end, "steps": self.steps}


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
