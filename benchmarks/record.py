"""What benchmarks share: where figures go, an image file, a look at the memory."""

import json
import os
import platform
import subprocess
import sys
import threading
import time

import numpy as np
import tensorflow as tf

from ressl_keras.encoders.encoder import commit

RESULTS = "benchmarks/results.jsonl"


def append(name, figures, path=RESULTS):
    """Adds a JSON line to a file, and prints it.

    Args:
        name: of the benchmark.
        figures: dict of what was measured and with which options.
        path: file to append to.
    """
    import keras

    line = {
        "benchmark": name,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "commit": commit(),
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS"),
        **figures,
    }
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\n")
    print(f"Written to {path}.", file=sys.stderr)


def in_a_process(benchmark, **options):
    """Runs a benchmark with `--one`, in a process of its own.

    Args:
        benchmark: its name.
        **options: its flags.

    Returns:
        List of the numbers in the last line that it prints.
    """
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", "--one"]
    command += [f"--{name}={value}" for name, value in options.items()]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return list(map(float, output.stdout.splitlines()[-1].split()))


def machine():
    """Processor, cores that may be used, and GPUs."""
    processor = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            names = [line for line in file if line.startswith("model name")]
        processor = names[0].split(":")[1].strip()
    except (OSError, IndexError):
        pass  # not a Linux, or not a PC
    gpus = [
        tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    cores = len(os.sched_getaffinity(0))
    return {"processor": processor, "cores": cores, "gpus": gpus}


def jpeg(side):
    """A smooth picture as a JPEG file."""
    coarse = np.random.default_rng(0).uniform(0, 255, [1, side // 20, side // 25, 3])
    pixels = tf.image.resize(coarse, [side, 4 * side // 5], "bicubic")[0]
    pixels = tf.cast(tf.clip_by_value(pixels, 0, 255), tf.uint8)
    return tf.io.encode_jpeg(pixels, quality=90).numpy()


class Memory(threading.Thread):
    """Watches how much memory this process has, and keeps the most it has seen."""

    def __init__(self):
        super().__init__(daemon=True)
        self.least = self.most = self.now()

    @staticmethod
    def now():
        """Resident megabytes, from Linux."""
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def run(self):
        while True:
            self.most = max(self.most, self.now())
            time.sleep(0.0005)
