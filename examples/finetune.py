"""Fine-tunes an encoder: python -m examples.finetune runs/quickstart/encoder.keras"""

import sys

import keras

from ressl_keras import load_dataset  # for the images only; any arrays will do

dataset = load_dataset("shapes")
encoder = keras.models.load_model(sys.argv[1])
classifier = keras.Sequential(
    [encoder, keras.layers.Dense(len(dataset.class_names), name="head")]
)
epochs = int(sys.argv[2]) if len(sys.argv) > 2 else 3
steps = epochs * len(dataset.train) // 64
classifier.compile(
    keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.05, steps), 0.9),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
train, test = ((s.images.numpy(), s.labels) for s in (dataset.train, dataset.test))
classifier.fit(*train, batch_size=64, epochs=epochs, validation_data=test, verbose=2)
classifier.save("classifier.keras")
