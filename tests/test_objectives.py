"""Methods as functions of similarities, against NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from ressl_keras import UsageError
from ressl_keras.method import losses, objectives


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.fixture
def similarities(random):
    """Of student and teacher to eleven references, and to each other."""
    return [random.uniform(-1, 1, shape) for shape in ([5, 11], [5, 11], [5])]


def call(objective, similarities, step):
    """The objective on relations at the temperatures that it names."""
    student, teacher, positive = map(tf.constant, similarities)
    return objective(
        losses.softmax(student / objective.student_temperature),
        losses.softmax(teacher / objective.teacher_temperature),
        positive,
        step=tf.constant(step),
    )


def test_relation_is_the_cross_entropy_between_two_softmaxes(similarities):
    student, teacher, _ = similarities
    loss = call(objectives.Relation(0.2, 0.05), similarities, step=0)
    target = np.exp(log_softmax(teacher / 0.05))
    expected = -(target * log_softmax(student / 0.2)).sum(-1)
    np.testing.assert_allclose(loss, expected, atol=1e-12)


def test_info_nce_finds_the_positive_among_the_references(similarities):
    student, _, positive = similarities
    loss = call(objectives.InfoNCE(0.2), similarities, step=0)
    logits = np.concatenate([positive[:, None], student], -1) / 0.2
    np.testing.assert_allclose(loss, -log_softmax(logits)[:, 0], atol=1e-12)


def test_the_methods_are_the_losses_of_embeddings(random):
    """The functions of `losses` and the classes say the same."""
    student, teacher, queue = (
        tf.math.l2_normalize(random.normal(size=[n, 7]), axis=-1) for n in (5, 5, 11)
    )
    similarities = (
        student @ tf.transpose(queue),
        teacher @ tf.transpose(queue),
        tf.reduce_sum(student * teacher, -1),
    )
    np.testing.assert_allclose(
        call(objectives.Relation(), similarities, step=0),
        losses.relational_loss(student, teacher, queue),
        atol=1e-12,
    )
    np.testing.assert_allclose(
        call(objectives.InfoNCE(), similarities, step=0),
        losses.info_nce_loss(student, teacher, queue),
        atol=1e-12,
    )


def test_a_warm_up_goes_from_one_objective_to_the_other(similarities):
    first, then = objectives.InfoNCE(), objectives.Relation()
    warm_up = objectives.WarmUp(first, then, steps=3)
    for step, objective in ((0, first), (2, first), (3, then), (9, then)):
        np.testing.assert_allclose(
            call(warm_up, similarities, step), call(objective, similarities, step)
        )
    # What the metrics describe does not change on the way.
    assert warm_up.student_temperature == then.student_temperature
    assert warm_up.teacher_temperature == then.teacher_temperature


def test_a_warm_up_takes_objectives_of_ones_own(similarities):
    def distance(positive):
        return 1 - positive

    warm_up = objectives.WarmUp(objectives.Objective(distance), distance, steps=3)
    for step in (0, 9):
        found = call(warm_up, similarities, step)
        np.testing.assert_allclose(found, 1 - similarities[2])
    with pytest.raises(UsageError, match="differ in symmetric"):
        objectives.WarmUp(objectives.Objective(distance, symmetric=True), distance, 3)


@pytest.mark.parametrize(
    "objective",
    [
        objectives.Relation(0.3, 0.02),
        objectives.InfoNCE(0.5),
        objectives.WarmUp(objectives.InfoNCE(0.5), objectives.Relation(0.3), 7),
    ],
)
def test_objectives_survive_serialisation(objective, similarities):
    twin = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(objective)
    )
    assert twin.get_config() == objective.get_config()
    for step in (0, 9):
        np.testing.assert_array_equal(
            call(twin, similarities, step), call(objective, similarities, step)
        )


def test_a_method_is_found_by_its_name():
    assert isinstance(objectives.build_objective("ressl"), objectives.Relation)
    assert isinstance(objectives.build_objective("moco_v2"), objectives.InfoNCE)
    warm = objectives.build_objective("ressl", 0.2, 0.1, 0.3, info_nce_steps=5)
    assert (warm.steps, warm.first.temperature) == (5, 0.3)
    with pytest.raises(UsageError, match="Did you mean moco_v2"):
        objectives.build_objective("moco")


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: objectives.Relation(student_temperature=0), "student_temperature"),
        (lambda: objectives.Relation(teacher_temperature=-1), "teacher_temperature"),
        (lambda: objectives.InfoNCE(0), "info_nce_temperature"),
    ],
)
def test_temperatures_are_positive(make, name):
    with pytest.raises(UsageError, match=f"{name} must be positive"):
        make()
