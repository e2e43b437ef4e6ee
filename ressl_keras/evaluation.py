"""How good an encoder is: neighbours and a linear probe on its frozen features.

Both are run on the encoder and on the same encoder untrained, because accuracies of
random features are far above chance and a figure alone says little.
"""

import time

import keras
import numpy as np
import tensorflow as tf

from ressl_keras import data
from ressl_keras.errors import UsageError, near


def extract(encoder, images, count=None, batch_size=256):
    """Features of a set of images.

    Args:
        encoder: `keras.Model` from images in 0-255 [batch, size, size, 3] to features
            [batch, dim].
        images: `ArrayImages` or `EncodedImages`.
        count: take only so many, evenly spread; None takes all.
        batch_size: images a batch.

    Returns:
        Tuple of features, float32 array [count, dim], and labels, integer array
        [count], or None where the images have none.
    """
    size = encoder.input_shape[1] or images.size[0]

    @tf.function(input_signature=[tf.TensorSpec([None, size, size, 3], tf.uint8)])
    def forward(batch):
        return tf.cast(encoder(batch, training=False), tf.float32)

    batches = data.evaluation_batches(images, size, batch_size, count)
    features = np.concatenate([forward(batch).numpy() for batch in batches])
    if images.labels is None:
        return features, None
    return features, images.labels[data.evaluation_indices(images, count)]


def knn(
    train_features,
    train_labels,
    test_features,
    test_labels,
    k=200,
    temperature=0.1,
    block=1024,
):
    """Accuracy of the weighted nearest-neighbour classifier.

    The vote of each of the k nearest training images, by cosine similarity, weighs
    exp(similarity / temperature) (arXiv 1805.01978, section 3.4).

    Args:
        train_features: float array [train, dim]; need not be normalised.
        train_labels: integer array [train].
        test_features: float array [test, dim].
        test_labels: integer array [test].
        k: number of neighbours, at most [train] of them.
        temperature: positive number.
        block: test images compared at once; bounds the memory.

    Returns:
        Dict of `top1` and `top5`, in per cent.
    """
    bank = tf.math.l2_normalize(tf.cast(train_features, tf.float32), axis=-1)
    queries = tf.math.l2_normalize(tf.cast(test_features, tf.float32), axis=-1)
    bank_labels = tf.cast(train_labels, tf.int32)
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    k = min(k, len(train_labels))

    @tf.function(input_signature=[tf.TensorSpec([None, bank.shape[1]])])
    def vote(block_queries):
        similarities = tf.matmul(block_queries, bank, transpose_b=True)
        nearest, places = tf.math.top_k(similarities, k)
        weights = tf.exp((nearest - 1) / temperature)
        votes = tf.one_hot(tf.gather(bank_labels, places), classes)
        return tf.einsum("qk,qkc->qc", weights, votes)

    votes = [vote(queries[i : i + block]) for i in range(0, len(queries), block)]
    return _accuracies(np.concatenate(votes), test_labels)


def linear_probe(
    train_features,
    train_labels,
    test_features,
    test_labels,
    epochs=100,
    batch_size=1024,
    learning_rate=0.01,
    seed=0,
):
    """Accuracy of a linear classifier trained on frozen features.

    The features are standardised, then a softmax regression is trained on them with
    Adam and cosine decay.

    Args:
        train_features: float array [train, dim].
        train_labels: integer array [train].
        test_features: float array [test, dim].
        test_labels: integer array [test].
        epochs: passes over the training features.
        batch_size: features a step.
        learning_rate: at the start; decays to zero.
        seed: integer seed of order and initialisation.

    Returns:
        Dict of `top1` and `top5`, in per cent.
    """
    mean, std = train_features.mean(0), train_features.std(0) + 1e-6
    train_features = ((train_features - mean) / std).astype(np.float32)
    test_features = ((test_features - mean) / std).astype(np.float32)
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    count, dim = train_features.shape
    batch_size = min(batch_size, count)
    steps = epochs * (count // batch_size)
    head = keras.Sequential(
        [keras.Input([dim]), keras.layers.Dense(classes, kernel_initializer="zeros")]
    )
    head.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(learning_rate, steps)
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
        steps_per_execution=max(count // batch_size, 1),
    )
    features, labels = tf.constant(train_features), tf.constant(train_labels)
    indices = data.shuffled_indices(count, batch_size, seed, 0, steps)
    head.fit(
        indices.map(lambda i: (tf.gather(features, i), tf.gather(labels, i))),
        steps_per_epoch=count // batch_size,
        epochs=epochs,
        shuffle=False,
        verbose=0,
    )
    scores = head.predict(test_features, batch_size=4096, verbose=0)
    return _accuracies(scores, test_labels)


def _accuracies(scores, labels):
    order = np.argsort(-scores, axis=-1, kind="stable")[:, :5]
    hits = order == np.asarray(labels)[:, np.newaxis]
    return {
        "top1": float(100 * hits[:, 0].mean()),
        "top5": float(100 * hits.any(axis=-1).mean()),
    }


def untrained(encoder):
    """The same network with fresh weights; preprocessing constants stay."""
    return keras.models.clone_model(encoder)


def evaluate(encoder, dataset, protocols=("knn", "linear"), progress=print):
    """Judges an encoder, beside the same encoder untrained.

    Args:
        encoder: `keras.Model` from images in 0-255 to features [batch, dim].
        dataset: labelled `data.Dataset`.
        protocols: any of `knn` and `linear`.
        progress: called with a line of text now and then.

    Returns:
        Dict from protocol to `top1`, `top5`, `untrained_top1` and `untrained_top5`,
        in per cent.

    Raises:
        UsageError: if the data set has no labels or a protocol is unknown.
    """
    judges = {"knn": knn, "linear": linear_probe}
    for protocol in protocols:
        if protocol not in judges:
            raise UsageError(f"Unknown protocol '{protocol}'. {near(protocol, judges)}")
    if not dataset.labelled:
        raise UsageError(f"{dataset.name} has no labels to evaluate with.")
    results = {protocol: {} for protocol in protocols}
    for prefix, model in (("", encoder), ("untrained_", untrained(encoder))):
        which = "untrained" if prefix else "trained"
        start = time.perf_counter()
        features = [*extract(model, dataset.train), *extract(model, dataset.test)]
        progress(f"features of the {which} encoder: {_seconds_since(start)}")
        for protocol in protocols:
            start = time.perf_counter()
            accuracy = judges[protocol](*features)
            progress(f"{protocol} of the {which} encoder: {_seconds_since(start)}")
            for name, value in accuracy.items():
                results[protocol][prefix + name] = round(value, 2)
    return results


def _seconds_since(start):
    return f"{time.perf_counter() - start:.1f} s"


def table(results):
    """The results of `evaluate` as lines of text."""
    lines = [f"{'':8}{'top-1':>8}{'untrained':>11}{'top-5':>8}{'untrained':>11}"]
    for protocol, values in results.items():
        columns = ("top1", "untrained_top1", "top5", "untrained_top5")
        numbers = [values[column] for column in columns]
        lines.append(
            f"{protocol:8}"
            + "".join(f"{n:{w}.2f}" for n, w in zip(numbers, (8, 11, 8, 11)))
        )
    return "\n".join(lines)
