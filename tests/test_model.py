"""The method, statement by statement."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from ressl_keras import (
    SGD,
    ReSSL,
    UsageError,
    build_projector,
    views,
    warmup_cosine,
)
from ressl_keras.method import objectives
from ressl_keras.method.optimizers import build_optimizer

LOGS = {
    "loss",
    "teacher_entropy",
    "student_entropy",
    "agreement",
    "embedding_std",
    "learning_rate",
}


def make(queue_size=20, synchronized=False, **options):
    """A model with one convolution and one batch norm, compiled."""
    keras.utils.set_random_seed(0)
    model = ReSSL(
        tiny.build_backbone(synchronized=synchronized),
        build_projector(4, 16, 6),
        queue_size=queue_size,
        **{
            "teacher_view": views.weak_view(8),
            "student_view": tiny.build_view(),
            "momentum": 0.9,
            **options,
        },
    )
    model.compile(SGD(0.03, l2=1e-3), jit_compile=False)
    return model


def warm_up():
    """InfoNCE at the first step."""
    return objectives.build_objective("ressl", info_nce_steps=1)


def batches(random, count, batch=8):
    images = random.integers(0, 256, [count * batch, 8, 8, 3]).astype(np.uint8)
    return tf.data.Dataset.from_tensor_slices(images).batch(batch, drop_remainder=True)


def fit(model, dataset):
    return model.fit(dataset, shuffle=False, verbose=0).history


def learn(model, dataset):
    """As `fit`, but step by step: compiling would take longer. Returns their logs."""
    model.reset_metrics()
    return [model.train_step(batch) for batch in dataset]


def see(model, data):
    """The views of the model's next step, the teacher's first."""
    return model.views(data, model.step.value)


def values(variables):
    return [variable.numpy() for variable in variables]


def test_fit_reports_what_there_is_to_watch(random):
    model = make()
    history = fit(model, batches(random, 3))
    assert set(history) == LOGS
    assert np.all(np.isfinite(list(history.values())))
    assert history["learning_rate"] == [pytest.approx(0.03)]
    assert 0 < history["teacher_entropy"][0] < np.log(20)


def test_teacher_starts_as_the_student():
    model = make()
    for teacher, student in zip(model.teacher.weights, model.student.weights):
        np.testing.assert_array_equal(teacher, student)


def test_teacher_is_the_running_average_of_the_student(random):
    """The average is taken before the optimizer moves the student, as in the paper's
    script, and over trainable weights only."""
    model = make()
    kept = values(model.student.trainable_variables)
    averaged = [theirs for theirs, ours in model._pairs if ours.trainable]
    for batch in batches(random, 3):
        student = values(model.student.trainable_variables)
        kept = [0.9 * old + 0.1 * new for old, new in zip(kept, student)]
        model.train_step(batch)
        for teacher, expected in zip(averaged, kept):
            np.testing.assert_allclose(teacher.numpy(), expected, atol=1e-6)
    assert len(kept) == len(averaged) == 7
    assert not np.allclose(kept[0], values(model.student.trainable_variables)[0])


def test_teacher_batch_norm_sees_its_own_batches(random):
    """The running mean moves towards that of the convolution over the weak views; the
    student's towards that over the strong ones."""
    model = make()
    batch = next(iter(batches(random, 1)))
    weak, strong = see(model, batch)
    expected = []
    for network, images in ((model.teacher, weak), (model.student, strong)):
        kernel = network.layers[0].layers[1].kernel
        mean = np.mean(tf.nn.conv2d(images, kernel, 1, "SAME"), axis=(0, 1, 2))
        expected.append(0.1 * mean)  # 0.9 of the old mean, which is zero
    model.train_step(batch)
    for network, mean in zip((model.teacher, model.student), expected):
        norm = network.layers[0].layers[2]
        np.testing.assert_allclose(norm.moving_mean, mean, atol=1e-5)
    assert not np.allclose(*expected, atol=1e-4)


def test_step_follows_the_papers_algorithm(random):
    """One step, computed again outside: loss against the queue as it was, gradient to
    the student alone, then the teacher's embeddings at the end of the queue."""
    model, twin = make(), make()
    batch = next(iter(batches(random, 1)))
    weak, strong = see(twin, batch)

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    # At the first step the average of equal weights is the same weights.
    teacher = unit(twin.teacher(weak, training=True).numpy())
    student = unit(twin.student(strong, training=True).numpy())
    queue = twin.queue.features.numpy()
    target = np.exp(teacher @ queue.T / 0.04)
    target /= target.sum(-1, keepdims=True)
    scores = np.exp(student @ queue.T / 0.1)
    scores /= scores.sum(-1, keepdims=True)
    loss = -(target * np.log(scores)).sum(-1).mean()

    logs = model.train_step(batch)
    np.testing.assert_allclose(logs["loss"], loss, rtol=1e-4)
    entropy = -(target * np.log(target + 1e-30)).sum(-1).mean()
    np.testing.assert_allclose(logs["teacher_entropy"], entropy, rtol=1e-3)
    agreement = np.mean(target.argmax(-1) == scores.argmax(-1))
    np.testing.assert_allclose(logs["agreement"], agreement)
    np.testing.assert_allclose(logs["embedding_std"], student.std(0).mean(), rtol=1e-4)
    np.testing.assert_allclose(model.queue.features[:8], teacher, atol=1e-5)
    np.testing.assert_array_equal(model.queue.features[8:], queue[8:])


def test_the_optimizer_knows_the_student_only(random):
    model = make()
    student = {id(v) for v in model.student.trainable_variables}
    assert {id(v) for v in model.trainable_variables} == student
    learn(model, batches(random, 1))
    # iterations, learning rate, and one momentum for each of the student's weights
    assert len(model.optimizer.variables) == 2 + len(student)


def test_no_gradient_reaches_the_teacher(random):
    model = make()
    model.momentum = 1.0  # the average stands still, so only a gradient could move it
    teachers = [theirs for theirs, ours in model._pairs if ours.trainable]
    before = [variable.numpy() for variable in teachers]
    learn(model, batches(random, 3))
    for variable, old in zip(teachers, before):
        np.testing.assert_array_equal(variable.numpy(), old)


def test_queue_holds_the_latest_unit_embeddings_in_turn(random):
    model = make(queue_size=20)
    learn(model, batches(random, 3))  # 24 embeddings into 20 rows
    assert int(model.queue.pointer) == 4
    lengths = np.linalg.norm(model.queue.features, axis=-1)
    np.testing.assert_allclose(lengths, 1, atol=1e-5)


def test_a_step_can_be_repeated_exactly(random):
    dataset = batches(random, 3)
    once, again, other = (learn(make(seed=seed), dataset) for seed in (0, 0, 1))
    assert once == again
    assert once[0]["loss"] != other[0]["loss"]


def test_a_step_compiled_by_xla_learns_the_same(random):
    """Without views, since XLA draws other numbers from the same seed."""
    images = random.normal(size=[24, 8, 8, 3]).astype(np.float32)
    dataset = tf.data.Dataset.from_tensor_slices(images).batch(8)
    histories = []
    for compiled in (False, True):
        model = make(teacher_view=None, student_view=None)
        model.compile(SGD(0.03, l2=1e-3), jit_compile=compiled)
        histories.append(fit(model, dataset))
    for name, values in histories[0].items():
        np.testing.assert_allclose(histories[1][name], values, rtol=1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lamb"])
def test_xla_on_a_gpu_has_access_to_every_variable(optimizer):
    """Not to those of int32: TensorFlow keeps them on the CPU."""
    model = make()
    model.compile(build_optimizer(optimizer, 0.1), jit_compile=True)
    model.optimizer.build(model.trainable_variables)
    variables = model.variables + model.optimizer.variables
    assert {variable.dtype for variable in variables} == {"float32", "int64"}


def test_the_two_views_draw_for_themselves(random):
    model = make(student_view=views.weak_view(8))
    weak, strong = see(model, next(iter(batches(random, 1))))
    assert not np.allclose(weak, strong)


def test_labels_beside_the_images_are_ignored(random):
    images = random.integers(0, 256, [8, 8, 8, 3]).astype(np.uint8)
    alone = make().train_step(tf.constant(images))
    labelled = make().train_step((tf.constant(images), tf.range(8)))
    assert float(alone["loss"]) == float(labelled["loss"])


def test_views_may_start_from_different_images(random):
    images = tf.constant(random.integers(0, 256, [2, 8, 8, 8, 3]).astype(np.uint8))
    model, twin = make(), make()
    weak, _ = see(twin, images[0])
    _, strong = see(twin, images[1])
    pair = see(model, {"teacher": images[0], "student": images[1]})
    np.testing.assert_array_equal(pair[0], weak)
    np.testing.assert_array_equal(pair[1], strong)


def test_info_nce_is_the_objective_of_the_first_steps_only(random):
    early, plain = make(objective=warm_up()), make()
    dataset = batches(random, 1)
    (first,), (other,) = learn(early, dataset), learn(plain, dataset)
    assert first["loss"] != other["loss"]
    # From there on the objective is the relation: both go on alike from one state.
    plain.set_weights(early.get_weights())
    for mine, theirs in zip(plain.optimizer.variables, early.optimizer.variables):
        mine.assign(theirs)
    (early_logs,), (plain_logs,) = learn(early, dataset), learn(plain, dataset)
    np.testing.assert_allclose(early_logs["loss"], plain_logs["loss"], rtol=1e-5)


def make_crops(sizes, **options):
    """A model whose student sees crops of these sizes, and a batch of its views."""
    keras.utils.set_random_seed(0)
    model = ReSSL(
        tiny.build_backbone(input_shape=(None, None, 3)),
        build_projector(4, 16, 6),
        views.weak_view(8),
        [tiny.build_view(size, views.crop_scale(size, 8)) for size in sizes],
        queue_size=20,
        **options,
    )
    model.compile(SGD(0.03, l2=1e-3), jit_compile=False)
    return model


def single_crops(teacher, crops, **options):
    """Loss and learned weights of one model for each crop, which sees nothing else."""
    for crop in crops:
        keras.utils.set_random_seed(0)
        model = ReSSL(
            tiny.build_backbone(input_shape=(None, None, 3)),
            build_projector(4, 16, 6),
            queue_size=20,
            **options,
        )
        model.compile(SGD(0.03, l2=1e-3), jit_compile=False)
        logs = model.train_step({"teacher": teacher, "student": crop})
        yield float(logs["loss"]), values(model.student.trainable_variables)


@pytest.mark.parametrize(
    "options", [{}, pytest.param({"objective": warm_up()}, marks=pytest.mark.long)]
)
def test_multi_crop_is_the_mean_of_single_crops(random, options):
    """In loss and in what is learned: the first step of SGD is linear in the loss."""
    model = make_crops([8, 6, 4], **options)
    batch = next(iter(batches(random, 1)))
    teacher, *crops = see(model, batch)
    assert [crop.shape[1] for crop in crops] == [8, 6, 4]
    logs = model.train_step(batch)
    singles, learned = zip(*single_crops(teacher, crops, **options))
    np.testing.assert_allclose(logs["loss"], np.mean(singles), rtol=1e-5)
    for mine, theirs in zip(values(model.student.trainable_variables), zip(*learned)):
        np.testing.assert_allclose(mine, np.mean(theirs, axis=0), atol=1e-5)


def test_crops_of_one_size_share_a_pass(random):
    """A batch norm then sees them as one batch: its running mean moves once, towards
    the mean over both, where two passes would move it twice."""
    model = make_crops([8, 8])
    batch = next(iter(batches(random, 1)))
    _, *crops = see(model, batch)
    assert not np.allclose(*crops)
    kernel = model.student.layers[0].layers[1].kernel
    mean = np.mean(tf.nn.conv2d(tf.concat(crops, 0), kernel, 1, "SAME"), axis=(0, 1, 2))
    model.train_step(batch)
    norm = model.student.layers[0].layers[2]
    np.testing.assert_allclose(norm.moving_mean, 0.1 * mean, atol=1e-5)


def test_crops_may_have_been_made_while_reading(random):
    """As a tuple in the place of the student's images."""
    model, twin = make_crops([8, 6]), make_crops([8, 6])
    images = tf.constant(random.integers(0, 256, [2, 8, 8, 8, 3]).astype(np.uint8))
    pair = see(model, {"teacher": images[0], "student": (images[0], images[1])})
    np.testing.assert_array_equal(pair[1], see(twin, images[0])[1])
    np.testing.assert_array_equal(pair[2], see(twin, images[1])[2])


def test_without_a_queue_the_other_images_of_the_batch_are_the_references(random):
    model, twin = make(references="batch"), make(references="batch")
    batch = next(iter(batches(random, 1)))
    weak, strong = see(twin, batch)

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    teacher = unit(twin.teacher(weak, training=True).numpy())
    student = unit(twin.student(strong, training=True).numpy())
    others = ~np.eye(8, dtype=bool)
    target = np.exp((teacher @ teacher.T)[others].reshape(8, 7) / 0.04)
    target /= target.sum(-1, keepdims=True)
    scores = np.exp((student @ teacher.T)[others].reshape(8, 7) / 0.1)
    scores /= scores.sum(-1, keepdims=True)
    loss = -(target * np.log(scores)).sum(-1).mean()
    logs = model.train_step(batch)
    np.testing.assert_allclose(logs["loss"], loss, rtol=1e-4)
    assert np.all(np.isfinite([float(value) for value in logs.values()]))


def test_a_predictor_is_the_students_alone(random):
    """Its weights learn; the teacher has none, and the queue holds plain embeddings."""
    model = make(predictor=build_projector(6, 5, 6))
    assert len(model.teacher.weights) == len(model.student.weights)
    before = values(model.predictor.weights)
    batch = next(iter(batches(random, 1)))
    weak, strong = see(model, batch)
    plain = make()
    teacher = plain.teacher(weak, training=True).numpy()
    teacher /= np.linalg.norm(teacher, axis=-1, keepdims=True)
    student = model.predictor(plain.student(strong, training=True)).numpy()
    student /= np.linalg.norm(student, axis=-1, keepdims=True)
    queue = plain.queue.features.numpy()
    target = np.exp(teacher @ queue.T / 0.04)
    target /= target.sum(-1, keepdims=True)
    scores = student @ queue.T / 0.1
    scores -= np.log(np.exp(scores).sum(-1, keepdims=True))
    logs = model.train_step(batch)
    np.testing.assert_allclose(
        logs["loss"], -(target * scores).sum(-1).mean(), rtol=1e-4
    )
    np.testing.assert_allclose(model.queue.features[:8], teacher, atol=1e-5)
    for old, new in zip(before, values(model.predictor.weights)):
        assert not np.array_equal(old, new)


@keras.saving.register_keras_serializable("tests")
class Apart:
    """A method of four lines, to show that the step knows none by name."""

    student_temperature = teacher_temperature = 1.0

    def __call__(self, student, teacher, positive, step):
        return 1 - positive

    def get_config(self):
        return {}


def test_any_function_of_the_similarities_is_a_method(random):
    model, twin = make(objective=Apart()), make()
    batch = next(iter(batches(random, 1)))
    weak, strong = see(twin, batch)
    teacher = twin.teacher(weak, training=True).numpy()
    student = twin.student(strong, training=True).numpy()
    lengths = np.linalg.norm(teacher, axis=-1) * np.linalg.norm(student, axis=-1)
    cosines = (student * teacher).sum(-1) / lengths
    logs = model.train_step(batch)
    np.testing.assert_allclose(logs["loss"], np.mean(1 - cosines), rtol=1e-4)


def test_a_model_of_all_parts_goes_on_after_loading(random, tmp_path):
    model = make_crops(
        [8, 6],
        predictor=build_projector(6, 5, 6),
        objective=warm_up(),
        references="batch",
    )
    dataset = batches(random, 2)
    fit(model, dataset)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for name in ("objective", "references"):
        assert loaded.get_config()[name] == model.get_config()[name]
    assert len(loaded.views.students) == 2
    assert fit(loaded, dataset) == fit(model, dataset)
    for one, other in zip(loaded.variables, model.variables):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_keeps_relations_and_queue_in_float32(policy, random):
    keras.mixed_precision.set_global_policy(policy)
    try:
        model = make()
        logs = learn(model, batches(random, 3))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert model.student.compute_dtype == policy.removeprefix("mixed_")
    assert model.queue.features.dtype == tf.float32
    assert np.all(np.isfinite([float(x) for step in logs for x in step.values()]))
    lengths = np.linalg.norm(model.queue.features, axis=-1)
    np.testing.assert_allclose(lengths, 1, atol=1e-5)


def test_dropout_draws_by_the_step_so_that_a_resumed_run_is_the_same(random, tmp_path):
    def dropping():
        keras.utils.set_random_seed(0)
        images = keras.Input([8, 8, 3])
        maps = keras.layers.Dropout(0.5)(keras.layers.Conv2D(4, 3)(images))
        backbone = keras.Model(images, keras.layers.GlobalAveragePooling2D()(maps))
        model = ReSSL(backbone, None, tiny.build_view(), tiny.build_view(), 20)
        model.compile(SGD(0.03), jit_compile=False)
        model.optimizer.build(model.trainable_variables)
        return model

    whole, first, second = dropping(), dropping(), dropping()
    data = batches(random, 4)
    learn(whole, data)
    learn(first, data.take(2))
    first.save_weights(tmp_path / "m.weights.h5")
    second.load_weights(tmp_path / "m.weights.h5")
    learn(second, data.skip(2))
    assert any(
        (one != two).any()
        for one, two in zip(whole.student.get_weights(), first.student.get_weights())
    )
    for one, other in zip(whole.weights, second.weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6, err_msg=one.path)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_weight_that_the_loss_does_not_reach_stays_as_it_is(parts, random):
    @keras.saving.register_keras_serializable("test_model")
    class Unused(keras.layers.Layer):
        def build(self, shape):
            self.unused = self.add_weight(shape=[2, 2])

        def call(self, images):
            return images

    images = keras.Input([8, 8, 3])
    maps = keras.layers.Conv2D(4, 3)(Unused(name="unused")(images))
    backbone = keras.Model(images, keras.layers.GlobalAveragePooling2D()(maps))
    view = tiny.build_view()
    model = ReSSL(backbone, None, view, view, 20, accumulate_steps=parts)
    model.compile(SGD(0.03), jit_compile=False)
    before = backbone.get_weights()
    learn(model, batches(random, 2))
    changed = [(a != b).any() for a, b in zip(before, backbone.get_weights())]
    assert changed == [False, True, True]


@pytest.mark.long
def test_a_saved_model_goes_on_as_if_nothing_had_happened(random, tmp_path):
    dataset = batches(random, 3)
    model = make()
    fit(model, dataset)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for name in ("momentum", "queue_size", "objective", "seed"):
        assert loaded.get_config()[name] == model.get_config()[name]
    assert int(loaded.queue.pointer) == int(model.queue.pointer)
    np.testing.assert_array_equal(loaded.queue.features, model.queue.features)
    assert fit(loaded, dataset) == fit(model, dataset)
    for one, other in zip(loaded.variables, model.variables):
        np.testing.assert_array_equal(one, other)


def test_a_backbone_that_is_unfrozen_is_followed_by_the_teacher(random):
    model = make(momentum=0.5)
    model.backbone.trainable = False
    model.compile(SGD(0.03), jit_compile=False)
    learn(model, batches(random, 1))
    model.backbone.trainable = True
    model.trainable = False
    model.trainable = True
    model.compile(SGD(0.03), jit_compile=False)
    assert len(model.trainable_variables) == 7 == len(model.student.trainable_variables)
    pairs = list(zip(model.teacher.weights, model.student.weights))
    for (images,) in batches(random, 2).batch(1):
        expected = [(0.5 * (t + s)).numpy() for t, s in pairs if s.trainable]
        learn(model, [images])
        found = [t.numpy() for t, s in pairs if s.trainable]
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.long
def test_it_is_exported_as_other_models_are(random, tmp_path):
    """Once it has been called, as Keras asks for."""
    model = make()
    images = random.normal(size=[3, 8, 8, 3]).astype(np.float32)
    expected = model(images)
    model.export(tmp_path / "model", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    np.testing.assert_allclose(loaded.serve(images), expected, atol=1e-6)


def test_two_models_of_one_configuration_share_nothing():
    config = make().get_config()
    one, other = (ReSSL.from_config(config) for _ in range(2))
    assert one.backbone is not other.backbone


def test_labels_that_are_none_are_ignored(random):
    model = make(momentum=np.float64(0.9))
    images = random.integers(0, 256, [8, 8, 8, 3]).astype(np.uint8)
    assert np.isfinite(model.train_on_batch(images)).all()


def test_a_second_stage_in_float16_begins_its_schedule_anew(random):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = make()
        learn(model, batches(random, 2))
        model.compile(SGD(warmup_cosine(0.1, 4)), jit_compile=False)
        logs = learn(model, batches(random, 2))
    finally:
        keras.config.set_dtype_policy("float32")
    rates = [float(each["learning_rate"]) for each in logs]
    assert rates == pytest.approx([0.1, 0.05 * (1 + np.cos(np.pi / 4))])


def test_a_model_called_on_images_embeds_them(random):
    images = random.normal(size=[5, 8, 8, 3]).astype(np.float32)
    embeddings = make()(images)
    assert embeddings.shape == (5, 6)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"momentum": 1.1}, "momentum must lie"),
        ({"queue_size": 0}, "positive size"),
        ({"references": "memory"}, "references is queue or batch"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        make(**options)


def test_the_step_counts_every_step_also_those_that_loss_scaling_skips(random):
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = make()
        # With float16's largest number as the scale every gradient overflows at first.
        model.compile(
            keras.optimizers.LossScaleOptimizer(SGD(0.03), initial_scale=2.0**40),
            jit_compile=False,
        )
        before = values(model.student.trainable_variables)
        learn(model, batches(random, 3))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert int(model.step) == 3
    for old, new in zip(before, values(model.student.trainable_variables)):
        np.testing.assert_array_equal(old, new)


def test_the_learning_rate_follows_the_step_past_skipped_updates(random):
    schedule = keras.optimizers.schedules.PolynomialDecay(0.4, 4)  # 0.4, 0.3, 0.2, 0.1
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = make()
        model.compile(
            keras.optimizers.LossScaleOptimizer(SGD(schedule), initial_scale=2.0**40),
            jit_compile=False,
        )
        logs = learn(model, batches(random, 3))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    rates = [float(step["learning_rate"]) for step in logs]
    np.testing.assert_allclose(rates, [0.4, 0.3, 0.2], rtol=1e-3)


def test_raw_images_without_views_are_refused(random):
    model = make(teacher_view=None, student_view=None)
    with pytest.raises(UsageError, match="built without views"):
        model.train_step(next(iter(batches(random, 1))))
