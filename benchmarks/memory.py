"""Memory of a whole training step: what is fixed, and what an image adds.

  python -m benchmarks.memory --backbone=resnet50 --size=224 --queue_size=131072

Two batch sizes are measured, each in a process of its own; a line through them says
what other sizes would take, such as on a card whose memory is known. A processor keeps
activations as a GPU does, but its convolutions have other scratch memory, so leave a
tenth or two.

With --accumulate_steps both sizes are split into as many parts. The sizes must then be
large enough, or the weights, not the activations, are what is measured.
"""

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_list("batch_sizes", ["4", "12"], "Two sizes to measure.")
flags.DEFINE_integer("target", 256, "Batch size to say the memory for.")
flags.DEFINE_string("backbone", "resnet50", "Name of the backbone.")
flags.DEFINE_integer("size", 224, "Side of the images in pixels.")
flags.DEFINE_integer("hidden_dim", 4096, "Width of the projector's hidden layer.")
flags.DEFINE_integer("embedding_dim", 512, "Length of an embedding.")
flags.DEFINE_integer("queue_size", 131072, "Rows of the queue.")
flags.DEFINE_integer("accumulate_steps", 1, "Parts of the batch.")
flags.DEFINE_string("precision", "float32", "Keras dtype policy.")
flags.DEFINE_string("results", "benchmarks/results.jsonl", "File to append to.")
flags.DEFINE_bool("one", False, "Measure the first size in this process.")

_OPTIONS = ("backbone", "size", "hidden_dim", "embedding_dim", "queue_size")
_OPTIONS += ("accumulate_steps", "precision")


def measure(
    batch_size,
    backbone,
    size,
    hidden_dim,
    embedding_dim,
    queue_size,
    accumulate_steps,
    precision,
):
    """Prints the megabytes of the model with its optimizer, and what a step adds."""
    import keras
    import tensorflow as tf

    from benchmarks.record import Memory
    from ressl_keras import SGD, ReSSL, build_backbone, build_projector, views

    keras.config.set_dtype_policy(precision)
    tf.zeros([])  # TensorFlow itself has started
    started = Memory.now()
    network = build_backbone(backbone, (size, size, 3))
    model = ReSSL(
        network,
        build_projector(network.output_shape[-1], hidden_dim, embedding_dim),
        teacher_view=views.weak_view(size),
        student_view=views.strong_view(size),
        queue_size=queue_size,
        accumulate_steps=accumulate_steps,
    )
    model.compile(SGD(0.01), jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    images = tf.zeros([batch_size, size, size, 3], tf.uint8)
    step = tf.function(model.train_step).get_concrete_function(images)
    memory = Memory()
    memory.start()
    step(images)
    step(images)
    variables = sum(
        variable.shape.num_elements() * variable.dtype.size
        for variable in tf.nest.map_structure(lambda v: v.value, _all(model))
    )
    print(variables / 2**20, memory.least - started, memory.most - memory.least)


def _all(model):
    return [*model.variables, *model.optimizer.variables]


def main(argv):
    options = {name: FLAGS[name].value for name in _OPTIONS}
    if FLAGS.one:
        measure(int(FLAGS.batch_sizes[0]), **options)
        return
    from benchmarks import record

    rows = {}
    for batch_size in map(int, FLAGS.batch_sizes):
        rows[batch_size] = record.in_a_process(
            "memory", batch_sizes=batch_size, **options
        )
    (small, (variables, _, least)), (large, (_, _, most)) = rows.items()
    per_image = (most - least) / (large - small)
    fixed = variables + least - per_image * small
    total = fixed + per_image * FLAGS.target
    print(f"variables        {variables:9.0f} MB, model, optimizer, teacher and queue")
    for batch_size, (_, _, step) in rows.items():
        print(f"a step of {batch_size:6} {step:9.0f} MB more")
    print(f"an image         {per_image:9.1f} MB")
    print(
        f"a step of {FLAGS.target:6} {total:9.0f} MB in all, by the line through both"
    )
    figures = {"rows": rows, "per_image_mb": per_image, "target_mb": total}
    options["target"] = FLAGS.target
    record.append("memory", {**figures, "options": options}, FLAGS.results)


if __name__ == "__main__":
    app.run(main)
