"""A report: one self-contained page of HTML on a run or an encoder."""

import datetime
import os
import traceback

import jinja2
import tensorflow as tf
from PIL import Image

from ressl_keras.config import Config
from ressl_keras.encoders.encoder import describe, is_frozen
from ressl_keras.errors import disk_error
from ressl_keras.evaluation import figures, report_images
from ressl_keras.evaluation.page import clean, folded, inline
from ressl_keras.run_folder import RunFolder, read_json, replacing

_TEMPLATE = "report.html"

# Title, unit, columns of metrics.csv, and how to read them.
_PANELS = (
    ("Loss", "nats", ["loss"], "It also falls in a collapse; see the spread."),
    ("kNN accuracy", "%", ["knn_top1"], "On a part of the images, during training."),
    (
        "Entropy of the relations",
        "nats",
        ["teacher_entropy", "student_entropy"],
        "Near zero: one-hot. Near the log of the queue's size: uniform.",
    ),
    (
        "Agreement",
        "share",
        ["agreement"],
        "How often teacher and student name the same nearest image of the queue.",
    ),
    (
        "Spread of the embeddings",
        "",
        ["embedding_std"],
        "Standard deviation; the dashed line is the maximum. Near zero: collapse.",
    ),
    (
        "Effective rank",
        "",
        ["effective_rank"],
        "Directions that the embeddings use. Near one: collapse.",
    ),
    ("Age of the queue", "steps", ["queue_age"], "Of its oldest embeddings."),
    ("Learning rate", "", ["learning_rate"], ""),
    ("Speed", "images/s", ["images_per_second"], ""),
    ("Waiting for data", "share", ["waiting"], "Near zero is good."),
)

_PROTOCOLS = {
    "knn": "nearest neighbours",
    "linear": "linear classifier",
    "finetune": "fine-tuned",
}


def write(
    path,
    *,
    title=None,
    run=None,
    encoder=None,
    dataset=None,
    results=None,
    predictions=None,
    command=None,
):
    """Writes a report of whatever is known; sections without data are left out.

    Args:
        path: HTML file to write.
        title: by default the name of the run's folder.
        run: work directory of the training, with its `encoder.json`, `flags.txt`,
            `metrics.csv` and `views.png`; or None.
        encoder: `keras.Model` from images in 0-255 to features [batch, dim], for
            neighbours and map; or None.
        dataset: `Dataset` to show the encoder with; with labels or without.
        results: what `protocols.evaluate` returned, or None.
        predictions: the `Predictions` it filled in. Its features are not extracted
            again, and only it has per-class accuracies.
        command: the command that repeats it, a string.

    Returns:
        The path.
    """
    folder = RunFolder(run) if run else None
    description = read_json(folder.description) if run else {}
    config = folder.read_config(Config) if run and folder.is_run() else None
    sections = {
        "title": clean(title or os.path.basename(os.path.abspath(run or path))),
        "written": f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
        "facts": _facts(description, config, encoder, dataset),
        "results": _results(results),
        "curves": _curves(folder.read_metrics(), config) if run else [],
        "views": _views(folder) if run else None,
        "command": command and clean(folded(command)),
        "flags": [clean(line) for line in folder.flag_lines()] if run else [],
        "versions": _versions(description, encoder),
    }
    if encoder is not None and dataset is not None:
        sections |= report_images.look(encoder, dataset, predictions)
    if predictions is not None and predictions.knn_classes is not None:
        sections["classes"] = report_images.classes(predictions, dataset.class_names)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ressl_keras.evaluation"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(_TEMPLATE).render(sections)
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(page)
    return path


def try_to_write(path, log=print, **arguments):
    """Writes a report, or says why there is none and returns.

    Args:
        path: as in `write`, and so the rest.
        log: called with a line of text.
        **arguments: further arguments of `write`.
    """
    try:
        log(f"The report is {write(path, **arguments)}.")
    except Exception as error:
        found = disk_error(error)
        if found is None:
            traceback.print_exc()
        why = f": {path}: {found.strerror}." if found else ", see above."
        log(f"The report could not be written{why} All other files are complete.")


def _facts(description, config, encoder, dataset):
    """Facts of the run: a dict of words and values."""
    facts = {}
    if description:
        facts["pretraining data"] = description.get("dataset")
        facts["method"] = description.get("method")
        facts["backbone"] = description.get("backbone")
        facts["steps"] = description.get("steps")
        facts["batch size"] = description.get("batch_size")
    if config:
        for name in ("epochs", "seed", "precision"):
            facts[name] = getattr(config, name)
    if encoder is not None:
        if not is_frozen(encoder):
            facts["parameters"] = f"{encoder.count_params():,}"
        height, width = encoder.input_shape[1:3]
        facts["input"] = f"{height} by {width} pixels" if height else "any size"
        facts["features"] = encoder.output_shape[-1]
    if dataset is not None:
        facts["evaluation data"] = dataset.name
        facts["images"] = f"{len(dataset.pretrain):,} to learn from"
        if dataset.labelled:
            count = f", {len(dataset.test):,} to test with"
            facts["images"] += f"{count}, {len(dataset.class_names)} classes"
    facts["devices"] = _devices()
    return {name: clean(value) for name, value in facts.items() if value is not None}


def _devices():
    """The machine that the report is written on, in words."""
    gpus = tf.config.list_physical_devices("GPU")
    names = [
        tf.config.experimental.get_device_details(gpu).get("device_name", "GPU")
        for gpu in gpus
    ]
    return ", ".join(names) or f"CPU, {os.cpu_count()} cores"


def _versions(description, encoder):
    """Of the training where that is known, else of the moment."""
    if not description and encoder is not None:
        description = describe(encoder, {})
    versions = dict(description.get("versions", {}))
    if "git_commit" in description:
        versions["commit"] = description["git_commit"]
    return versions


def _results(results):
    """Rows of the table of accuracies, in per cent with two digits."""
    rows = []
    for protocol, name in _PROTOCOLS.items():
        values = (results or {}).get(protocol, {})
        if "top1" not in values:
            continue
        row = {key: f"{values[key]:.2f}" for key in values if "top" in key}
        if "untrained_top1" in values:
            row["gain"] = f"{values['top1'] - values['untrained_top1']:+.2f}"
        if "label_fraction" in values:
            name += f", {100 * values['label_fraction']:g} % of the labels"
        rows.append({"protocol": protocol, "name": name, **row})
    return rows


def _curves(rows, config):
    """The columns of the metrics table as figures in groups."""
    columns = {}
    for row in rows:
        for name, value in row.items():
            if value and name not in ("epoch", "step"):
                points = columns.setdefault(name, [])
                points.append((int(row["step"]), float(value)))
    known = {name for _, _, names, _ in _PANELS for name in names}
    others = [(name, "", [name], "") for name in columns if name not in known]
    limit = config.embedding_dim**-0.5 if config else None
    drawn = []
    for title, unit, names, note in (*_PANELS, *others):
        lines = {name: columns[name] for name in names if name in columns}
        if lines:
            guide = limit if "embedding_std" in lines else None
            name = f"curve{len(drawn)}"
            svg = figures.curves(name, title, lines, unit, guide)
            drawn.append({"title": title, "svg": svg, "note": note})
    return drawn


def _views(folder):
    if not folder.has_views():
        return None
    return inline(Image.open(folder.views))
