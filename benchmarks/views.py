"""Pairs of views, weak and strong, a second and core, against the recipe in Pillow.

  python -m benchmarks.views

Two settings: images of 32 pixels in memory, and JPEG files of 500 by 375 in memory to
224 pixels, decoding counted. Pillow makes the views one by one, as torchvision does,
and ends where we end: float32, normalised. Both take turns in one process that is held
on one core, so that their ratio means something on a machine that others use, too; the
times are of the processor, not of the clock. Starting the pipeline, once in a training,
is not counted. Then as many such processes as there are cores, at the same time and by
the clock, tell how both scale.
"""

import io
import itertools
import math
import multiprocessing
import os
import random
import time

import numpy as np
from absl import app, flags
from PIL import Image, ImageEnhance, ImageFilter

FLAGS = flags.FLAGS
flags.DEFINE_integer("rounds", 8, "Turns of each side; the fastest counts.")
flags.DEFINE_integer("small_batch", 256, "Images a batch at 32 pixels.")
flags.DEFINE_integer("large_batch", 32, "Images a batch at 224 pixels.")
flags.DEFINE_integer("cores", 2, "Processes of the second part, one a core.")
flags.DEFINE_string("results", None, "File to append a JSON line to.")

MEAN = np.float32([0.485, 0.456, 0.406])
STD = np.float32([0.229, 0.224, 0.225])
SETTINGS = ("32 pixels", "500x375 JPEG to 224")


def drawn_pixels(count, height, width):
    """Images with the spectrum of photographs, falling with the frequency."""
    generator = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = 1
    noise = generator.normal(size=[4, count, height, width])
    smooth = np.fft.irfft2(np.fft.rfft2(noise) / frequency**1.1, s=(height, width))
    smooth /= smooth.std(axis=(2, 3), keepdims=True)
    channels = smooth[0] + 0.4 * smooth[1:]  # mostly light and dark, some colour
    return np.uint8(np.clip(50 * np.moveaxis(channels, 0, -1) + 120, 0, 255))


def drawn_jpegs(count):
    files = []
    for pixels in drawn_pixels(count, 375, 500):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


class PillowViews:
    """torchvision's transforms on Pillow images, written out."""

    def __init__(self, size):
        self.size, self.random = size, random.Random(0)

    def pair(self, image):
        return self.normalized(self.crop(image)), self.normalized(self.strong(image))

    def normalized(self, image):
        return (np.asarray(image, np.float32) / 255 - MEAN) / STD

    def crop(self, image):
        box = self.box(*image.size)
        image = image.crop(box).resize((self.size, self.size), Image.BILINEAR)
        if self.random.random() < 0.5:
            image = image.transpose(Image.FLIP_LEFT_RIGHT)
        return image

    def box(self, width, height):
        for _ in range(10):
            area = width * height * self.random.uniform(0.2, 1)
            aspect = math.exp(self.random.uniform(math.log(3 / 4), math.log(4 / 3)))
            box_width = round(math.sqrt(area * aspect))
            box_height = round(math.sqrt(area / aspect))
            if 0 < box_width <= width and 0 < box_height <= height:
                left = self.random.randint(0, width - box_width)
                top = self.random.randint(0, height - box_height)
                return left, top, left + box_width, top + box_height
        return 0, 0, width, height

    def strong(self, image):
        image = self.crop(image)
        if self.random.random() < 0.8:
            jitters = [
                self.enhanced(ImageEnhance.Brightness),
                self.enhanced(ImageEnhance.Contrast),
                self.enhanced(ImageEnhance.Color),
                self.turned_hue,
            ]
            self.random.shuffle(jitters)
            for jitter in jitters:
                image = jitter(image)
        if self.random.random() < 0.2:
            image = image.convert("L").convert("RGB")
        if self.random.random() < 0.5:
            sigma = self.random.uniform(0.1, 2)
            image = image.filter(ImageFilter.GaussianBlur(sigma))
        return image

    def enhanced(self, enhancer):
        return lambda image: enhancer(image).enhance(self.random.uniform(0.6, 1.4))

    def turned_hue(self, image):
        hue, saturation, value = image.convert("HSV").split()
        shift = np.uint8(int(self.random.uniform(-0.1, 0.1) * 255) % 256)
        hue = Image.fromarray(np.asarray(hue) + shift)
        return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def small_sides(batch_size):
    """What makes pairs of 32 pixels, and how many at a time: Pillow, ours.

    Generators: what they do after `yield` is measured.
    """
    import tensorflow as tf

    from ressl_keras import views

    pixels = drawn_pixels(batch_size, 32, 32)
    pillow, batch = PillowViews(32), tf.constant(pixels)
    steps = itertools.count()  # each with draws of its own, as in a training
    weak, strong = views.weak_view(32), views.strong_view(32)

    @tf.function
    def pairs(step):
        seeds = tf.stack([0, step]), tf.stack([1, step])
        return (
            weak(batch, training=True, seed=seeds[0]),
            strong(batch, training=True, seed=seeds[1]),
        )

    def pillow_side():
        yield
        for image in pixels:
            pillow.pair(Image.fromarray(image))

    def our_side():
        yield
        for step in itertools.islice(steps, 8):
            pairs(tf.constant(step))

    return (pillow_side, batch_size), (our_side, 8 * batch_size)


def large_sides(batch_size):
    """The same from JPEG files to 224 pixels."""
    import tensorflow as tf

    from ressl_keras import views
    from ressl_keras.data.images import EncodedImages
    from ressl_keras.data.pipeline import training_batches

    files, count = drawn_jpegs(32), 512 // batch_size
    steps = itertools.count()
    pillow = PillowViews(224)
    images = EncodedImages(files * (512 // 32), in_memory=True)
    # More than are taken, so that as much is being read at the end as at the start.
    batches = training_batches(images, batch_size, 0, 0, 2 * count, size=224)
    weak, strong = views.View([]), views.View(views.photometric_operations())

    @tf.function
    def on_the_device(batch, step):
        seed = tf.stack([1, step])
        return (
            weak(batch["teacher"], training=True),
            strong(batch["student"], training=True, seed=seed),
        )

    def pillow_side():
        yield
        for file in files:
            pillow.pair(Image.open(io.BytesIO(file)).convert("RGB"))

    def our_side():
        started = iter(batches)
        next(started)
        yield
        for batch in itertools.islice(started, count):
            on_the_device(batch, tf.constant(next(steps)))

    return (pillow_side, len(files)), (our_side, count * batch_size)


def measure(core, together, setting, batch_size, rounds, answers):
    """Rates of Pillow and of ours on one core: by the processor and by the clock."""
    os.sched_setaffinity(0, {core})
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    make_sides = small_sides if setting == SETTINGS[0] else large_sides
    sides = make_sides(batch_size)
    fastest = [(math.inf, math.inf)] * len(sides)
    for turn in range(rounds + 1):
        for index, (side, count) in enumerate(sides):
            run = side()
            next(run)
            together.wait()
            clock, processor = time.perf_counter(), time.process_time()
            next(run, None)
            taken = time.process_time() - processor, time.perf_counter() - clock
            if turn:  # the first warms up
                fastest[index] = tuple(
                    min(best, seconds / count)
                    for best, seconds in zip(fastest[index], taken)
                )
    answers.put([(1 / processor, 1 / clock) for processor, clock in fastest])


def rates(setting, batch_size, cores):
    """By processor and by clock, summed over cores: of Pillow, of ours."""
    context = multiprocessing.get_context("spawn")
    answers, together = context.Queue(), context.Barrier(len(cores))
    arguments = (together, setting, batch_size, FLAGS.rounds, answers)
    processes = [
        context.Process(target=measure, args=(core, *arguments)) for core in cores
    ]
    for process in processes:
        process.start()
    totals = np.sum([answers.get() for _ in processes], axis=0)
    for process in processes:
        process.join()
    return totals.tolist()


def main(argv):
    del argv
    # Not at the top: it imports TensorFlow, which the processes of the measurement
    # must not do before they are held on their cores.
    from benchmarks import record

    free = sorted(os.sched_getaffinity(0))
    cores = free[: FLAGS.cores]
    figures = {}
    for setting, batch_size in zip(SETTINGS, (FLAGS.small_batch, FLAGS.large_batch)):
        one = rates(setting, batch_size, cores[-1:])
        pillow, ours = (by_processor for by_processor, _ in one)
        print(f"\n{setting}, batches of {batch_size}, pairs a second of one core")
        print(f"Pillow {pillow:.0f}, ours {ours:.0f}: {ours / pillow:.2f} times")
        figures[setting] = {
            "batch_size": batch_size,
            "pillow": pillow,
            "ours": ours,
            "ratio": ours / pillow,
        }
        if len(cores) > 1:
            several = rates(setting, batch_size, cores)
            scaling = [s[1] / o[1] for s, o in zip(several, one)]
            print(
                f"{len(cores)} cores against one, by the clock: "
                f"Pillow {scaling[0]:.2f} times, ours {scaling[1]:.2f} times"
            )
            figures[setting]["scaling"] = dict(zip(("pillow", "ours"), scaling))
    record.append(
        "views", {"cores_used": len(cores), **figures}, FLAGS.results or record.RESULTS
    )


if __name__ == "__main__":
    app.run(main)
