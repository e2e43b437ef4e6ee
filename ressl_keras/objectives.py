"""Methods: what is made of the similarities that a training step has measured.

A step relates the student's and the teacher's embeddings to a set of references, the
queue as a rule, each at the temperature that the method names, and measures how similar
they are to each other. A method turns this into a loss; it is one small class, and the
step knows none by name.
"""

import keras
import tensorflow as tf

from ressl_keras import losses
from ressl_keras.errors import UsageError, near

# Methods by name, and the view that the teacher of each has unless told otherwise.
METHODS = {"ressl": "weak", "moco_v2": "strong"}


def build_objective(
    method,
    student_temperature=0.1,
    teacher_temperature=0.04,
    info_nce_temperature=0.2,
    info_nce_steps=0,
):
    """The objective of a method.

    Args:
        method: `ressl` or `moco_v2`.
        student_temperature: of the relation.
        teacher_temperature: of the relation.
        info_nce_temperature: of MoCo v2, and of ReSSL's warm-up.
        info_nce_steps: steps of ReSSL's warm-up with InfoNCE; 0 for none.

    Returns:
        A `Relation`, `InfoNCE` or `WarmUp`.

    Raises:
        UsageError: if the method is unknown or a temperature is not positive.
    """
    if method not in METHODS:
        raise UsageError(f"Unknown method '{method}'. {near(method, METHODS)}")
    info_nce = InfoNCE(info_nce_temperature)
    relation = Relation(student_temperature, teacher_temperature)
    if method == "moco_v2":
        return info_nce
    return WarmUp(info_nce, relation, info_nce_steps) if info_nce_steps else relation


def check_positive(**numbers):
    """Sees that all are positive.

    Raises:
        UsageError: naming the first that is not.
    """
    for name, number in numbers.items():
        if not number > 0:
            raise UsageError(f"{name} must be positive; got {number}.")


@keras.saving.register_keras_serializable("ressl_keras")
class Relation:
    """The relation of ReSSL (arXiv 2107.09282, section 3.2).

    The student learns to relate its view to the references as the teacher relates the
    other view to them; how similar the two views are to each other does not matter.

    Args:
        student_temperature: positive number.
        teacher_temperature: positive number; below the student's, the target is
            sharpened, and equal to it, it is not.

    Call arguments:
        student: `losses.Distribution` over the references, the student's relation at
            `student_temperature`.
        teacher: the teacher's, at `teacher_temperature`.
        positive: float tensor [batch], cosine similarity of the two embeddings of an
            image to each other.
        step: integer tensor, optimizer steps taken so far.

    Returns:
        Loss per example, [batch], in nats.

    Raises:
        UsageError: if a temperature is not positive.

    Example:

    >>> unit = lambda x: tf.math.l2_normalize(x, axis=-1)
    >>> embeddings = unit(tf.random.normal([8, 128]))
    >>> queue = unit(tf.random.normal([4096, 128]))
    >>> objective = Relation()
    >>> student = losses.relate(embeddings, queue, objective.student_temperature)
    >>> teacher = losses.relate(embeddings, queue, objective.teacher_temperature)
    >>> objective(student, teacher, tf.ones([8]), step=0).shape
    TensorShape([8])
    """

    def __init__(self, student_temperature=0.1, teacher_temperature=0.04):
        check_positive(
            student_temperature=student_temperature,
            teacher_temperature=teacher_temperature,
        )
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature

    def __call__(self, student, teacher, positive, step):
        return losses.cross_entropy(student, teacher)

    def get_config(self):
        return {
            "student_temperature": self.student_temperature,
            "teacher_temperature": self.teacher_temperature,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable("ressl_keras")
class InfoNCE:
    """The contrast of MoCo v2 (arXiv 2003.04297): the other view among the references.

    The student learns to find the teacher's embedding of its own image; the references
    are its negatives, and the teacher's relation to them does not matter.

    Args:
        temperature: positive number.

    Call arguments and result: as of `Relation`.

    Raises:
        UsageError: if the temperature is not positive.
    """

    def __init__(self, temperature=0.2):
        check_positive(info_nce_temperature=temperature)
        self.temperature = temperature

    @property
    def student_temperature(self):
        return self.temperature

    @property
    def teacher_temperature(self):
        """Of the relation that the metrics describe; the loss has no use for it."""
        return self.temperature

    def __call__(self, student, teacher, positive, step):
        return losses.contrast(student, positive / self.temperature)

    def get_config(self):
        return {"temperature": self.temperature}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable("ressl_keras")
class WarmUp:
    """One objective for the first steps and another from there on (arXiv 2203.08717).

    Relations to a queue that means nothing yet teach little; a contrast does.

    Args:
        first: objective of the first steps.
        then: objective of the others, at whose temperatures the relations are taken
            throughout.
        steps: how many steps are the first.

    Call arguments and result: as of `Relation`.
    """

    def __init__(self, first, then, steps):
        self.first, self.then, self.steps = first, then, steps

    @property
    def student_temperature(self):
        return self.then.student_temperature

    @property
    def teacher_temperature(self):
        return self.then.teacher_temperature

    def __call__(self, student, teacher, positive, step):
        def first():
            student_then = self.student_temperature, self.first.student_temperature
            teacher_then = self.teacher_temperature, self.first.teacher_temperature
            return self.first(
                _reheated(student, *student_then),
                _reheated(teacher, *teacher_then),
                positive,
                step,
            )

        return tf.cond(
            step < self.steps,
            first,
            lambda: self.then(student, teacher, positive, step),
        )

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            "first": serialize(self.first),
            "then": serialize(self.then),
            "steps": self.steps,
        }

    @classmethod
    def from_config(cls, config):
        deserialize = keras.saving.deserialize_keras_object
        return cls(
            deserialize(config["first"]),
            deserialize(config["then"]),
            config["steps"],
        )


def _reheated(relation, before, after):
    """A relation taken at one temperature as it is at another."""
    if before == after:
        return relation
    return losses.distribution(relation.logits * (before / after))
