"""The whole training step against the floor for the same network and batch.

  python -m benchmarks.step --backbone=resnet18_small --width=64

The floor is what no method of this kind can do without: a supervised step (forwards,
backwards, optimizer) and a forward pass of a second network, both on images that are
ready. The step is `fit` itself: batches from the pipeline, views, both encoders,
queue, loss, metrics, optimizer. Both are measured in turns, in one process, so that
their ratio means something on a machine that others use, too; a table says where the
rest goes.
"""

import statistics
import time

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from benchmarks import record
from ressl_keras import SGD, ReSSL, build_backbone, build_projector, views
from ressl_keras.data.images import ArrayImages
from ressl_keras.data.pipeline import training_batches
from ressl_keras.method import losses
from ressl_keras.method.normalization import fuse_batch_norms

FLAGS = flags.FLAGS
flags.DEFINE_string("backbone", "resnet18_small", "Name of the backbone.")
flags.DEFINE_integer("width", 64, "Channels of the first stage of a small ResNet.")
flags.DEFINE_integer("size", 32, "Side of the images in pixels.")
flags.DEFINE_integer("batch_size", 256, "Images a step.")
flags.DEFINE_integer("queue_size", 4096, "Embeddings in the queue.")
flags.DEFINE_integer("embedding_dim", 128, "Length of an embedding.")
flags.DEFINE_integer("hidden_dim", 512, "Width of the projector's hidden layer.")
flags.DEFINE_string("precision", "float32", "Keras dtype policy.")
flags.DEFINE_bool("jit_compile", False, "Compile both with XLA.")
flags.DEFINE_integer("steps_per_execution", 1, "Steps by one call of the graph.")
flags.DEFINE_integer("rounds", 5, "Turns of floor and step.")
flags.DEFINE_integer("steps", 4, "Steps of one turn.")
flags.DEFINE_string("results", record.RESULTS, "File to append a JSON line to.")


class Clock(keras.callbacks.Callback):
    """Seconds from one end of a batch to the next; `fit` takes a while to start."""

    def on_train_begin(self, logs=None):
        self.ends = []

    def on_train_batch_end(self, batch, logs=None):
        self.ends.append(time.perf_counter())

    def seconds_a_step(self, steps):
        return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1) / steps


def networks():
    """A backbone and its projector."""
    backbone = build_backbone(FLAGS.backbone, (FLAGS.size, FLAGS.size, 3), FLAGS.width)
    features = backbone.output_shape[-1]
    return backbone, build_projector(features, FLAGS.hidden_dim, FLAGS.embedding_dim)


def build_model():
    model = ReSSL(
        *networks(),
        teacher_view=views.weak_view(FLAGS.size),
        student_view=views.strong_view(FLAGS.size),
        queue_size=FLAGS.queue_size,
    )
    model.compile(
        SGD(0.01, l2=5e-4),
        jit_compile=FLAGS.jit_compile,
        steps_per_execution=FLAGS.steps_per_execution,
    )
    model.optimizer.build(model.trainable_variables)
    return model


def build_floor():
    """A function of one supervised step and a second network's forward pass."""
    student, teacher = (
        fuse_batch_norms(keras.Sequential(networks())) for _ in range(2)
    )
    optimizer = SGD(0.01, l2=5e-4)
    optimizer.build(student.trainable_variables)
    shape = [FLAGS.batch_size, FLAGS.size, FLAGS.size, 3]
    images = tf.random.normal(shape)
    labels = tf.random.uniform([FLAGS.batch_size], 0, 10, tf.int32)

    @tf.function(jit_compile=FLAGS.jit_compile)
    def step():
        with tf.GradientTape() as tape:
            scores = tf.cast(student(images, training=True), tf.float32)
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, scores)
            loss = tf.reduce_mean(loss)
        gradients = tape.gradient(loss, student.trainable_variables)
        optimizer.apply(gradients, student.trainable_variables)
        return loss, tf.reduce_sum(teacher(images, training=True))

    return step


def timed(function, count):
    start = time.perf_counter()
    for _ in range(count):
        result = function()
    tf.nest.map_structure(lambda tensor: tensor.numpy(), result)  # a GPU's, too
    return (time.perf_counter() - start) / count


def parts_of_the_step(model, images):
    """Functions that each do one part of the step on its own."""
    batch = tf.constant(next(iter(images.as_numpy_iterator())))
    dim = FLAGS.embedding_dim
    embeddings = tf.math.l2_normalize(tf.random.normal([len(batch), dim]), axis=-1)
    compiled = tf.function(jit_compile=FLAGS.jit_compile)

    def views_of_both():
        return model.views(batch, model.step.value)

    def relation_loss_and_gradient():
        with tf.GradientTape() as tape:
            tape.watch(embeddings)
            target = losses.relate(embeddings, model.queue.features, 0.04)
            relation = losses.relate(embeddings, model.queue.features, 0.1)
            examples = model.objective(relation, target, tf.ones([len(batch)]), 0)
            loss = tf.reduce_mean(examples)
        model._track(examples, relation, target)
        return tape.gradient(loss, embeddings), model._logs(embeddings)

    def running_average():
        model._update_teacher()
        return tf.constant(0)

    def enqueue():
        model.queue.enqueue(embeddings)
        return tf.constant(0)

    functions = (views_of_both, relation_loss_and_gradient, running_average, enqueue)
    return {function.__name__: compiled(function) for function in functions}


def main(argv):
    keras.config.set_dtype_policy(FLAGS.precision)
    model, floor = build_model(), build_floor()
    count = FLAGS.batch_size * 8
    shape = [count, FLAGS.size, FLAGS.size, 3]
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    images = ArrayImages(pixels)
    clock = Clock()
    executions = FLAGS.steps + 1  # between their ends lie `steps`

    def fit():
        steps = executions * FLAGS.steps_per_execution
        batches = training_batches(images, FLAGS.batch_size, 0, 0, steps)
        model.fit(
            batches,
            steps_per_epoch=steps,
            shuffle=False,
            callbacks=[clock],
            verbose=0,
        )
        return clock.seconds_a_step(FLAGS.steps_per_execution)

    timed(floor, 2), fit()
    rounds = [(timed(floor, FLAGS.steps), fit()) for _ in range(FLAGS.rounds)]
    floors, steps = zip(*rounds)
    ratios = [step / floor for floor, step in rounds]
    batches = training_batches(images, FLAGS.batch_size, 0, 0, 8)
    parts = {}
    for name, function in parts_of_the_step(model, batches).items():
        timed(function, 1)
        parts[name] = min(timed(function, 3) for _ in range(FLAGS.rounds))
    figures = {
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "step_seconds": min(steps),
        "floor_seconds": min(floors),
        "ratio_of_least": min(steps) / min(floors),
        "parts_seconds": parts,
        "options": _options(),
    }
    print(f"{FLAGS.backbone}, width {FLAGS.width}, batch {FLAGS.batch_size}:")
    print(f"  step / floor, median of {FLAGS.rounds}: {figures['ratio_median']:.3f}")
    print(f"  from {min(ratios):.3f} to {max(ratios):.3f}")
    print(f"  least step / least floor: {figures['ratio_of_least']:.3f}")
    print(f"  step  {1e3 * min(steps):9.1f} ms")
    print(f"  floor {1e3 * min(floors):9.1f} ms")
    for name, seconds in parts.items():
        share = 100 * seconds / min(floors)
        print(f"    {name:28} {1e3 * seconds:7.1f} ms, {share:4.1f} % of the floor")
    record.append("step", figures, FLAGS.results)


def _options():
    names = ("backbone", "width", "size", "batch_size", "queue_size", "embedding_dim")
    names += ("hidden_dim", "precision", "jit_compile", "steps_per_execution")
    return {name: FLAGS[name].value for name in names}


if __name__ == "__main__":
    app.run(main)
