"""A report: one self-contained page of HTML on a run or an encoder."""

import datetime
import math
import os
import traceback

from PIL import Image

from ressl_keras.config import Config
from ressl_keras.encoders.encoder import describe, is_frozen
from ressl_keras.errors import disk_error
from ressl_keras.evaluation import curves, page, report_images
from ressl_keras.evaluation.machine import devices
from ressl_keras.evaluation.page import clean, folded, inline
from ressl_keras.evaluation.verdict import Numbers, start_of, verdict
from ressl_keras.evaluation_options import labels_used
from ressl_keras.files import read_json
from ressl_keras.run_folder import RunFolder

_TEMPLATE = "report.html"

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
    initial=None,
    command=None,
):
    """Writes a report of whatever is known; sections without data are left out.

    Args:
        path: HTML file to write.
        title: by default the name of the run's folder.
        run: work directory of the training, with the files of `RunFolder`; or None.
        encoder: `keras.Model` from images in 0-255 to features [batch, dim], for
            neighbours and map; or None.
        dataset: `Dataset` to show the encoder with; with labels or without.
        results: what `protocols.evaluate` returned, or None.
        predictions: the `Predictions` it filled in. Its features are not extracted
            again, and only it has per-class accuracies.
        initial: whether the untrained figures of `results` are of the network that the
            run began with; if not, they are of one with fresh random weights.
        command: the command that repeats it, a string.

    Returns:
        The path.
    """
    folder = RunFolder(run) if run else None
    description = read_json(folder.description) if run else {}
    history = read_json(folder.history) if run else {}
    config = folder.read_config(Config) if run and folder.is_run() else None
    rows = folder.read_metrics() if run else []
    sections = {
        "title": clean(title or os.path.basename(os.path.abspath(run or path))),
        "written": f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
        "facts": _facts(description, config, history, encoder, dataset),
        "results": rows_of(results),
        "start": start_of(config),
        "compared": _compared(initial, config),
        "judged_on": _judged_on(results, dataset),
        "curves": curves.draw(rows, config, history),
        "views": _views(folder) if run else None,
        "files": page.files_of(folder, path) if run else [],
        "command": command and clean(folded(command)),
        "flags": [clean(line) for line in folder.flag_lines()] if run else [],
        "versions": _versions(description, encoder),
    }
    if encoder is not None and dataset is not None:
        sections |= report_images.look(encoder, dataset, predictions)
    if predictions is not None and predictions.knn_classes is not None:
        sections["classes"] = report_images.classes(predictions, dataset.class_names)
    numbers = _numbers(sections, results, rows, config, history, dataset)
    sections["findings"], sections["tips"] = verdict(numbers)
    page.write(path, _TEMPLATE, sections)
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


def _numbers(sections, results, rows, config, history, dataset):
    """What the verdict is computed from."""
    columns = curves.columns_of(rows)
    known = {
        "accuracies": results or {},
        "knn": columns.get("knn_top1", []),
        "knn_images": (history.get("knn_images") or [None, None])[1],
        "waiting": curves.last_of(columns, "waiting"),
        "steps": int(rows[-1]["step"]) if rows else None,
        "start": start_of(config),
        **_judged(results, dataset),
    }
    if dataset is not None:
        known["images"] = len(dataset.pretrain)
    if sections.get("broken"):
        known |= {"rank": math.nan, "spread": math.nan}
    elif sections.get("health"):
        health = sections["health"]
        known |= {name: health[name] for name in ("rank", "most_rank", "spread")}
    elif config and "effective_rank" in columns and "embedding_std" in columns:
        std = curves.last_of(columns, "embedding_std")
        known["rank"] = curves.last_of(columns, "effective_rank")
        known["most_rank"] = config.embedding_dim
        known["spread"] = None if std is None else std * config.embedding_dim**0.5
    if config:
        queue = config.references == "queue"
        known["queue_size"] = config.queue_size if queue else None
        if config.method == "ressl" and not config.objective:
            known["teacher_entropy"] = curves.last_of(columns, "teacher_entropy")
            known["references"] = config.queue_size if queue else config.batch_size - 1
    return Numbers(**known)


def _compared(initial, config):
    """What the untrained figures are of, in words."""
    if not initial:
        return "the same network with fresh random weights"
    words = "the network that the run began with"
    return f"{words} (from --init)" if config and config.init else words


def _judged(results, dataset):
    """Numbers of the images and classes that accuracies are of, a dict.

    Of the results, which may be of another data set; else of the data set.
    """
    names = "test_images", "classes"
    for values in (results or {}).values():
        if "test_images" in values:
            return {name: values[name] for name in names}
    if dataset is None or not dataset.labelled:
        return {}
    return dict(zip(names, (len(dataset.test), len(dataset.class_names))))


def _judged_on(results, dataset):
    """The images that accuracies are of, in words."""
    count = _judged(results, dataset).get("test_images")
    return "images" if count is None else f"{count:,} images"


def _facts(description, config, history, encoder, dataset):
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
    facts |= facts_of_time(history)
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
    facts["report written on"] = devices()
    return {name: clean(value) for name, value in facts.items() if value is not None}


def facts_of_time(history):
    """When, on what and how long a run trained: a dict of words and values."""
    parts = [part for part in history.get("parts", []) if part.get("ended")]
    if not parts:
        return {}
    seconds = sum(part["seconds"] for part in parts)
    steps = sum(part["last_step"] - part["first_step"] for part in parts)
    last, total = parts[-1], history.get("total_steps")
    facts = {
        "started": _moment(parts[0]["started"]),
        "finished": _moment(last["ended"]),
        "training time": page.duration(seconds),
        "trained on": ", then ".join(dict.fromkeys(part["devices"] for part in parts)),
    }
    if total and last["last_step"] < total:
        facts[f"stopped at step {last['last_step']:,} of {total:,}"] = facts.pop(
            "finished"
        )
    if len(parts) > 1:
        facts["training time"] += f" in {len(parts)} parts"
    if steps and history.get("steps_per_epoch"):
        epoch = seconds * history["steps_per_epoch"] / steps
        facts["time of an epoch"] = page.duration(epoch)
    return facts


def _moment(text):
    """A moment of the history file, to the minute."""
    moment = datetime.datetime.fromisoformat(text)
    return f"{moment.astimezone(datetime.UTC):%Y-%m-%d %H:%M} UTC"


def _versions(description, encoder):
    """Of the training where that is known, else of the moment."""
    if not description and encoder is not None:
        description = describe(encoder, {})
    versions = dict(description.get("versions", {}))
    if "git_commit" in description:
        versions["commit"] = description["git_commit"]
    return versions


def rows_of(results):
    """Rows of the table of accuracies, in per cent with two digits."""
    rows = []
    for protocol, name in _PROTOCOLS.items():
        values = (results or {}).get(protocol, {})
        if "top1" not in values:
            continue
        row = {key: f"{values[key]:.2f}" for key in values if "top" in key}
        if "untrained_top1" in values:
            row["gain"] = f"{values['top1'] - values['untrained_top1']:+.2f}"
        name = clean(", ".join(filter(None, (name, labels_used(values)))))
        rows.append({"protocol": protocol, "name": name, **row})
    return rows


def _views(folder):
    if not folder.has_views():
        return None
    return inline(Image.open(folder.views))
