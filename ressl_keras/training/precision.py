"""The dtype policy that fits the hardware."""

import time

import tensorflow as tf

from ressl_keras.method.normalization import fuse_batch_norms

# bfloat16 must make the network's passes this many times as fast as float32.
_WORTHWHILE = 1.2

# Pixels of the images that are timed: 64 images of 32 pixels, or four of 128.
_PIXELS = 64 * 32 * 32


def choose_precision(build, image_size, log=print):
    """Chooses between `float32` and `mixed_bfloat16`.

    GPUs compute in bfloat16 from compute capability 8.0 (Ampere) on. On a CPU the
    network is timed in both, if the processor has instructions for bfloat16: they pay
    or not by the number of channels, and by the maker of the processor.

    Args:
        build: function from the name of a dtype policy to a fresh backbone in it.
        image_size: side of the images in pixels.
        log: called with a line that says what was chosen and why.

    Returns:
        Name of a Keras dtype policy.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        capability = details.get("compute_capability", (0, 0))
        fits = capability >= (8, 0)
        reason = f"the GPU has compute capability {'.'.join(map(str, capability))}"
    elif not cpu_has_bfloat16():
        fits, reason = False, "the processor has no bfloat16 instructions"
    else:
        speedup = _seconds(build("float32"), image_size) / _seconds(
            build("mixed_bfloat16"), image_size
        )
        fits = speedup >= _WORTHWHILE
        reason = f"the network is {speedup:.1f} times as fast in bfloat16"
    precision = "mixed_bfloat16" if fits else "float32"
    log(f"Precision {precision}: {reason}.")
    return precision


def cpu_has_bfloat16(path="/proc/cpuinfo"):
    """Whether the processor has instructions for bfloat16 (Linux on x86).

    Args:
        path: file that describes the processors.
    """
    try:
        with open(path) as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return False
    return bool({"amx_bf16", "avx512_bf16"} & set(flags.split()))


def _seconds(backbone, image_size, repeats=4):
    """Least time of a forward and a backward pass."""
    network = fuse_batch_norms(backbone)
    # Batch norm needs two.
    count = max(2, _PIXELS // image_size**2)
    images = tf.random.normal([count, image_size, image_size, network.input_shape[-1]])

    @tf.function
    def passes():
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(network(images, training=True))
        return tape.gradient(total, network.trainable_variables)

    passes()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        passes()
        times.append(time.perf_counter() - start)
    return min(times)
