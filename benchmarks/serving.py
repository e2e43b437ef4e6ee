"""An exported encoder as a server calls it: requests and images a second, latency.

  python -m benchmarks.serving --backbone=resnet18_small --size=32

Each signature at each batch size, from one client after the other and from several at
once, in one process: what the network and the server add is not counted.
"""

import statistics
import tempfile
import threading
import time

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_string("backbone", "resnet18_small", "Network.")
flags.DEFINE_integer("width", 64, "Width of a small ResNet.")
flags.DEFINE_integer("size", 32, "Side of the encoder's images in pixels.")
flags.DEFINE_integer("file_side", 500, "Longer side of the image files in pixels.")
flags.DEFINE_list("batch_sizes", ["1", "8", "32"], "Images of a request.")
flags.DEFINE_integer("clients", 4, "Clients that ask at the same time.")
flags.DEFINE_float("seconds", 5, "Time of each measurement.")
flags.DEFINE_string("results", "benchmarks/results.jsonl", "File to append to.")


def main(argv):
    import tensorflow as tf

    from benchmarks import record
    from ressl_keras import build_backbone
    from ressl_keras.encoders.building import build_encoder
    from ressl_keras.encoders.serving import save_saved_model

    size = FLAGS.size
    backbone = build_backbone(FLAGS.backbone, (size, size, 3), FLAGS.width)
    encoder = build_encoder(backbone, any_size=True)
    with tempfile.TemporaryDirectory() as folder:
        path = save_saved_model(encoder, size, folder, warmup=False)
        served = tf.saved_model.load(path).signatures
    file = record.jpeg(FLAGS.file_side)
    print(f"A file is a JPEG of {FLAGS.file_side} pixels, {len(file):,} bytes.")
    print("signature         batch  clients  images/s  requests/s  median ms  99 % ms")
    rows = []
    for signature, request in _requests(size, file).items():
        for batch_size in map(int, FLAGS.batch_sizes):
            arguments = request(batch_size)
            for clients in sorted({1, FLAGS.clients}):
                found = load(served[signature], arguments, clients, FLAGS.seconds)
                row = {"signature": signature, "batch": batch_size, "clients": clients}
                row |= {"images_per_second": found["requests"] * batch_size, **found}
                rows.append(row)
                print(
                    f"{signature:16}{batch_size:7}{clients:9}"
                    f"{row['images_per_second']:10.1f}{row['requests']:12.1f}"
                    f"{row['median_ms']:11.1f}{row['worst_ms']:9.1f}"
                )
    options = {name: FLAGS[name].value for name in ("backbone", "width", "size")}
    record.append("serving", {**options, "rows": rows}, FLAGS.results)


def _requests(size, file):
    """For each signature a function from the batch size to its arguments."""
    import tensorflow as tf

    def images(dtype):
        return lambda count: {"images": tf.zeros([count, size, size, 3], dtype)}

    return {
        "serving_default": images(tf.float32),
        "serve_uint8": images(tf.uint8),
        "serve_bytes": lambda count: {"image_bytes": tf.constant([file] * count)},
    }


def load(function, arguments, clients, seconds):
    """Calls a function from several threads for some time.

    Returns:
        Dict of `requests` a second, and of the median and the 99th percentile of the
        time that a request takes, in milliseconds.
    """
    function(**arguments)  # the first call is slower
    times, start = [], time.perf_counter()

    def client():
        while time.perf_counter() - start < seconds:
            asked = time.perf_counter()
            function(**arguments)
            times.append(1e3 * (time.perf_counter() - asked))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - start
    return {
        "requests": len(times) / elapsed,
        "median_ms": statistics.median(times),
        "worst_ms": sorted(times)[int(0.99 * (len(times) - 1))],
    }


if __name__ == "__main__":
    app.run(main)
