"""What a checkpoint costs: the seconds that training waits, its writing, its memory.

  python -m benchmarks.saving --backbone=resnet50 --size=224 --queue_size=131072

Training waits while the state is copied; a thread writes the copy, and training goes
on. Processor seconds stand beside those of the clock, which other work on the machine
lengthens.
"""

import os
import resource
import tempfile
import time

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_string("backbone", "resnet50", "Name of the backbone.")
flags.DEFINE_integer("size", 224, "Side of the images in pixels.")
flags.DEFINE_integer("hidden_dim", 4096, "Width of the projector's hidden layer.")
flags.DEFINE_integer("embedding_dim", 512, "Length of an embedding.")
flags.DEFINE_integer("queue_size", 131072, "Rows of the queue.")
flags.DEFINE_integer("rounds", 5, "Checkpoints to write; the fastest counts.")
flags.DEFINE_string("folder", None, "Folder to write into, removed at the end.")
flags.DEFINE_string("results", "benchmarks/results.jsonl", "File to append to.")


def build():
    """The model with its optimizer's variables."""
    from ressl_keras import SGD, ReSSL, build_backbone, build_projector

    network = build_backbone(FLAGS.backbone, (FLAGS.size, FLAGS.size, 3))
    dims = network.output_shape[-1], FLAGS.hidden_dim, FLAGS.embedding_dim
    model = ReSSL(network, build_projector(*dims), queue_size=FLAGS.queue_size)
    model.compile(SGD(0.01), jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    return model


def timed(function, *arguments):
    """What a function returns, its seconds, and its processor seconds."""
    usage, start = resource.getrusage(resource.RUSAGE_THREAD), time.monotonic()
    result = function(*arguments)
    seconds, now = time.monotonic() - start, resource.getrusage(resource.RUSAGE_THREAD)
    used = now.ru_utime + now.ru_stime - usage.ru_utime - usage.ru_stime
    return result, seconds, used


def main(argv):
    from benchmarks import record
    from ressl_keras.keras_private import weights_in_memory
    from ressl_keras.training import checkpoints

    model = build()
    memory = record.Memory()
    memory.start()
    copies, writes = [], []
    with tempfile.TemporaryDirectory(dir=FLAGS.folder) as folder:
        for step in range(FLAGS.rounds):
            state, *copy = timed(weights_in_memory, model)
            path, *write = timed(checkpoints.write, state, folder, step, 1)
            del state  # as a run does, before the next
            copies.append(copy)
            writes.append(write)
        size = os.path.getsize(path) / 1e6
    figures = {"megabytes": size, "memory": memory.most - memory.least}
    print(f"a checkpoint     {size:8.1f} MB")
    print(f"memory           {figures['memory']:8.1f} MB more at most")
    for name, rows in (("training waits", copies), ("a thread writes", writes)):
        seconds, used = (min(column) for column in zip(*rows))
        print(f"{name:<17}{seconds:8.2f} s, {used:.2f} s of the processor")
        figures[name] = [seconds, used]
    record.append("saving", figures, FLAGS.results)


if __name__ == "__main__":
    app.run(main)
