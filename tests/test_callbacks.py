"""What a run says of itself while it trains."""

import time

import numpy as np
import pytest
import tensorflow as tf
import tiny

from ressl_keras import UsageError, callbacks, data, objectives


def batches(random, count):
    images = random.integers(0, 256, [count * 8, 8, 8, 3]).astype(np.uint8)
    return tf.data.Dataset.from_tensor_slices(images).batch(8, drop_remainder=True)


def slow(count, seconds):
    """Batches that each take a while to make."""

    def sleep(number):
        time.sleep(seconds)
        return number

    numbers = tf.data.Dataset.range(count)
    return numbers.map(lambda number: tf.numpy_function(sleep, [number], tf.int64))


def test_waiting_for_slow_batches_is_counted():
    waiting, start = data.Waiting(), time.perf_counter()
    assert list(waiting.watch(slow(4, 0.1)).as_numpy_iterator()) == [0, 1, 2, 3]
    assert 0.4 <= waiting.seconds < time.perf_counter() - start


def test_batches_made_in_the_meantime_are_not_waited_for():
    waiting = data.Waiting()
    for _ in waiting.watch(slow(4, 0.1).prefetch(1)):
        time.sleep(0.3)
    assert waiting.seconds < 0.3  # that of the first, and no more


def test_the_log_has_the_share_of_the_time_spent_waiting(random):
    waiting, model = data.Waiting(), tiny.build_model()
    model.optimizer.build(model.trainable_variables)
    images = batches(random, 6)
    late = tf.data.Dataset.zip(images, slow(6, 0.3)).map(lambda image, _: image)
    throughput = callbacks.Throughput(8, waiting)
    model.fit(batches(random, 1), verbose=0, shuffle=False)  # traced before
    history = model.fit(
        waiting.watch(late), callbacks=[throughput], verbose=0, shuffle=False
    ).history
    assert 0.5 < history["waiting"][0] <= 1


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
            callbacks=[callbacks.Signals(8, warn=warn)],
            verbose=0,
        )
        .history
    )


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


def test_a_loss_that_is_no_number_ends_the_run(random):
    model = tiny.build_model()
    weights = model.student.get_weights()
    model.student.set_weights([np.full_like(weight, np.nan) for weight in weights])
    with pytest.raises(UsageError, match="not a number, from step 1 on"):
        model.fit(
            batches(random, 3),
            shuffle=False,
            callbacks=[callbacks.StopOnNaN()],
            verbose=0,
        )
