"""What distribution costs: 1, 2 and 4 devices at one global batch.

  python -m benchmarks.scaling --backbone=resnet10_small --width=16

Without GPUs the devices are logical ones of one processor: they share its cores, so
that no run can be faster than on one device, and the ratio of the time of a step to
that on one device is the overhead of distribution (gathering, reducing, small
batches). Each number runs in a process of its own, and all again in each round.
"""

import statistics
import time

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_list("devices", ["1", "2", "4"], "Numbers of devices.")
flags.DEFINE_string("backbone", "resnet10_small", "Name of the backbone.")
flags.DEFINE_integer("width", 16, "Channels of the first stage of a small ResNet.")
flags.DEFINE_integer("batch_size", 256, "Images a step, on all devices together.")
flags.DEFINE_integer("rounds", 3, "Turns of all numbers of devices.")
flags.DEFINE_integer("steps", 10, "Steps of one turn.")
flags.DEFINE_string("results", "benchmarks/results.jsonl", "File to append to.")
flags.DEFINE_bool("one", False, "Measure the first number in this process.")

SIZE = 32


def measure(devices, backbone, width, batch_size, steps):
    """Prints seconds of a step, images from the pipeline on to the optimizer."""
    from ressl_keras.devices import make_strategy

    strategy = make_strategy("auto", devices)
    import keras
    import numpy as np

    from ressl_keras import SGD, ReSSL, build_backbone, views
    from ressl_keras.data.images import ArrayImages
    from ressl_keras.data.pipeline import training_batches

    with strategy.scope():
        model = ReSSL(
            build_backbone(backbone, (SIZE, SIZE, 3), width),
            teacher_view=views.weak_view(SIZE),
            student_view=views.strong_view(SIZE),
        )
        model.compile(SGD(0.01), jit_compile=False)
        model.optimizer.build(model.trainable_variables)
    ends = []
    clock = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: ends.append(time.perf_counter())
    )
    shape = [8 * batch_size, SIZE, SIZE, 3]
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    images = ArrayImages(pixels)
    model.fit(
        training_batches(images, batch_size, 0, 0, steps + 2),
        steps_per_epoch=steps + 2,
        shuffle=False,
        callbacks=[clock],
        verbose=0,
    )
    print((ends[-1] - ends[1]) / steps)  # the first step traces


def main(argv):
    if FLAGS.one:
        measure(
            int(FLAGS.devices[0]),
            FLAGS.backbone,
            FLAGS.width,
            FLAGS.batch_size,
            FLAGS.steps,
        )
        return
    from benchmarks import record

    names = ("backbone", "width", "batch_size", "steps")
    options = {name: FLAGS[name].value for name in names}
    seconds = {int(count): [] for count in FLAGS.devices}
    for _ in range(FLAGS.rounds):
        for count, measured in seconds.items():
            measured += record.in_a_process("scaling", devices=count, **options)
    first = seconds[min(seconds)]
    ratios = {
        count: statistics.median(one / base for one, base in zip(measured, first))
        for count, measured in seconds.items()
    }
    print("devices   ms a step (least)   ratio to the first (median of rounds)")
    for count, measured in seconds.items():
        print(f"{count:7} {1e3 * min(measured):19.1f} {ratios[count]:14.3f}")
    figures = {"seconds": seconds, "ratios": ratios, "options": options}
    record.append("scaling", figures, FLAGS.results)


if __name__ == "__main__":
    app.run(main)
