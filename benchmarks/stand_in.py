"""A stand-in for ImageNet: drawn JPEG files in its numbers, sizes and formats.

  python -m benchmarks.stand_in --folder=stand_in --train=20000 --test=2000 --side=96

It makes FOLDER/images, an image folder train/CLASS/NAME.JPEG and test/CLASS/NAME.JPEG,
and FOLDER/tfds, the same files as a TFDS data set with the features and splits of
imagenet2012. A recipe for ImageNet runs on either with

  --data_dir=FOLDER/tfds --dataset=stand_in
  --data_dir=FOLDER/images --dataset=folder

A class has its own colours, stripes and kind of shape, so that there is something to
learn. An image is a function of (seed, split, number).
"""

import io
import itertools
import multiprocessing
import os
import time

import numpy as np
from absl import app, flags, logging
from PIL import Image, ImageDraw

FLAGS = flags.FLAGS
flags.DEFINE_string("folder", None, "Folder to write into.", required=True)
flags.DEFINE_integer("classes", 1000, "Number of classes.", 1)
flags.DEFINE_integer("train", 1281167, "Images to train on.", 1)
flags.DEFINE_integer("test", 50000, "Images to test on.", 1)
flags.DEFINE_integer("side", 375, "Median of the shorter sides in pixels.", 16)
flags.DEFINE_integer("shards", 1024, "Files of each TFDS split.", 1)
flags.DEFINE_string("name", "stand_in", "Name of the TFDS data set.")
flags.DEFINE_bool("tfds", True, "Whether to make the TFDS data set too.")
flags.DEFINE_integer("processes", len(os.sched_getaffinity(0)), "Processes that draw.")
flags.DEFINE_integer("seed", 0, "Seed of the images.")
flags.DEFINE_string("results", "benchmarks/results.jsonl", "File to append to.")

_SPLITS = {"train": "train", "test": "validation"}  # folder, and name in TFDS
_VERSION = "1.0.0"


def class_name(label):
    """Name of a class, of the form of a WordNet ID."""
    return f"n{label:08d}"


def path_of(folder, split, number, classes):
    """Path of an image; its class is its number modulo the number of classes."""
    name = class_name(number % classes)
    return os.path.join(folder, "images", split, name, f"{name}_{number}.JPEG")


def draw(label, side, random, class_random):
    """Draws an image of a class.

    Args:
        label: class.
        side: median of the shorter sides in pixels.
        random: `numpy.random.Generator` of the image.
        class_random: `numpy.random.Generator` of the class.

    Returns:
        JPEG file, bytes.
    """
    width, height = _size(side, random)
    colours = class_random.integers(0, 256, [3, 3])
    corners = int(class_random.integers(3, 8))
    angle, waves = class_random.uniform(0, np.pi), class_random.uniform(3, 20)
    # Light that changes slowly over the image.
    light = Image.fromarray(random.integers(40, 216, [4, 5, 3], np.uint8))
    light = light.resize((width, height), Image.Resampling.BICUBIC)
    image = Image.blend(light, Image.new("RGB", (width, height), _rgb(colours[0])), 0.4)
    pen = ImageDraw.Draw(image)
    for _ in range(random.integers(2, 6)):
        radius = random.uniform(0.1, 0.35) * min(width, height)
        middle = random.uniform(0, width), random.uniform(0, height)
        turn = float(random.uniform(0, 360))
        colour = _rgb(colours[random.integers(1, 3)])
        pen.regular_polygon((*middle, radius), corners, turn, colour)
    angle += random.normal(0, 0.1)
    rows, columns = np.ogrid[:height, :width]
    phase = np.cos(angle) * rows + np.sin(angle) * columns
    stripes = 12 * np.sin(phase * (2 * np.pi * waves / min(width, height)))
    # What makes files of photographs large.
    grain = 15 * random.standard_normal([height, width], np.float32)
    pixels = np.asarray(image) + (stripes + grain)[..., np.newaxis]
    file = io.BytesIO()
    pixels = np.clip(pixels, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def _rgb(colour):
    return tuple(map(int, colour))


def _size(side, random):
    """Width and height: mostly 4:3, more often wide than high, of any scale."""
    short = max(16, side * np.exp(random.normal(0, 0.25)))
    ratio = random.choice([4 / 3, random.uniform(1, 1.8)], p=[0.6, 0.4])
    size = round(short * ratio), round(short)
    return size if random.uniform() < 0.75 else size[::-1]


def write(task):
    """Writes one image; returns the bytes of its file."""
    folder, split, number, classes, side, seed = task
    label = number % classes
    place = [seed, list(_SPLITS).index(split), number]
    content = draw(
        label,
        side,
        np.random.default_rng(place),
        np.random.default_rng([seed, len(_SPLITS), label]),
    )
    with open(path_of(folder, split, number, classes), "wb") as file:
        file.write(content)
    return len(content)


def write_images(folder, counts, classes, side, seed, processes):
    """Writes the image folder; returns the bytes of all files together."""
    for split, label in itertools.product(counts, range(classes)):
        os.makedirs(os.path.dirname(path_of(folder, split, label, classes)))
    tasks = (
        (folder, split, number, classes, side, seed)
        for split, count in counts.items()
        for number in range(count)
    )
    # Not forked: a copy of a process with threads may hang.
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return sum(pool.imap_unordered(write, tasks, chunksize=64))


def write_tfds(folder, counts, classes, shards, name):
    """Writes the files of the image folder as a TFDS data set."""
    import tensorflow_datasets as tfds

    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()

    def records(split):
        for number in range(counts[split]):
            path = path_of(folder, split, number, classes)
            name = os.path.basename(path)
            # A path: the file's bytes are taken as they are.
            label = class_name(number % classes)
            yield number, {"image": path, "label": label, "file_name": name}

    tfds.dataset_builders.store_as_tfds_dataset(
        name,
        _VERSION,
        tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(
                    names=list(map(class_name, range(classes)))
                ),
                "file_name": tfds.features.Text(),
            }
        ),
        {_SPLITS[split]: records(split) for split in counts},
        data_dir=os.path.join(folder, "tfds"),
        description="Drawn images in place of ImageNet's.",
        download_config=tfds.download.DownloadConfig(num_shards=shards),
    )


def main(argv):
    from benchmarks import record  # not where the processes that draw import it

    folder, counts = FLAGS.folder, {"train": FLAGS.train, "test": FLAGS.test}
    start = time.monotonic()
    size = write_images(
        folder, counts, FLAGS.classes, FLAGS.side, FLAGS.seed, FLAGS.processes
    )
    drawn = time.monotonic()
    count = sum(counts.values())
    print(f"{count} images, {size / 1e6:.0f} MB, {size / count / 1e3:.1f} kB each")
    print(f"drawn in {drawn - start:.0f} s, {count / (drawn - start):.0f} images/s")
    if FLAGS.tfds:
        write_tfds(folder, counts, FLAGS.classes, FLAGS.shards, FLAGS.name)
        print(f"TFDS data set {FLAGS.name} in {time.monotonic() - drawn:.0f} s")
    figures = {"images": count, "bytes": size, "seconds": drawn - start}
    record.append("stand_in", figures, FLAGS.results)


if __name__ == "__main__":
    app.run(main)
