"""Program of test_normalizing: what the teacher's batch norm does on two replicas.

Writes, for each --batch_norm and for two steps, the embeddings of a network that only
normalises: unit rows of (x - mean) / standard deviation.
"""

import os
import pathlib
import sys

os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import keras
import numpy as np
import tensorflow as tf

from ressl_keras import SGD, ReSSL, devices


def network(synchronized):
    images = keras.Input([1, 1, 3])
    normalize = keras.layers.BatchNormalization(epsilon=1e-5, synchronized=synchronized)
    return keras.Model(images, keras.layers.Flatten()(normalize(images)))


def main(images_path, results_path):
    strategy = devices.make_strategy("mirrored", 2)
    shares = np.split(np.load(images_path), 2)
    features = keras.Input([3])
    results = {}
    for mode in ("per_replica", "shuffled", "synchronized"):
        with strategy.scope():
            model = ReSSL(
                network(mode == "synchronized"),
                keras.Model(features, keras.layers.Identity()(features)),
                queue_size=8,
                shuffle_teacher=mode == "shuffled",
            )
            model.compile(SGD(0.0))
            model.optimizer.build(model.trainable_variables)
        images = strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(shares[context.replica_id_in_sync_group])
        )

        @tf.function
        def step(images, model=model):
            # The student's pass is the plain one of its replica.
            return strategy.run(
                lambda x: (model._embed_student([x])[0], model._embed_teacher(x)),
                args=(images,),
            )

        for number in range(2):
            model.step.assign(number)
            for name, rows in zip(("student", "teacher"), step(images)):
                rows = strategy.experimental_local_results(rows)
                results[f"{mode}_{name}_{number}"] = np.concatenate(rows)
    np.savez(results_path, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
