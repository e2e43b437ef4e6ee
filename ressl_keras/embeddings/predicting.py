"""Classes of many images, as rows of a table."""

import csv

import numpy as np

from ressl_keras.embeddings.embedding import embed
from ressl_keras.encoders.encoder import described_in, load_encoder
from ressl_keras.errors import UsageError
from ressl_keras.files import writing


def load_classifier(path):
    """Reads a classifier and the names of its classes.

    Raises:
        UsageError: if it is none that an evaluation kept.
    """
    classifier = load_encoder(path)
    names = described_in(path).get("class_names")
    if not isinstance(names, list) or len(names) != classifier.output_shape[-1]:
        raise UsageError(
            f"{path} does not name its classes; `ressl-evaluate --save_classifier` "
            "writes one that does."
        )
    return classifier, list(map(str, names))


def predict(classifier, class_names, dataset, resources, top=1):
    """The likeliest classes of all images of a data set.

    Args:
        classifier: result of `load_classifier`, and so the names.
        class_names: list of strings.
        dataset: `Dataset`, with labels or without.
        resources: `evaluation.features.Resources`.
        top: classes of each image.

    Yields:
        Tuples of file, set, label or None, and a list of (class, probability).
    """
    for table in embed(classifier, dataset, resources):
        if table.embeddings is None:  # a worker that is not the chief
            continue
        for row, probabilities in enumerate(table.embeddings):
            order = np.argsort(-probabilities, kind="stable")[:top]
            likely = [(class_names[i], float(probabilities[i])) for i in order]
            yield table.files[row], table.sets[row], table.labels[row], likely


def write(path, rows, top=1):
    """Writes predictions as a CSV file.

    Args:
        path: file to write.
        rows: result of `predict`.
        top: classes of each image.

    Returns:
        Number of images, of those whose label is the likeliest class, and of those
        with a label.
    """
    numbers = ["" if i == 1 else f"_{i}" for i in range(1, top + 1)]
    names = [f"{name}{i}" for i in numbers for name in ("class", "probability")]
    count = right = labelled = 0
    with writing(path, newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "set", "label", *names])
        for name, which, label, likely in rows:
            values = [v for klass, p in likely for v in (klass, f"{p:.4f}")]
            writer.writerow([name, which, label or "", *values])
            count += 1
            labelled += label is not None
            right += label is not None and label == likely[0][0]
    return count, right, labelled
