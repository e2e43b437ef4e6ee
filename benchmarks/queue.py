"""The queue: time to enqueue, and memory of a step, from 4,096 to 131,072 rows.

  python -m benchmarks.queue --dim=512

Each size in a process of its own, so that the peak of its memory is its own. The step
is everything that touches the queue: two relations, loss, gradient, metrics, enqueue.
An enqueue writes the same rows at every size; the ratio to the smallest size says
whether it does.
"""

import time

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_list("sizes", ["4096", "16384", "65536", "131072"], "Rows of the queue.")
flags.DEFINE_integer("dim", 512, "Length of a row.")
flags.DEFINE_integer("batch_size", 256, "Rows enqueued at a time.")
flags.DEFINE_integer("repeats", 20, "Times of which the least is taken.")
flags.DEFINE_string("results", "benchmarks/results.jsonl", "File to append to.")
flags.DEFINE_bool("one", False, "Measure the first size in this process.")


def measure(size, dim, batch_size, repeats):
    """Prints milliseconds of an enqueue and of a step, and megabytes of a step."""
    import tensorflow as tf

    from benchmarks.record import Memory
    from ressl_keras import FeatureQueue, losses

    def unit(rows):
        return tf.math.l2_normalize(tf.random.normal([rows, dim]), axis=-1)

    queue = FeatureQueue(size, dim)
    student, teacher = tf.Variable(unit(batch_size)), unit(batch_size)
    enqueue = tf.function(queue.enqueue)

    @tf.function
    def step():
        queue.share()
        references = queue.features
        target = losses.relate(teacher, references, 0.04)
        with tf.GradientTape() as tape:
            relation = losses.relate(student, references, 0.1)
            loss = tf.reduce_mean(losses.cross_entropy(relation, target))
        gradient = tape.gradient(loss, student)
        entropies = losses.entropy(target), losses.entropy(relation)
        with tf.control_dependencies([gradient, *entropies]):
            queue.enqueue(teacher)
        return loss

    def least(function, *arguments):
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            function(*arguments)
            times.append(time.perf_counter() - start)
        return 1e3 * min(times)

    enqueue(teacher)
    enqueue_ms = least(enqueue, teacher)
    traced = step.get_concrete_function()
    memory = Memory()
    memory.start()
    step_ms = least(traced)
    print(enqueue_ms, step_ms, memory.most - memory.least)


def main(argv):
    if FLAGS.one:
        measure(int(FLAGS.sizes[0]), FLAGS.dim, FLAGS.batch_size, FLAGS.repeats)
        return
    from benchmarks import record

    rows = []
    print("   rows  queue MB  enqueue ms  (ratio)   step ms  step MB  [batch, rows] MB")
    for size in map(int, FLAGS.sizes):
        options = {name: FLAGS[name].value for name in ("dim", "batch_size", "repeats")}
        enqueue_ms, step_ms, step_mb = record.in_a_process(
            "queue", sizes=size, **options
        )
        queue_mb = size * FLAGS.dim * 4 / 2**20
        array_mb = size * FLAGS.batch_size * 4 / 2**20
        rows.append(dict(size=size, enqueue_ms=enqueue_ms, step_ms=step_ms))
        rows[-1].update(step_mb=step_mb, queue_mb=queue_mb, array_mb=array_mb)
        ratio = enqueue_ms / rows[0]["enqueue_ms"]
        print(
            f"{size:7} {queue_mb:9.1f} {enqueue_ms:11.3f} {ratio:8.2f} "
            f"{step_ms:9.1f} {step_mb:8.1f} {array_mb:17.1f}"
        )
    figures = {"rows": rows, "dim": FLAGS.dim, "batch_size": FLAGS.batch_size}
    record.append("queue", figures, FLAGS.results)


if __name__ == "__main__":
    app.run(main)
