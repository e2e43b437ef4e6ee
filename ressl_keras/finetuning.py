"""Fine-tuning: the whole network on labels, from an encoder's weights."""

import keras
import numpy as np

from ressl_keras import encoders, labelled
from ressl_keras.errors import UsageError
from ressl_keras.probes import accuracies


def finetune(
    encoder,
    train,
    test,
    epochs=None,
    batch_size=64,
    learning_rate=0.05,
    seed=0,
    verbose=0,
):
    """Accuracy of a classifier that starts from an encoder's weights.

    A linear head is put on the encoder and all weights are trained on random crops and
    flips: SGD with momentum 0.9 and cosine decay.

    Args:
        encoder: `keras.Model` from images in 0-255 to features [batch, dim]; its own
            weights stay as they are.
        train: labelled images to learn from.
        test: labelled images to be judged on.
        epochs: passes over `train`; None takes 10, or as many as make 1000 steps.
        batch_size: images a step.
        learning_rate: at the start; decays to zero.
        seed: integer seed of head, order, crops and flips.
        verbose: as in `keras.Model.fit`.

    Returns:
        Dict of `top1` and `top5`, in per cent.

    Raises:
        UsageError: if the encoder is a SavedModel, which cannot be trained.
    """
    if encoders.is_frozen(encoder):
        raise UsageError(
            "A SavedModel cannot be fine-tuned: its weights are frozen. Give the "
            ".keras file."
        )
    keras.utils.set_random_seed(seed)
    size = encoders.input_side(encoder, train)
    classes = int(max(train.labels.max(), test.labels.max())) + 1
    batch_size = min(batch_size, len(train))
    steps_per_epoch = len(train) // batch_size
    epochs = epochs or max(10, -(-1000 // steps_per_epoch))
    network = keras.models.clone_model(encoder)
    network.set_weights(encoder.get_weights())
    classifier = keras.Sequential(
        [
            keras.Input([size, size, 3]),
            network,
            keras.layers.Dense(classes, name="head"),
        ]
    )
    classifier.compile(
        keras.optimizers.SGD(
            keras.optimizers.schedules.CosineDecay(
                learning_rate, epochs * steps_per_epoch
            ),
            momentum=0.9,
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    classifier.fit(
        labelled.crops(train, batch_size, epochs, size, seed),
        steps_per_epoch=steps_per_epoch,
        epochs=epochs,
        shuffle=False,  # the batches come in their order
        verbose=verbose,
    )
    scores = np.concatenate(
        [classifier(batch, training=False) for batch in encoders.batches_of(test, size)]
    )
    return accuracies(scores, test.labels)
