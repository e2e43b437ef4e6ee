"""Gradient accumulation: a step in parts is the step, but for the batch norm."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from ressl_keras import SGD, Config, ReSSL, UsageError, build_projector
from ressl_keras.augmentation.bundle import pack
from ressl_keras.data import shapes
from ressl_keras.data.images import ArrayImages
from ressl_keras.method import objectives
from ressl_keras.training import build, checkpoints
from ressl_keras.training.memory import least_bytes

BATCH, SIZE, QUEUE = 8, 6, 20


def backbone(normalized=False):
    images = keras.Input([None, None, 3])
    x = keras.layers.Conv2D(4, 3, use_bias=False)(images)
    if normalized:
        x = keras.layers.BatchNormalization(momentum=0.9)(x)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
    return keras.Model(images, x)


def strategy(replicas):
    if replicas == 1:
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy(
        [f"CPU:{index}" for index in range(replicas)],
        # No collective operations, which know one strategy in a process.
        tf.distribute.ReductionToOneDevice(),
    )


def make(parts, normalized=False, replicas=1, optimizer=None, crops=1, **options):
    """A model that takes views which are made, so that nothing is drawn."""
    keras.utils.set_random_seed(0)
    with strategy(replicas).scope():
        model = ReSSL(
            backbone(normalized),
            build_projector(4, 16, 6),
            student_view=[None] * crops,
            queue_size=QUEUE,
            momentum=0.9,
            accumulate_steps=parts,
            **options,
        )
        model.compile(optimizer or SGD(0.5, l2=1e-2), jit_compile=False)
    return model


def batches(steps=3, sides=(SIZE,), batch=BATCH):
    random = np.random.default_rng(0)
    views = [random.normal(size=[steps * batch, s, s, 3]) for s in (SIZE, *sides)]
    views = pack([view.astype(np.float32) for view in views])
    return tf.data.Dataset.from_tensor_slices(views).batch(batch, drop_remainder=True)


def trained(model, dataset=None):
    """What a few steps change and log: names, and arrays in this order."""
    logs = model.fit(dataset or batches(), shuffle=False, verbose=0).history
    return state(model) | {name: np.array(log) for name, log in logs.items()}


def stepped(model, dataset=None):
    """As `trained`, without a graph: quicker for a network of this size."""
    for data in dataset or batches():
        logs = model.train_step(data)
    return state(model) | {name: np.array(log) for name, log in logs.items()}


def state(model):
    """All variables by name: networks, queue, counters, metrics, optimizer."""
    variables = [*model.variables, *model.optimizer.variables]
    return {
        f"{number} {variable.name}": variable.numpy()
        for number, variable in enumerate(variables)
    }


def assert_same(one, other, rtol=1e-5):
    assert [name.split("_")[0] for name in one] == [n.split("_")[0] for n in other]
    for (name, expected), array in zip(one.items(), other.values()):
        atol = rtol * np.abs(expected).max()
        np.testing.assert_allclose(array, expected, rtol, atol, err_msg=name)


def distance(student_embeddings, teacher_embeddings):
    return tf.reduce_sum((student_embeddings - teacher_embeddings) ** 2, -1)


def scaled():
    return keras.optimizers.LossScaleOptimizer(SGD(0.5), initial_scale=2.0**10)


def objective(**options):
    return {"objective": objectives.Objective(distance, **options)}


def warm_up():
    return {"objective": objectives.build_objective("ressl", info_nce_steps=1)}


VARIANTS = {  # functions, so that every model gets its own
    "batch, predictor": lambda: {
        "references": "batch",
        "predictor": build_projector(6, 5, 6),
    },
    "warm-up, clipped": lambda: {
        "optimizer": SGD(0.5, global_clipnorm=0.01),
        **warm_up(),
    },
    "symmetric, scaled": lambda: {
        "optimizer": scaled(),
        **objective(symmetric=True),
    },
    "both branches": lambda: objective(symmetric=True, both_branches=True),
}


@pytest.fixture(scope="module")
def whole():
    return trained(make(1))


@pytest.mark.parametrize("parts", [2, pytest.param(4, marks=pytest.mark.long)])
def test_a_step_in_parts_is_the_step(whole, parts):
    """Weights, momentum, teacher, queue, counters and logs, without batch norm."""
    assert_same(whole, trained(make(parts)))


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.long
def test_so_it_is_with_every_option(options):
    results = []
    for parts in (1, 4):
        keras.utils.set_random_seed(0)
        results.append(stepped(make(parts, **options())))
    assert_same(*results)


def test_so_it_is_with_several_crops():
    data = batches(steps=2, sides=[SIZE, 4, SIZE])
    one, other = (stepped(make(parts, crops=3), data) for parts in (1, 4))
    assert_same(one, other)


@pytest.mark.long
def test_so_it_is_on_two_devices(whole):
    alone, shared = dict(whole), trained(make(2, replicas=2))
    std = [results.pop("embedding_std") for results in (alone, shared)]
    np.testing.assert_allclose(*std, rtol=1e-3)  # replicas share less exact moments
    assert_same(alone, shared)


@pytest.fixture
def policy():
    """Sets the dtype policy that models are made in, until the test ends."""
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


def update(model):
    """What a step adds to the student's weights."""
    before = [variable.numpy() for variable in model.trainable_variables]
    stepped(model, batches(1))
    return [v.numpy() - old for v, old in zip(model.trainable_variables, before)]


@pytest.mark.parametrize(
    "name, optimizer, precision",
    [
        ("mixed_bfloat16", lambda: SGD(0.5), 2**-8),
        ("mixed_float16", scaled, 2**-11),
    ],
    ids=["bfloat16", "float16"],
)
def test_so_it_is_in_half_precision(name, optimizer, precision, policy):
    """To its precision. The update in float32, of no scaled loss, is the measure."""
    exact = update(make(1, optimizer=SGD(0.5)))
    policy(name)
    whole, parts = (make(n, optimizer=optimizer()) for n in (1, 4))
    # Of the largest element; a scale that is left in or taken out twice is a factor.
    for one, other, true in zip(update(whole), update(parts), exact, strict=True):
        largest = np.abs(true).max()
        assert np.abs(other - one).max() <= 8 * precision * largest
        assert np.abs(other - true).max() <= 32 * precision * largest


def test_so_it_is_with_several_steps_by_one_call(whole):
    model = make(2)
    model.steps_per_execution = 3
    assert_same(whole, trained(model))


@pytest.mark.long
def test_so_it_is_compiled_by_xla(whole):
    model = make(4)
    model.compile(SGD(0.5, l2=1e-2), jit_compile=True)
    assert_same(whole, trained(model))


def test_a_checkpoint_between_two_steps_leaves_nothing_out(tmp_path):
    model, again = make(4), make(4)
    stepped(model, batches().take(2))
    checkpoints.save(model, tmp_path, 2)
    again.optimizer.build(again.trainable_variables)
    assert checkpoints.restore(again, tmp_path) == 2
    one, other = (stepped(each, batches().skip(2)) for each in (model, again))
    assert_same(one, other, rtol=0)


def unit(x):
    return tf.math.l2_normalize(x, -1)


def by_hand(twin, data, parts, replicas):
    """What a step learns, with Keras and a tape: gradients, rows for the queue.

    Updates the batch norms of the twin's student, as of one replica after the other.
    """
    queue = tf.constant(twin.queue.features.numpy())
    teacher = tf.concat(
        [
            unit(twin.teacher(weak, training=True))
            for weak in tf.split(data["teacher"], replicas)
        ],
        axis=0,
    )
    target = tf.nn.softmax(teacher @ tf.transpose(queue) / 0.04)
    variables, gradients = twin.student.trainable_variables, []
    total = parts * replicas
    for strong, goal in zip(tf.split(data["student"], total), tf.split(target, total)):
        with tf.GradientTape() as tape:
            student = unit(twin.student(strong, training=True))
            scores = tf.nn.log_softmax(student @ tf.transpose(queue) / 0.1)
            loss = -tf.reduce_mean(tf.reduce_sum(goal * scores, -1))
        gradients.append(tape.gradient(loss, variables))
    return [np.mean(same, axis=0) for same in zip(*gradients)], teacher.numpy()


@pytest.mark.parametrize("replicas", [pytest.param(1, marks=pytest.mark.long), 2])
def test_batch_norm_takes_the_statistics_of_a_part(replicas):
    """Those of the student; the teacher's are those of the whole batch of a replica."""
    model, twin = make(2, True, replicas), make(1, True)
    (data,) = batches(1)
    before = [variable.numpy() for variable in twin.student.trainable_variables]
    gradients, rows = by_hand(twin, data, 2, replicas)
    model.fit(batches(1), verbose=0)
    learned = [variable.numpy() for variable in model.student.trainable_variables]
    for old, gradient, new in zip(before, gradients, learned, strict=True):
        decay = 1e-2 * old if old.ndim > 1 else 0
        np.testing.assert_allclose(new, old - 0.5 * (gradient + decay), 1e-4, 1e-6)
    np.testing.assert_allclose(model.queue.features[:BATCH], rows, 1e-4, 1e-6)
    if replicas == 1:  # the averages move once a part
        for mine, theirs in zip(model.weights, twin.weights, strict=True):
            if "moving" in mine.path:
                np.testing.assert_allclose(mine.numpy(), theirs.numpy(), 1e-5, 1e-7)


def test_an_overflow_in_one_part_skips_the_step_once():
    model = make(4, optimizer=scaled())
    (data,) = batches(1)
    pixels = data["student"].numpy()
    pixels[-1] = np.inf
    before = [variable.numpy() for variable in model.trainable_variables]
    model.train_step({**data, "student": tf.constant(pixels)})
    for old, variable in zip(before, model.trainable_variables):
        np.testing.assert_array_equal(variable.numpy(), old)
    assert model.optimizer.dynamic_scale.numpy() == 2.0**9
    assert model.step.numpy() == 1
    assert model.queue.pointer.numpy() == BATCH


@keras.saving.register_keras_serializable("test_accumulation")
class Order(keras.layers.Layer):
    """Passes images on, and notes when they and their gradients pass."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.passed = []

    def note(self, images, what):
        def noted(array):
            self.passed.append((what, len(array)))
            return array

        # Not stateful: nothing but its inputs may say when it runs.
        result = tf.numpy_function(noted, [images], images.dtype, stateful=False)
        return tf.ensure_shape(result, images.shape)

    def call(self, images):
        @tf.custom_gradient
        def watched(images):
            return self.note(images, "forward"), lambda g: self.note(g, "backward")

        return watched(images)


def test_a_part_begins_when_the_one_before_has_ended():
    """Otherwise the activations of several parts would be in memory."""
    order, images = Order(), keras.Input([SIZE, SIZE, 3])
    x = order(keras.layers.Conv2D(4, 3)(images))
    network = keras.Model(images, keras.layers.GlobalAveragePooling2D()(x))
    model = ReSSL(network, queue_size=QUEUE, accumulate_steps=4)  # the teacher: a copy
    model.compile(SGD(0.5), jit_compile=False)
    order.passed.clear()
    model.fit(batches(2), verbose=0)
    assert order.passed == 2 * 4 * [("forward", 2), ("backward", 2)]


def test_a_batch_is_split_into_equal_parts():
    refused = tf.errors.InvalidArgumentError
    with pytest.raises(refused, match="batch cannot be split into 3 equal"):
        make(3).fit(batches(), verbose=0)
    with pytest.raises(refused, match="batch cannot be split into 8 equal"):
        make(8, replicas=2).fit(batches(), verbose=0)
    with pytest.raises(UsageError, match="accumulate_steps must be 1 or more"):
        make(0)


def test_a_batch_of_open_size_is_split_into_equal_parts():
    model, views = make(2), batches(1).unbatch()
    model.fit(views.take(6).batch(6), verbose=0)
    assert model.queue.pointer.numpy() == 6
    with pytest.raises(tf.errors.InvalidArgumentError, match="into 2 equal parts"):
        model.fit(views.take(7).batch(7), verbose=0)


def test_the_replicas_parts_are_equal_too():
    images = ArrayImages(*shapes.render(80, 0, size=8))
    config = Config(batch_size=8, accumulate_steps=4)
    assert build.make_plan(config, images, replicas=2).steps_per_epoch == 10
    with pytest.raises(UsageError, match="the batch of 8 over 4 replicas into equal"):
        build.make_plan(config, images, replicas=4)


def test_relations_are_those_of_a_part():
    one, other = (least_bytes(Config(accumulate_steps=n), 32) for n in (1, 4))
    assert other.pop("relations") * 4 == one.pop("relations")
    assert one == other


@pytest.mark.parametrize("references", ["queue", "batch"])
def test_a_machine_has_its_share_of_the_views_and_relations(references):
    config = Config(references=references)
    one, other = (least_bytes(config, 32, machines=n) for n in (1, 4))
    for shared in ("relations", "views"):
        assert other.pop(shared) * 4 == one.pop(shared)
    assert one == other


def test_a_saved_model_keeps_its_parts():
    assert ReSSL.from_config(make(4).get_config()).accumulate_steps == 4


@keras.saving.register_keras_serializable("accumulation")
class Table(keras.layers.Layer):
    """Scales by a row of a table, whose gradient is sparse; another weight is idle."""

    def build(self, shape):
        self.rows = self.add_weight(shape=[3, shape[-1]], initializer="ones")
        self.idle = self.add_weight(shape=[2])

    def call(self, features):
        return features * tf.gather(self.rows.value, [1])


def test_a_weight_may_have_a_sparse_gradient_or_none():
    def network():
        images = keras.Input([None, None, 3])
        return keras.Model(images, Table()(backbone()(images)))

    def rows(parts):
        keras.utils.set_random_seed(0)
        model = ReSSL(
            network(),
            build_projector(4, 16, 6),
            student_view=[None],
            accumulate_steps=parts,
            queue_size=20,
        )
        model.compile(SGD(0.5), jit_compile=False)
        for data in batches():
            model.train_step(data)
        return [weight.numpy() for weight in model.backbone.trainable_weights]

    for whole, of_parts in zip(rows(1), rows(2), strict=True):
        np.testing.assert_allclose(of_parts, whole, 1e-5, 1e-6)
