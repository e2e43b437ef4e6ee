"""Whether a run's settings fit into memory, asked before anything is built."""

import psutil

from ressl_keras.errors import UsageError
from ressl_keras.method.networks import small_resnet_features
from ressl_keras.training.heads import head_widths

_FLOAT = 4  # bytes
# Of every weight: the student's, its gradient, its momentum, the teacher's.
_COPIES_OF_WEIGHTS = 4
# Of every [part of a batch, queue] array: logits and softmax of teacher and student.
_COPIES_OF_RELATIONS = 4


def check_memory(config, image_size=None, machines=1):
    """Checks that the least that a run needs is there.

    It is a lower bound from the settings alone: a run that passes may still need more.
    Activations and the weights of networks other than the small ResNets are left out.
    The memory of GPUs is not asked for.

    Args:
        config: `Config`.
        image_size: side of the views in pixels; None where the settings leave it to
            the data set, which is not known yet.
        machines: number of machines that share a batch.

    Raises:
        UsageError: if it is not there, naming what takes most and the flags to lower.
    """
    free = psutil.virtual_memory().available
    needs = least_bytes(config, image_size, machines)
    total = sum(needs.values())
    if total > free:
        largest = max(needs, key=needs.get)
        flags = {
            "queue": "--queue_size, --embedding_dim",
            "relations": "--batch_size, --queue_size, or raise --accumulate_steps",
            "views": "--batch_size, --image_size, --crops",
            "weights": "--width, or the flags that end in _dim",
        }[largest]
        raise UsageError(
            f"The run needs {_gib(total)} GiB of memory or more, {_gib(free)} GiB are "
            f"free; the {largest} alone take {_gib(needs[largest])} GiB. Lower {flags}."
        )


def least_bytes(config, image_size=None, machines=1):
    """The least memory that a run needs on each machine, in bytes.

    Args:
        config: `Config`.
        image_size: as in `check_memory`.
        machines: as in `check_memory`.

    Returns:
        Dict from `queue`, `relations`, `views` and `weights` to bytes.
    """
    dim, batch = config.embedding_dim, config.batch_size // machines
    features = small_resnet_features(config.backbone, config.width)
    size = image_size or config.image_size or 0
    crops = config.crops or (size,)
    rows = config.queue_size if config.references == "queue" else config.batch_size
    part = batch // config.accumulate_steps
    weights = 9 * features**2  # of the last convolution
    for first, hidden, last in filter(None, head_widths(config, features)):
        weights += (first + last) * hidden
    pixels = size**2 + sum(crop**2 for crop in crops)
    return {
        "queue": rows * dim * _FLOAT,
        "relations": part * rows * _COPIES_OF_RELATIONS * _FLOAT,
        "views": config.channels * batch * pixels * _FLOAT,
        "weights": weights * _COPIES_OF_WEIGHTS * _FLOAT,
    }


def _gib(size):
    return f"{size / 2**30:,.1f}"
