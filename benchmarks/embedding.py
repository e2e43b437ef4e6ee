"""How many images a second ressl-embed embeds, and what reading and the network take.

  python -m benchmarks.embedding --data_dir=my_images --size=64

Without --data_dir the images are drawn JPEG files. The time of the processor is that of
all its cores together; on a machine with other work it is the steadier figure. Starting
TensorFlow is not counted.
"""

import pathlib
import tempfile
import time

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_string("data_dir", None, "Folder of images.")
flags.DEFINE_integer("images", 1000, "Drawn images, without a folder.")
flags.DEFINE_integer("file_side", 500, "Their longer side in pixels.")
flags.DEFINE_string("backbone", "resnet18_small", "Network.")
flags.DEFINE_integer("width", 64, "Width of a small ResNet.")
flags.DEFINE_integer("size", 64, "Side of the encoder's images in pixels.")
flags.DEFINE_integer("rounds", 2, "Measurements of each part; the fastest counts.")
flags.DEFINE_string("results", "benchmarks/results.jsonl", "File to append to.")


def main(argv):
    from benchmarks import record

    with tempfile.TemporaryDirectory() as folder:
        count, parts = _parts(FLAGS.data_dir or _drawn(folder), folder)
        print(f"{count:,} images    images/s  images/s of the processor")
        rows = {}
        for name, part in parts.items():
            times = [_times(part) for _ in range(FLAGS.rounds)]
            wall, processor = map(min, zip(*times))
            rows[name] = {"wall_s": wall, "processor_s": processor}
            print(f"{name:14}{count / wall:10.0f}{count / processor:12.0f}")
    options = {name: FLAGS[name].value for name in ("backbone", "width", "size")}
    record.append("embedding", {**options, "images": count, **rows}, FLAGS.results)


def _drawn(folder):
    """Makes a folder of images in another; returns its path."""
    from benchmarks import record

    images, file = pathlib.Path(folder, "images"), record.jpeg(FLAGS.file_side)
    images.mkdir()
    for number in range(FLAGS.images):
        (images / f"{number}.jpg").write_bytes(file)
    return str(images)


def _parts(data_dir, folder):
    """Number of images, and a function for each part of the work on all of them."""
    import tensorflow as tf

    from ressl_keras import build_backbone, load_dataset
    from ressl_keras.embeddings.embedding import embed
    from ressl_keras.embeddings.table import write_tables
    from ressl_keras.encoders.building import build_encoder
    from ressl_keras.encoders.embed import batches_of, embeddings
    from ressl_keras.evaluation.features import ONE_DEVICE

    size = FLAGS.size
    backbone = build_backbone(FLAGS.backbone, (size, size, 3), FLAGS.width)
    encoder = build_encoder(backbone, any_size=True)
    encoder.image_size = size
    # From the files in each round, as the command reads them once.
    dataset = load_dataset("folder", data_dir, labels="none", memory_limit=0)
    images = dataset.pretrain
    batch = tf.zeros([256, size, size, 3])

    def read():
        for _ in batches_of(images, size):
            pass

    def compute():
        whole, rest = divmod(len(images), len(batch))
        batches = [batch] * whole + [batch[:rest]] * bool(rest)
        for _ in embeddings(batches, encoder):
            pass

    def both():
        tables = embed(encoder, dataset, ONE_DEVICE, data_dir)
        write_tables(f"{folder}/some.parquet", tables, {})

    return len(images), {"reading": read, "network": compute, "ressl-embed": both}


def _times(part):
    """Seconds that a function takes, and those of all cores together."""
    start = time.perf_counter(), time.process_time()
    part()
    return time.perf_counter() - start[0], time.process_time() - start[1]


if __name__ == "__main__":
    app.run(main)
