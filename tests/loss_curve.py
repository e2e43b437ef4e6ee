"""The loss of each of 50 steps, for test_regression.

  python tests/loss_curve.py > tests/data/loss_curve.csv

writes the curves that the tests compare with, float32 and mixed_bfloat16. Write them
anew only when the method is meant to change, and say so.
"""

import os
import pathlib
import sys

os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import keras
import numpy as np
import tensorflow as tf
import tiny

from ressl_keras import (
    SGD,
    ReSSL,
    build_projector,
    strong_view,
    warmup_cosine,
    weak_view,
)

STEPS, BATCH, SIZE = 50, 16, 16
POLICIES = ("float32", "mixed_bfloat16")


def images():
    """Noise of four sizes on top of each other, uint8 [64, size, size, 3]."""
    generator = np.random.default_rng(0)
    drawn = sum(
        generator.integers(0, 64, [64, side, side, 3])
        .repeat(SIZE // side, axis=1)
        .repeat(SIZE // side, axis=2)
        for side in (2, 4, 8, 16)
    )
    return drawn.astype(np.uint8)


def curve(policy, l2=0.02, **options):
    """Losses [STEPS] of a small model , decayed strongly enough to see it."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    backbone = tiny.build_backbone(input_shape=(SIZE, SIZE, 3), width=16)
    model = ReSSL(
        backbone,
        build_projector(backbone.output_shape[-1], 32, 16),
        weak_view(SIZE),
        strong_view(SIZE),
        queue_size=128,
        **options,
    )
    schedule = warmup_cosine(0.02, STEPS, STEPS // 5)
    model.compile(SGD(schedule, l2=l2), jit_compile=False)
    step, losses = tf.function(model.train_step), []
    pixels = images()
    for number in range(STEPS):
        model.reset_metrics()  # they are means
        first = number * BATCH % len(pixels)
        losses.append(float(step(pixels[first : first + BATCH])["loss"]))
    return np.array(losses)


def main():
    tf.config.experimental.enable_op_determinism()
    curves = [curve(policy) for policy in POLICIES]
    print("step," + ",".join(POLICIES))
    for step, losses in enumerate(zip(*curves)):
        print(f"{step}," + ",".join(f"{loss:.8g}" for loss in losses))


if __name__ == "__main__":
    main()
