"""The model card beside an exported encoder."""

import os
import textwrap

from ressl_keras.errors import printable
from ressl_keras.evaluation_options import labels_used
from ressl_keras.files import read_json, writing

# The first line of a card, by which one is told from another README.
_TITLE = "# Image encoder"
_PROTOCOLS = {
    "knn": "nearest neighbours (weighted, 200)",
    "linear": "linear classifier on frozen features",
    "finetune": "fine-tuned",
}


def write_card(folder, log=print):
    """Writes `README.md` from `encoder.json` and, where there is one, the evaluation.

    A file of this name that is no card is left as it is.

    Args:
        folder: `RunFolder` that an encoder was exported to.
        log: called with a line of text.
    """
    if os.path.exists(folder.card):
        with open(folder.card, encoding="utf-8", errors="replace") as file:
            if file.readline().strip() != _TITLE:
                log(f"{folder.card} is no model card and is left as it is.")
                return
    described = read_json(folder.description)
    if not described:
        return
    text = _text(described, read_json(folder.evaluation), _files(folder))
    with writing(folder.card) as file:
        file.write(text)


def _files(folder):
    """Names of the exported files that are there, and what each is."""
    files = {
        folder.encoder: "a Keras model of core layers",
        folder.export: "SavedModels for TensorFlow Serving, a version in each folder",
        folder.encoder_in("onnx"): "ONNX",
        folder.encoder_in("tflite"): "LiteRT",
    }
    return {
        os.path.basename(path): what
        for path, what in files.items()
        if os.path.exists(path)
    }


def _text(described, results, files):
    size, dim = described["input_size"][0], described["embedding_size"]
    by_itself = described.get("method") is not None
    made_from = [
        ("method", described.get("method")),
        ("backbone", described.get("backbone")),
        ("network", described.get("network")),
        ("trained on", described.get("dataset")),
        ("training steps", described.get("steps")),
        ("batch size", described.get("batch_size")),
        ("source", described.get("source")),
        ("images", f"{size} x {size} pixels, values 0-255, normalised inside"),
        ("features", f"{dim} numbers" + _length(described)),
    ]
    versions = described.get("versions", {})
    made_from.append(("made with", ", ".join(f"{k} {v}" for k, v in versions.items())))
    rows = [f"| {name} | {value} |" for name, value in made_from if value is not None]
    listed = [f"- `{name}`: {what}." for name, what in files.items()]
    return "\n\n".join(
        [
            _TITLE,
            "It turns an image into a vector of features. Similar images have similar "
            "vectors." + (" It was trained without labels." if by_itself else ""),
            "\n".join(["| | |", "| --- | --- |", *rows]),
            "## Accuracy\n\n" + _accuracy(described, results),
            "## Limits\n\n" + _limits(size),
            "## Files\n\n" + "\n".join(listed),
            "## Loading\n\n" + _loading(size, described.get("channels", 3), dim),
        ]
    )


def _length(described):
    return ", scaled to unit length" if described.get("normalized") else ""


def _accuracy(described, results):
    """Rows of what was measured, each beside the untrained network."""
    rows = []
    for protocol, values in results.items():
        # Of earlier versions nothing says which encoder they are of.
        own = values.get("encoder") in (None, described.get("encoder"))
        if "top1" not in values or not own:
            continue
        name = _PROTOCOLS.get(protocol, protocol)
        name = ", ".join(filter(None, (name, printable(labels_used(values)))))
        judged_on = values.get("dataset", described.get("dataset"))
        if judged_on != described.get("dataset"):
            name += f", on {printable(judged_on)}"
        untrained = values.get("untrained_top1")
        beside = "-" if untrained is None else f"{untrained:.2f}"
        rows.append(f"| {name} | {values['top1']:.2f} | {beside} |")
    if rows:
        head = ["| top-1, per cent | this encoder | untrained |", "| --- | --- | --- |"]
        return "\n".join([*head, *rows])
    monitored = described.get("knn_top1")
    if monitored is not None:
        return (
            f"Nearest neighbours on a part of the labelled images: "
            f"{float(monitored):.2f} % at the end of the training. Nothing else was "
            "measured."
        )
    return "Not measured. `ressl-evaluate` measures it on labelled images."


def _limits(size):
    return textwrap.dedent(
        f"""\
        - It knows what its training images show; on others, measure it first.
        - It was trained on images of {size} pixels. Objects that are larger or smaller
          than there are described less well.
        - What its training images lack or show one-sidedly, its features lack or show
          one-sidedly. It says nothing about how sure it is.
        - The rights to the training images may limit the use of the encoder."""
    )


def _loading(size, channels, dim):
    return textwrap.dedent(
        f"""\
        ```python
        import keras
        import numpy as np

        encoder = keras.models.load_model("encoder.keras")
        images = np.zeros([8, {size}, {size}, {channels}], "uint8")  # 0-255
        features = encoder.predict(images)  # [8, {dim}]
        ```

        The SavedModel's signature `serve_bytes` takes image files of any size.
        """
    )
