"""The classifier that an evaluation has learned, kept for use."""

import dataclasses

import numpy as np

from ressl_keras.data.decoding import Decoder
from ressl_keras.encoders.classifier import build_classifier, save_classifier
from ressl_keras.encoders.encoder import input_size, is_frozen
from ressl_keras.errors import UsageError
from ressl_keras.run_folder import RunFolder


@dataclasses.dataclass
class KeptClassifier:
    """Writes a classifier when it is called with what was learned.

    Attributes:
        folder: `RunFolder` to write into.
        encoder: result of `load_encoder`.
        dataset: labelled `Dataset`.
        log: called with a line of text.
        per_class: accuracy of each class on the test images in per cent, a dict from
            its name, once the classifier is written.

    Raises:
        UsageError: if the encoder is a SavedModel.
    """

    folder: RunFolder
    encoder: object
    dataset: object
    log: object = print
    per_class: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if is_frozen(self.encoder):
            raise UsageError(
                "A SavedModel cannot become part of a classifier; give the .keras file."
            )

    def __call__(self, kernel, bias, scores, labels, network=None):
        """Writes the classifier.

        Args:
            kernel: float array [dim, classes].
            bias: float array [classes].
            scores: float array [test, classes] of the test images.
            labels: integer array [test] of theirs.
            network: fine-tuned copy of the encoder; None takes the encoder itself.
        """
        names = self.dataset.class_names[: len(bias)]
        self.per_class = accuracy_per_class(scores, labels, names)
        channels = self.encoder.input_shape[-1]
        decoder = self.dataset.decoder or Decoder(channels=channels)
        save_classifier(
            build_classifier(network or self.encoder, kernel, bias),
            self.folder,
            names,
            input_size(self.encoder, self.dataset.train),
            {
                "dataset": self.dataset.name,
                "exif_orientation": decoder.exif_orientation,
                "value_range": decoder.value_range,
                "accuracy_per_class": self.per_class,
            },
            decoder,
            log=self.log,
        )


def accuracy_per_class(scores, labels, class_names):
    """Share of the images of each class that are recognised, in per cent.

    Args:
        scores: float array [count, classes].
        labels: integer array [count].
        class_names: list of strings.

    Returns:
        Dict from the name of each class that has images.
    """
    right = np.argmax(scores, axis=-1) == labels
    return {
        class_names[label]: round(100 * float(right[labels == label].mean()), 2)
        for label in np.unique(labels)
    }
