"""Objectives of the user's own: what they see, which gradients flow, files."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from examples import objectives as examples
from ressl_keras import (
    SGD,
    Config,
    CosineMomentum,
    Objective,
    ReSSL,
    UsageError,
    build_projector,
    pretrain,
)
from ressl_keras.method import losses, objectives
from ressl_keras.training import build


def unit(random, count, dim):
    rows = random.normal(size=[count, dim])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@keras.saving.register_keras_serializable("tests")
def dissimilarity(positive):
    return 1 - positive


def model_of(objective, **options):
    """A model without batch norm on views that are given, at a learning rate of 1."""
    keras.utils.set_random_seed(2)
    images = keras.Input([4, 4, 3])
    features = keras.layers.Dense(5, "tanh")(keras.layers.Flatten()(images))
    model = ReSSL(
        keras.Model(images, features), build_projector(5, 6, 4),
        objective=objective, queue_size=8, **options,
    )  # fmt: skip
    model.compile(SGD(1.0, momentum=0.0), jit_compile=False)
    return model


def expected_weights(model, weak, strong, loss):
    """The student after a step of plain gradient descent on a loss of embeddings."""
    with tf.GradientTape() as tape:

        def embed(network, images):
            return tf.math.l2_normalize(network(images), -1)

        def student(images):
            return embed(model.student, images)

        def teacher(images):
            return tf.stop_gradient(embed(model.teacher, images))

        value = loss(student, teacher, weak, strong)
    variables = model.student.trainable_variables
    gradients = tape.gradient(value, variables)
    return [v.numpy() - g.numpy() for v, g in zip(variables, gradients)]


def distance_of(one, other):
    return tf.reduce_mean(1 - tf.reduce_sum(one * other, -1))


CASES = {
    "one branch": ({}, lambda s, t, w, x: distance_of(s(x), t(w))),
    "both branches": (
        {"both_branches": True},
        lambda s, t, w, x: distance_of(s(x), s(w)),
    ),
    "symmetric": (
        {"symmetric": True},
        lambda s, t, w, x: (distance_of(s(x), t(w)) + distance_of(s(w), t(x))) / 2,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_flows_where_the_objective_says(case, random):
    options, loss = CASES[case]
    weak, strong = (
        tf.constant(random.normal(size=[6, 4, 4, 3]), tf.float32) for _ in range(2)
    )
    model = model_of(Objective(dissimilarity, **options))
    expected = expected_weights(model, weak, strong, loss)
    data = tf.data.Dataset.from_tensors({"teacher": weak, "student": strong})
    model.fit(data, verbose=0)
    for variable, values in zip(model.student.trainable_variables, expected):
        np.testing.assert_allclose(variable.numpy(), values, atol=1e-5)


def test_an_objective_sees_what_its_arguments_name(random):
    seen = {}

    def record(
        student, teacher, student_embeddings, teacher_embeddings, positive, step
    ):
        seen.update(locals())
        return positive

    model = model_of(record)
    student, teacher, queue = unit(random, 3, 4), unit(random, 3, 4), unit(random, 8, 4)
    relation = losses.relate(student, queue, 0.1)
    target = losses.relate(teacher, queue, 0.1)
    model._loss([relation], target, [student], teacher)
    np.testing.assert_array_equal(seen["student_embeddings"], student)
    np.testing.assert_array_equal(seen["teacher_embeddings"], teacher)
    np.testing.assert_allclose(seen["positive"], (student * teacher).sum(1), atol=1e-6)
    logits = student @ queue.T / 0.1
    np.testing.assert_allclose(seen["student"].logits, logits, atol=1e-4)
    assert int(seen["step"]) == 0


def test_an_argument_that_nothing_knows_is_named():
    with pytest.raises(UsageError, match="has an argument labels; known are student"):
        Objective(lambda labels: labels)
    assert objectives.uses(Objective(dissimilarity)) == {"positive"}
    assert "teacher" in objectives.uses(objectives.Relation())
    assert "teacher" not in objectives.uses(objectives.InfoNCE())


def test_a_loss_without_a_gradient_says_what_has_one(random):
    model = model_of(lambda student: -student.probabilities[:, 0])
    views = tf.constant(random.normal(size=[6, 4, 4, 3]), tf.float32)
    data = tf.data.Dataset.from_tensors({"teacher": views, "student": views})
    with pytest.raises(UsageError, match=r"reaches the student.*student\.logits"):
        model.fit(data, verbose=0)


def test_the_momentum_follows_its_schedule():
    model = model_of(None, momentum=CosineMomentum(0.6, 1.0, steps=4))
    model.compile(SGD(0.0), jit_compile=False)  # the student stays
    student = model.student.get_weights()
    model.teacher.set_weights([0 * weights for weights in student])
    views = tf.zeros([3, 4, 4, 3])
    data = tf.data.Dataset.from_tensors({"teacher": views, "student": views})
    model.fit(data.repeat(3), verbose=0)
    steps = np.arange(3)
    momenta = 1 - 0.4 * (np.cos(np.pi * steps / 4) + 1) / 2
    for weights, found in zip(student, model.teacher.get_weights()):
        np.testing.assert_allclose(found, weights * (1 - momenta.prod()), atol=1e-5)
    plain = build.build_model(
        Config(batch_size=4, queue_size=8, final_momentum=1.0, momentum=0.9),
        build.Plan(8, total_steps=100), network=tiny.build_backbone(),
    )  # fmt: skip
    assert float(plain.momentum(0)) == pytest.approx(0.9)
    assert float(plain.momentum(100)) == 1.0


def test_a_model_with_an_own_objective_is_saved_and_loaded(tmp_path, random):
    model = model_of(
        Objective(dissimilarity, symmetric=True), momentum=CosineMomentum(0.5, 1, 9)
    )
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.objective.symmetric and again.momentum.get_config()["start"] == 0.5
    positive = tf.constant([0.25, 1.0])
    np.testing.assert_allclose(again.objective(positive=positive), [0.75, 0.0])
    images = random.normal(size=[2, 4, 4, 3])
    np.testing.assert_allclose(again(images), model(images), atol=1e-6)


def test_simclr_is_the_cross_entropy_of_finding_the_partner(random):
    one, other = unit(random, 5, 4), unit(random, 5, 4)
    views = np.concatenate([one, other]).astype(float)
    weights = np.exp(views @ views.T / 0.2)
    np.fill_diagonal(weights, 0)
    partner = np.arange(10) ^ 0
    partner = (partner + 5) % 10
    losses = -np.log(weights[np.arange(10), partner] / weights.sum(1))
    found = examples.info_nce_in_batch(tf.constant(one), tf.constant(other))
    np.testing.assert_allclose(found, (losses[:5] + losses[5:]) / 2, atol=1e-4)


def test_byol_and_vicreg_are_their_formulas(random):
    one, other = unit(random, 6, 4), unit(random, 6, 4)
    distance = ((one - other) ** 2).sum(1)
    found = examples.distance(tf.constant((one * other).sum(1)))
    np.testing.assert_allclose(found, distance, atol=1e-5)
    expected = 25 * distance
    for z in (2 * one, 2 * other):  # sqrt(4)
        covariance = np.cov(z.T)
        deviation = np.sqrt(np.diag(covariance) + 1e-4)
        expected = expected + 25 * np.maximum(1 - deviation, 0).mean()
        off = covariance - np.diag(np.diag(covariance))
        expected = expected + (off**2).sum() / 4
    found = examples.variance_and_covariance(tf.constant(one), tf.constant(other))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "byol",
        pytest.param("simclr", marks=pytest.mark.long),
        pytest.param("vicreg", marks=pytest.mark.long),
    ],
)
def test_the_examples_lower_their_loss_on_one_batch(name, random):
    keras.utils.set_random_seed(1)
    weak, strong = (
        tf.constant(random.normal(size=[8, 4, 4, 3]), tf.float32) for _ in range(2)
    )
    model = model_of(getattr(examples, name))
    model.compile(SGD(0.02), jit_compile=False)
    data = tf.data.Dataset.from_tensors({"teacher": weak, "student": strong})
    history = model.fit(data, epochs=12, verbose=0).history["loss"]
    assert np.isfinite(history).all() and history[-1] < history[0]


@pytest.mark.long
def test_a_run_with_an_objective_resumes_and_says_so(random, tmp_path, monkeypatch):
    pixels = random.integers(0, 256, [16, 8, 8, 3]).astype(np.uint8)
    options = dict(
        batch_size=8, queue_size=8, hidden_dim=8, embedding_dim=4, knn_every=0,
        objective="examples.objectives:byol", final_momentum=1.0,
    )  # fmt: skip
    monkeypatch.setattr(build, "build_backbone", tiny.build_backbone)
    for steps in (2, 4):
        lines = []
        config = Config(max_steps=steps, epochs=2, **options)
        pretrain(pixels, tmp_path, config, verbose=False, log=lines.append)
    assert any("Resuming at step 2 of 4" in line for line in lines)
    assert '"examples.objectives:byol"' in (tmp_path / "encoder.json").read_text()
    with pytest.raises(UsageError, match=r"objective=examples\.objectives: expected"):
        build.build_model(Config(objective="examples.objectives"), build.Plan(8))
