"""The dtype policy that fits the hardware."""

import time

import tensorflow as tf

# bfloat16 must make a convolution this many times as fast as float32.
_WORTHWHILE = 1.2


def choose_precision(log=print):
    """Chooses between `float32` and `mixed_bfloat16`.

    GPUs compute in bfloat16 from compute capability 8.0 (Ampere) on. On a CPU a
    convolution is timed in both, if the processor has instructions for bfloat16.

    Args:
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
        speedup = _seconds(tf.float32) / _seconds(tf.bfloat16)
        fits = speedup >= _WORTHWHILE
        reason = f"a convolution is {speedup:.1f} times as fast in bfloat16"
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


def _seconds(dtype, repeats=5):
    """Least time of a convolution like those of a small ResNet."""
    images = tf.cast(tf.random.normal([64, 32, 32, 32]), dtype)
    kernel = tf.cast(tf.random.normal([3, 3, 32, 32]), dtype)

    @tf.function
    def convolution():
        return tf.reduce_sum(tf.nn.conv2d(images, kernel, 1, "SAME"))

    convolution()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        convolution().numpy()
        times.append(time.perf_counter() - start)
    return min(times)
