"""What a run says of itself while it trains."""

import io
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from ressl_keras import UsageError
from ressl_keras.data import pipeline
from ressl_keras.method import objectives
from ressl_keras.run_folder import RunFolder
from ressl_keras.training import (
    build,
    callbacks,
    checkpoints,
    history,
    progress,
    tensorboard,
)


def batches(random, count):
    images = random.integers(0, 256, [count * 8, 8, 8, 3]).astype(np.uint8)
    return tf.data.Dataset.from_tensor_slices(images).batch(8, drop_remainder=True)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless it is advanced; TensorFlow reads it."""
    clock = tf.Variable(0.0, dtype=tf.float64)
    monkeypatch.setattr(tf, "timestamp", lambda: tf.identity(clock))
    return clock


def test_the_time_that_batches_take_is_counted(clock):
    timer = pipeline.InputTimer()

    def slow(number):
        clock.assign_add(0.25)
        return number

    numbers = tf.data.Dataset.range(4).map(slow)
    assert list(timer.watch(numbers).as_numpy_iterator()) == [0, 1, 2, 3]
    assert timer.seconds == 1.0


def test_the_log_has_the_share_of_the_time_spent_waiting(random, monkeypatch):
    timer = types.SimpleNamespace(seconds=5.0)
    now = iter([100.0, 104.0, 108.0])
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: next(now))
    throughput, logs = callbacks.Throughput(8, timer), {}
    throughput.on_epoch_begin(0)
    throughput.on_train_batch_begin(0)
    timer.seconds = 7.0
    throughput.on_train_batch_end(0, logs)
    assert logs == {"images_per_second": 2.0, "waiting": 0.5}


@pytest.mark.long
def test_the_age_of_the_queue_is_that_of_its_oldest_embedding(random):
    history = make_history(random, epochs=2, steps=2)
    assert history["queue_age"] == [2, 3]  # 20 rows hold the last 3 batches of 8
    assert all(1 <= rank <= 6 for rank in history["effective_rank"])


def make_history(random, epochs, steps, warn=print, **options):
    return (
        tiny.build_model(**options)
        .fit(
            batches(random, steps),
            epochs=epochs,
            shuffle=False,
            callbacks=[callbacks.CollapseMonitor(8, warn=warn)],
            verbose=0,
        )
        .history
    )


@pytest.mark.long
def test_a_collapse_is_warned_of_from_the_second_epoch_on(random):
    """Two temperatures of 100 make every relation uniform."""
    said = []
    flat = objectives.Relation(100.0, 100.0)
    make_history(random, 3, 2, said.append, objective=flat)
    uniform = [line for line in said if "nearly uniform" in line]
    assert [line.split(":")[0] for line in uniform] == [
        "Warning, epoch 2",
        "Warning, epoch 3",
    ]


@pytest.mark.long
def test_a_loss_that_is_no_number_ends_the_run(random):
    model = tiny.build_model()
    weights = model.student.get_weights()
    model.student.set_weights([np.full_like(weight, np.nan) for weight in weights])
    with pytest.raises(UsageError, match="not a number, from step 3 or"):
        model.fit(
            batches(random, 3),
            shuffle=False,
            callbacks=[callbacks.StopOnNaN()],
            verbose=0,
        )


class OnDevice:
    """A value that counts how often the host reads it."""

    reads = 0

    def read(self, *_, **__):
        OnDevice.reads += 1
        return np.float32(1.0)

    __float__ = __array__ = numpy = read


def test_nothing_is_read_from_the_device_between_two_reports(tmp_path):
    """Of the step's counter and of the logs, by all callbacks of a run together."""
    log = io.StringIO()
    model = tiny.build_model()
    run = [
        callbacks.StopOnNaN(),
        callbacks.Throughput(8),
        callbacks.CollapseMonitor(8),
        callbacks.MetricsTable(RunFolder(tmp_path)),
        history.History(RunFolder(tmp_path), 0, build.Plan(8), 8),
        tensorboard.StepScalars(tmp_path, every=100),
        tensorboard.Profiler(tmp_path, 1000, 1001),
        progress.Progress(1000, 90, log, every=1e9),
        checkpoints.Checkpoints(tmp_path / "checkpoints", 500, 2, 90),
    ]
    listeners = callbacks.LazyCallbacks(run, model=model, epochs=1, steps=90)
    listeners.on_train_begin()
    listeners.on_epoch_begin(0)
    counter = model.step
    try:
        model.step = types.SimpleNamespace(numpy=OnDevice().read, value=OnDevice())
        for batch in range(89):
            listeners.on_train_batch_begin(batch)
            listeners.on_train_batch_end(batch, {"loss": OnDevice()})
        assert OnDevice.reads == 0
        assert [each.step for each in run if hasattr(each, "step")] == [89] * 8
    finally:
        model.step = counter
        listeners.on_train_end()


@pytest.mark.parametrize(
    "together, profiled", [(1, [19, 29]), (8, [16, 32])], ids=["one by one", "by eight"]
)
def test_a_profile_has_the_steps_that_were_asked_for(together, profiled, monkeypatch):
    """Counted through all calls of `fit` of a run that resumes at step 88."""
    seen, step = [], 88
    model = types.SimpleNamespace(steps_per_execution=together)
    model.step = types.SimpleNamespace(numpy=lambda: step)
    for name in ("start", "stop"):
        monkeypatch.setattr(
            tf.profiler.experimental, name, lambda *_: seen.append(step - 88)
        )
    profiler = tensorboard.Profiler("folder", 20, 29)
    profiler.set_model(model)
    for steps, epochs in ((16, 1), (104, 3)):
        for epoch in range(epochs):
            profiler.on_epoch_begin(epoch)
            for batch in range(0, steps, together):
                profiler.on_train_batch_begin(batch)
                step += together
                profiler.on_train_batch_end(batch + together - 1)
        profiler.on_train_end()
    assert seen == profiled


def test_callbacks_from_elsewhere_get_numbers():
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(logs["loss"])

    listeners = callbacks.LazyCallbacks([Watch()])
    listeners.on_train_batch_end(0, {"loss": tf.constant(2.0)})
    assert seen == [2.0] and isinstance(seen[0], float)
