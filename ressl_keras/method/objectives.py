"""Objectives: the loss of a training step as a function of its similarities.

A training step compares the student's and the teacher's embeddings with the same
references, usually the queue, each at a temperature that the objective names, and
measures the similarity of the two embeddings of an image. An objective turns these
into a loss per example. It is one small class; the step knows none by name.
"""

import inspect

import keras
import tensorflow as tf

from ressl_keras.errors import UsageError, closest, first_line
from ressl_keras.method import losses


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
    info_nce = InfoNCE(info_nce_temperature)
    relation = Relation(student_temperature, teacher_temperature)
    warm_up = WarmUp(info_nce, relation, info_nce_steps)
    methods = {
        "ressl": warm_up if info_nce_steps else relation,
        "moco_v2": info_nce,
    }
    if method not in methods:
        raise UsageError(f"Unknown method '{method}'. {closest(method, methods)}")
    return methods[method]


# What an objective may ask for, by the names of its arguments.
_KNOWN = ("student", "teacher", "positive", "step")
_KNOWN += ("student_embeddings", "teacher_embeddings")


def as_objective(objective):
    """An objective of what may be a plain function or a class."""
    if inspect.isclass(objective):
        objective = objective()
    if hasattr(objective, "get_config") or not inspect.isroutine(objective):
        return objective
    return Objective(objective)


def arguments_of(objective):
    """Names of the arguments that an objective is called with.

    Raises:
        UsageError: if it has one that no training step knows.
    """
    call = getattr(objective, "function", objective)
    names = tuple(inspect.signature(call).parameters)
    unknown = [name for name in names if name not in _KNOWN]
    if unknown:
        raise UsageError(
            f"The objective has an argument {unknown[0]}; known are "
            f"{', '.join(_KNOWN)}."
        )
    return names


def uses(objective):
    """Names of what enters the loss of an objective."""
    own = {InfoNCE: {"student", "positive"}, Relation: {"student", "teacher"}}
    return own.get(type(objective)) or set(arguments_of(objective))


def evaluate(objective, **available):
    """Calls an objective with what it asks for."""
    return objective(**{name: available[name] for name in arguments_of(objective)})


def check_positive(**numbers):
    """Checks that all numbers are positive.

    Raises:
        UsageError: naming the first that is not.
    """
    for name, number in numbers.items():
        if not number > 0:
            raise UsageError(f"{name} must be positive; got {number}.")


def check_objective(objective):
    """Checks that an object is an objective: callable, with its two temperatures.

    Raises:
        TypeError: saying what is missing.
    """
    wanted = ("student_temperature", "teacher_temperature")
    missing = [name for name in wanted if not hasattr(objective, name)]
    if missing or not callable(objective):
        lacking = " and ".join(missing) or "__call__"
        kind = getattr(objective, "__name__", type(objective).__name__)
        raise TypeError(
            f"objective is {kind}, which has no {lacking}. An objective is a function, "
            "or an instance of a class with student_temperature, teacher_temperature "
            "and __call__, such as Relation()."
        )


def serialize_objective(objective):
    """An objective as Keras saves it.

    Raises:
        TypeError: if it could not be loaded again.
    """
    kind = type(objective)
    missing = [
        name for name in ("get_config", "from_config") if not hasattr(kind, name)
    ]
    if missing:
        raise TypeError(
            f"The model cannot be saved as a whole: its objective {kind.__name__} has "
            f"no {' and no '.join(missing)}. Add what is missing, or save "
            "model.backbone or model.save_weights instead."
        )
    return keras.saving.serialize_keras_object(objective)


def deserialize_objective(config, custom_objects=None):
    """The objective in a saved model.

    Raises:
        UsageError: if its class is not known or does not take its configuration.
    """
    try:
        return keras.saving.deserialize_keras_object(
            config, custom_objects=custom_objects
        )
    except TypeError as error:
        # Not a TypeError: Keras would add the whole configuration to it.
        name = config.get("class_name")
        raise UsageError(
            f"The saved model's objective {name} cannot be made "
            f"({first_line(error)[:200]}). Register its class with "
            "@keras.saving.register_keras_serializable() before loading, or give "
            f'custom_objects={{"{name}": {name}}}.'
        ) from error


@keras.saving.register_keras_serializable("ressl_keras")
class Objective:
    """An objective of a plain function.

    Args:
        function: called with those of these that its arguments name: `student` and
            `teacher`, the relations (`losses.Softmax`); `student_embeddings` and
            `teacher_embeddings`, unit rows [batch, dim]; `positive`, the similarity
            [batch] of the two embeddings of an image; `step`. It returns a loss per
            example, [batch]. Registered with Keras, it is saved with a model.
        student_temperature: of the student's relation.
        teacher_temperature: of the teacher's relation.
        symmetric: whether there is a second pass with the views exchanged; the loss is
            the mean of both.
        both_branches: whether the student embeds both views, so that the gradient goes
            through both; the teacher then fills only the queue.

    Raises:
        UsageError: if the function has an argument that no training step knows.

    Example:

    >>> @keras.saving.register_keras_serializable("mine")
    ... def distance(positive):
    ...     return 2 - 2 * positive
    >>> model = ReSSL(backbone, objective=Objective(distance, symmetric=True))
    """

    def __init__(
        self,
        function,
        student_temperature=0.1,
        teacher_temperature=0.1,
        symmetric=False,
        both_branches=False,
    ):
        check_positive(
            student_temperature=student_temperature,
            teacher_temperature=teacher_temperature,
        )
        self.function = function
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature
        self.symmetric, self.both_branches = symmetric, both_branches
        arguments_of(self)

    def __call__(self, **available):
        return self.function(**available)

    def get_config(self):
        return {
            "function": keras.saving.serialize_keras_object(self.function),
            "student_temperature": self.student_temperature,
            "teacher_temperature": self.teacher_temperature,
            "symmetric": self.symmetric,
            "both_branches": self.both_branches,
        }

    @classmethod
    def from_config(cls, config):
        function = keras.saving.deserialize_keras_object(config["function"])
        return cls(**{**config, "function": function})


@keras.saving.register_keras_serializable("ressl_keras")
class Relation:
    """The relation of ReSSL (arXiv 2107.09282, section 3.2).

    The target of the student's relation to the references is the teacher's relation.
    The similarity of the two embeddings of an image does not enter the loss.

    Args:
        student_temperature: positive number.
        teacher_temperature: positive number; a value below the student's sharpens the
            target.

    Call arguments:
        student: `losses.Softmax` over the references, the student's relation at
            `student_temperature`.
        teacher: the teacher's, at `teacher_temperature`.
        positive: float tensor [batch], cosine similarity of the two embeddings of an
            image to each other.
        step: integer tensor, training steps completed before this one.

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
    """InfoNCE as in MoCo v2 (arXiv 2003.04297).

    The positive is the teacher's embedding of the same image; the references are the
    negatives. The teacher's relation does not enter the loss.

    Args:
        temperature: positive number.

    Call arguments and result are those of `Relation`.

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
        """Temperature of the relation in the metrics; it does not enter the loss."""
        return self.temperature

    def __call__(self, student, teacher, positive, step):
        return losses.info_nce(student, positive / self.temperature)

    def get_config(self):
        return {"temperature": self.temperature}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable("ressl_keras")
class WarmUp:
    """One objective for the first steps, another after them (arXiv 2203.08717).

    While the embeddings in the queue are still random, their relations carry little
    information; InfoNCE learns from the first step.

    Args:
        first: objective of the first steps.
        then: objective of the remaining steps. The relations are computed at its
            temperatures in all steps.
        steps: number of first steps.

    Call arguments are all that a training step has for an objective; each of the two
    gets those that it names.

    Raises:
        UsageError: if one objective is `symmetric` or `both_branches` and the other is
            not.
    """

    def __init__(self, first, then, steps):
        self.first, self.then = as_objective(first), as_objective(then)
        self.steps = steps
        for name in ("symmetric", "both_branches"):
            asked = [getattr(part, name, False) for part in (self.first, self.then)]
            if asked[0] != asked[1]:
                raise UsageError(f"The two objectives of WarmUp differ in {name}.")
            setattr(self, name, asked[0])

    @property
    def student_temperature(self):
        return self.then.student_temperature

    @property
    def teacher_temperature(self):
        return self.then.teacher_temperature

    def __call__(
        self,
        student,
        teacher,
        positive,
        step,
        student_embeddings=None,
        teacher_embeddings=None,
    ):
        others = {
            "positive": positive,
            "step": step,
            "student_embeddings": student_embeddings,
            "teacher_embeddings": teacher_embeddings,
        }

        def first():
            student_then = self.student_temperature, self.first.student_temperature
            teacher_then = self.teacher_temperature, self.first.teacher_temperature
            return evaluate(
                self.first,
                student=_at_temperature(student, *student_then),
                teacher=_at_temperature(teacher, *teacher_then),
                **others,
            )

        return tf.cond(
            step < self.steps,
            first,
            lambda: evaluate(self.then, student=student, teacher=teacher, **others),
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


def _at_temperature(relation, before, after):
    """A relation computed at one temperature, converted to another."""
    if before == after:
        return relation
    return losses.softmax(relation.logits * (before / after))
