"""A report: one page of HTML, without network or scripts, on a run or an encoder."""

import base64
import dataclasses
import datetime
import json
import os
import shlex
import traceback

import jinja2
import numpy as np
import tensorflow as tf
from PIL import Image
from sklearn.manifold import TSNE
from sklearn.metrics import confusion_matrix
from threadpoolctl import threadpool_limits

from ressl_keras import data, encoders, figures, neighbours, pictures, signals
from ressl_keras.callbacks import METRICS_FILE, MetricsTable
from ressl_keras.labelled import Selection

REPORT_FILE = "report.html"

# Images that the map and, without labels, all else is drawn from.
_MOST = 2000
_QUERIES, _NEIGHBOURS = 8, 5

# Title, unit, columns of metrics.csv, and how to read them.
_PANELS = (
    ("Loss", "nats", ["loss"], "A collapse makes it fall, too: look at the spread."),
    ("kNN accuracy", "%", ["knn_top1"], "Of some images, while the run learned."),
    (
        "Entropy of the relations",
        "nats",
        ["teacher_entropy", "student_entropy"],
        "Near zero a relation names one image, near the log of the queue's size all.",
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
        "Standard deviation; the dashed line is as far as it can go. Near zero: "
        "collapse.",
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
    evidence=None,
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
        dataset: `data.Dataset` to look at the encoder with; with labels or without.
        results: what `evaluation.evaluate` returned, or None.
        evidence: the `evaluation.Evidence` it filled in. Features in it are not
            extracted again, and it alone brings per-class accuracies.
        command: the command that repeats it, a string.

    Returns:
        The path.
    """
    description = _read_json(run, encoders.DESCRIPTION_FILE)
    flags = _read_lines(run, "flags.txt")
    sections = {
        "title": _clean(title or os.path.basename(os.path.abspath(run or path))),
        "written": f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
        "facts": _facts(description, flags, encoder, dataset),
        "results": _results(results),
        "curves": _curves(run, flags),
        "views": _views(run),
        "command": command and _clean(_folded(command)),
        "flags": [_clean(line) for line in flags],
        "versions": _versions(description, encoder),
    }
    if encoder is not None and dataset is not None:
        sections |= _look(encoder, dataset, evidence)
    if evidence is not None and evidence.knn_classes is not None:
        sections["classes"] = _classes(evidence, dataset.class_names)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ressl_keras"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(REPORT_FILE).render(sections)
    aside = f"{path}.writing"
    with open(aside, "w", encoding="utf-8") as file:
        file.write(page)
    os.replace(aside, path)
    return path


def try_to_write(path, progress=print, **arguments):
    """Writes a report or says why there is none: what it reports on is not lost.

    Args:
        path: as in `write`, and so the rest.
        progress: called with a line of text.
        **arguments: further arguments of `write`.
    """
    try:
        progress(f"The report is {write(path, **arguments)}.")
    except Exception:
        traceback.print_exc()
        progress("There is no report, for the reason above; all else is written.")


def _clean(text):
    """Text as any browser takes it, whatever bytes a file's name is made of."""
    text = str(text).encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def _folded(command):
    """A command with a line for every flag, to be copied as it is."""
    words = map(shlex.quote, shlex.split(command))
    return " ".join(
        f"\\\n    {word}" if word.lstrip("'").startswith("--") else word
        for word in words
    )


def _named(class_name):
    """A class name as there is room for it."""
    return figures.shortened(_clean(class_name), 28)


def _read_json(folder, name):
    path = os.path.join(folder or "", name)
    if not folder or not os.path.exists(path):
        return {}
    with open(path) as file:
        return json.load(file)


def _read_lines(folder, name):
    path = os.path.join(folder or "", name)
    if not folder or not os.path.exists(path):
        return []
    with open(path, errors="replace") as file:
        return file.read().splitlines()


def _flag(flags, name):
    """A flag's value in the lines of flags.txt, or None."""
    found = [line for line in flags if line.startswith(f"--{name}=")]
    return found[0].split("=", 1)[1] if found else None


def _facts(description, flags, encoder, dataset):
    """What was run: a dict of words and values."""
    facts = {}
    if description:
        facts["learned from"] = description.get("dataset")
        facts["method"] = description.get("method")
        facts["backbone"] = description.get("backbone")
        facts["steps"] = description.get("steps")
        facts["images a step"] = description.get("batch_size")
        for name in ("epochs", "seed", "precision"):
            facts[name] = _flag(flags, name)
    if encoder is not None:
        if not encoders.is_frozen(encoder):
            facts["parameters"] = f"{encoder.count_params():,}"
        height, width = encoder.input_shape[1:3]
        facts["input"] = f"{height} by {width} pixels" if height else "any size"
        facts["features"] = encoder.output_shape[-1]
    if dataset is not None:
        facts["looked at with"] = dataset.name
        facts["images"] = f"{len(dataset.pretrain):,} to learn from"
        if dataset.labelled:
            count = f", {len(dataset.test):,} to test with"
            facts["images"] += f"{count}, {len(dataset.class_names)} classes"
    facts["devices"] = _devices()
    return {name: _clean(value) for name, value in facts.items() if value is not None}


def _devices():
    """The machine that the report was written on, in words."""
    gpus = tf.config.list_physical_devices("GPU")
    names = [
        tf.config.experimental.get_device_details(gpu).get("device_name", "GPU")
        for gpu in gpus
    ]
    return ", ".join(names) or f"CPU, {os.cpu_count()} cores"


def _versions(description, encoder):
    """Of the training where that is known, else of the moment."""
    if not description and encoder is not None:
        description = encoders.describe(encoder, {})
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


def _curves(run, flags):
    """The columns of metrics.csv as figures in groups."""
    rows = MetricsTable.read(os.path.join(run, METRICS_FILE)) if run else []
    columns = {}
    for row in rows:
        for name, value in row.items():
            if value and name not in ("epoch", "step"):
                points = columns.setdefault(name, [])
                points.append((int(row["step"]), float(value)))
    known = {name for _, _, names, _ in _PANELS for name in names}
    others = [(name, "", [name], "") for name in columns if name not in known]
    dim = _flag(flags, "embedding_dim")
    drawn = []
    for title, unit, names, note in (*_PANELS, *others):
        lines = {name: columns[name] for name in names if name in columns}
        if lines:
            guide = int(dim) ** -0.5 if dim and "embedding_std" in lines else None
            name = f"curve{len(drawn)}"
            svg = figures.curves(name, title, lines, unit, guide)
            drawn.append({"title": title, "svg": svg, "note": note})
    return drawn


def _views(run):
    path = os.path.join(run or "", pictures.VIEWS_FILE)
    if not run or not os.path.exists(path):
        return None
    return _inline(Image.open(path))


def _inline(picture):
    """A picture as an address that holds it, with its size."""
    kind = "WEBP" if max(picture.size) > 64 else "PNG"
    content = base64.b64encode(pictures.encoded(picture, kind, quality=85)).decode()
    return {
        "src": f"data:image/{kind.lower()};base64,{content}",
        "width": picture.width,
        "height": picture.height,
    }


@dataclasses.dataclass
class _Embedded:
    """Images, what an encoder makes of them, and the side it takes them at."""

    images: object
    features: np.ndarray
    side: int

    @property
    def labels(self):
        return self.images.labels

    def take(self, places):
        chosen = Selection(self.images, places)
        return _Embedded(chosen, self.features[places], self.side)

    def squares(self, places):
        return pictures.squares(self.images, places, self.side)


def _look(encoder, dataset, evidence):
    """Neighbours, map and spread of the features."""
    if evidence is not None and evidence.test_features is not None:
        side = encoders.input_side(encoder, evidence.test)
        asked = _Embedded(evidence.test, evidence.test_features, side)
        bank = _Embedded(evidence.train, evidence.train_features, side)
    else:
        images = dataset.test if dataset.labelled else dataset.pretrain
        images = _sample(images, encoder)
        side = encoders.input_side(encoder, images)
        features = encoders.encode(images, encoder, verbose=0)
        asked = bank = _Embedded(images, features, side)
    some = asked.take(data.evaluation_indices(asked.images, _MOST))
    class_names = [_named(name) for name in dataset.class_names]
    if not np.isfinite(some.features).all():
        return {"broken": True}
    return {
        "health": _health(some.features),
        "neighbours": _neighbours(asked, bank, class_names)
        if len(bank.images) > 1
        else None,
        "map": _map(some, class_names) if len(some.images) > 3 else None,
    }


def _sample(images, encoder):
    """Some of a set's images, that can be read at any place."""
    if not isinstance(images, data.StreamedImages):
        return Selection(images, data.evaluation_indices(images, _MOST))
    side = encoder.input_shape[1] or 224
    # Of a set too large for memory: the first of an epoch's order.
    read = images.epoch(0, 0).take(_MOST // 4).map(data.decode)
    squares = read.map(lambda image: data.central_square(image, side))
    return data.ArrayImages(
        np.round(list(squares.as_numpy_iterator())).astype(np.uint8)
    )


def _health(features):
    """How far features have collapsed, which needs no labels."""
    unit = _unit(features)
    return {
        "count": len(unit),
        "rank": signals.effective_rank(unit),
        "most_rank": min(unit.shape),
        "spread": signals.spread(unit),
    }


def _unit(features):
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(lengths, 1e-12)


def _neighbours(asked, bank, class_names):
    """Rows of a query and the images nearest to it."""
    places = neighbours.spread(asked.images, _QUERIES)
    found, similarities = neighbours.nearest(
        asked.features[places], bank.features, _NEIGHBOURS + 1
    )
    rows = []
    queries = asked.squares(places)
    for place, query, near, similar in zip(places, queries, found, similarities):
        # A query of the bank itself finds itself first.
        own = (bank is asked) & (near == place)
        near, similar = near[~own][:_NEIGHBOURS], similar[~own][:_NEIGHBOURS]
        tiles = []
        for other, image, value in zip(near, bank.squares(near), similar):
            tile = {**_tile(image), "similarity": f"{value:.2f}"}
            if asked.labels is not None and bank.labels is not None:
                tile["name"] = class_names[bank.labels[other]]
                tile["same"] = bool(bank.labels[other] == asked.labels[place])
            tiles.append(tile)
        query = _tile(query)
        if asked.labels is not None:
            query["name"] = class_names[asked.labels[place]]
        rows.append({"query": query, "tiles": tiles})
    return rows


def _tile(image):
    """A square image of at most 96 pixels, inline."""
    picture = Image.fromarray(image)
    return _inline(picture if len(image) <= 96 else pictures.fitted(image, 96))


def _map(some, class_names):
    """The features in two dimensions, as points of classes and as thumbnails."""
    points = project(some.features)
    drawn = {"count": len(points)}
    if some.labels is not None and len(class_names) <= figures.MOST_CLASSES:
        svg = figures.scatter("map", points, some.labels)
        drawn["svg"] = svg
        drawn["key"] = [
            {"colour": colour, "sign": sign, "name": class_names[label]}
            for label in np.unique(some.labels)
            for colour, _, sign in [figures.key(label)]
        ]
    side, thumbnail = 960, 48
    shown = pictures.places_apart(points, thumbnail / (side - thumbnail))
    picture = pictures.scattered(some.squares(shown), points[shown], side, thumbnail)
    return {**drawn, "shown": len(shown), "picture": _inline(picture)}


def project(features, steps=500):
    """A map of features in which near ones stay near, by t-SNE.

    Args:
        features: float array [count, dim], at least four.
        steps: iterations.

    Returns:
        float array [count, 2] in 0-1, the same for the same features.
    """
    unit = _unit(features)
    # Collapsed features have no directions to begin with, and scikit-learn divides by
    # their variance; this is far below what a difference in features means.
    unit = unit + np.random.default_rng(0).normal(0, 1e-6, unit.shape)
    tsne = TSNE(
        perplexity=min(30, (len(unit) - 1) / 3),
        init="pca" if min(unit.shape) > 1 else "random",
        max_iter=steps,
        random_state=0,
    )
    # Its threads wait for each other in busy loops, which takes minutes on processors
    # that have other work; alone one thread needs seconds.
    with threadpool_limits(1):
        points = tsne.fit_transform(unit)
    points -= points.min(axis=0)
    return points / np.maximum(points.max(axis=0), 1e-12)


def _classes(evidence, class_names):
    """Confusion matrix and accuracies of the classes, of the neighbours' classifier."""
    names = [_named(name) for name in class_names]
    counts = confusion_matrix(
        evidence.test.labels, evidence.knn_classes, labels=range(len(names))
    )
    rows = []
    for label, own in enumerate(counts):
        if not own.sum():
            continue
        wrong = np.where(np.arange(len(own)) == label, 0, own)
        row = {
            "name": names[label],
            "count": int(own.sum()),
            "accuracy": 100 * own[label] / own.sum(),
        }
        if wrong.any():
            row |= {
                "taken_for": names[wrong.argmax()],
                "times": int(wrong.max()),
            }
        rows.append(row)
    svg = figures.confusion("confusion", counts, names)
    listed = rows
    if len(rows) > 40:
        ranked = sorted(rows, key=lambda row: row["accuracy"])
        listed = ranked[:20] + ranked[-20:]
    return {"svg": svg, "rows": listed, "count": len(rows)}
