"""The machine that a process runs on, in words."""

import collections
import os

import tensorflow as tf


def devices(strategy=None):
    """The devices of this machine, such as `2 x NVIDIA H100, 4 replicas`.

    Args:
        strategy: `tf.distribute.Strategy` whose replicas are told, or None.
    """
    gpus = [
        tf.config.experimental.get_device_details(gpu).get("device_name", "GPU")
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    words = ", ".join(
        f"{count} x {name}" if count > 1 else name
        for name, count in collections.Counter(gpus).items()
    )
    replicas = strategy.num_replicas_in_sync if strategy else 1
    told = f", {replicas} replicas" if replicas > 1 else ""
    return (words or f"{_processor()}, {_cores()} cores") + told


def _processor():
    """Name of the processor, as Linux tells it; else `CPU`."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            names = [line for line in file if line.startswith("model name")]
    except OSError:
        names = []
    name = names[0].partition(":")[2].strip() if names else ""
    return f"CPU {name}" if name else "CPU"


def _cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
