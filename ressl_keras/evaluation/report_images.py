"""The sections of a report that show images: neighbours, map, classes."""

import dataclasses
import math

import numpy as np
from PIL import Image
from sklearn.manifold import TSNE
from sklearn.metrics import confusion_matrix
from threadpoolctl import threadpool_limits

from ressl_keras.data.images import Subset, spread_indices, without_labels
from ressl_keras.encoders.encoder import input_size
from ressl_keras.evaluation import collapse, figures, neighbours, pictures
from ressl_keras.evaluation.features import ONE_DEVICE, readable_features
from ressl_keras.evaluation.page import inline, named, named_file

# Images that the signs of collapse and, without labels, everything is drawn from.
_MOST = 2000
_ON_MAP = 1000
_QUERIES, _NEIGHBOURS = 8, 5
_TILE = 128  # side in pixels of the largest picture of a neighbour
# Pixels and bytes of all the map's thumbnails together.
_SPRITE_PIXELS, _SPRITE_BYTES = 2**22, 2**20


@dataclasses.dataclass
class _Embedded:
    """Images, what an encoder makes of them, and the side it takes them at."""

    images: object
    features: np.ndarray
    side: int

    @property
    def labels(self):
        return self.images.labels

    def take(self, indices):
        chosen = Subset(self.images, indices)
        return _Embedded(chosen, self.features[indices], self.side)

    def squares(self, indices):
        return pictures.squares(self.images, indices, self.side)


def look(encoder, dataset, predictions=None):
    """Neighbours, map and spread of an encoder's features.

    Args:
        encoder: `keras.Model` from images in 0-255 to features [batch, dim].
        dataset: `Dataset`, with labels or without.
        predictions: `Predictions` whose features are used, or None.

    Returns:
        Dict of sections of the report.
    """
    # Labels are shown by the names of their classes.
    shown = (lambda images: images) if dataset.class_names else without_labels
    if predictions is not None and predictions.test_features is not None:
        side = input_size(encoder, predictions.test)
        test, train = shown(predictions.test), shown(predictions.train)
        asked = _Embedded(test, predictions.test_features, side)
        bank = _Embedded(train, predictions.train_features, side)
    else:
        images = shown(dataset.test if dataset.labelled else dataset.pretrain)
        images = Subset(images, spread_indices(images, _MOST))
        side = input_size(encoder, images)
        features, images = readable_features(encoder, images, ONE_DEVICE)
        asked = bank = _Embedded(images, features, side)
    some = asked.take(spread_indices(asked.images, _MOST))
    class_names = [named(name) for name in dataset.class_names]
    if not np.isfinite(some.features).all():
        return {"broken": True}
    return {
        "health": _health(some.features),
        "neighbours": _neighbours(asked, bank, class_names)
        if len(bank.images) > 1
        else None,
        "map": _map(some, class_names) if len(some.images) > 3 else None,
    }


def _health(features):
    """Signs of collapse in the features, which need no labels."""
    unit = neighbours.unit_rows(features)
    return {
        "count": len(unit),
        "rank": collapse.effective_rank(unit),
        "most_rank": min(unit.shape),
        "spread": collapse.relative_std(unit),
    }


def _neighbours(asked, bank, class_names):
    """Rows of a query and its nearest images."""
    indices = neighbours.query_indices(asked.images, _QUERIES)
    found, similarities = neighbours.nearest(
        asked.features[indices], bank.features, _NEIGHBOURS + 1
    )
    rows = []
    queries = asked.squares(indices)
    for index, query, near, similar in zip(indices, queries, found, similarities):
        # A query of the bank itself finds itself first.
        own = (bank is asked) & (near == index)
        near, similar = near[~own][:_NEIGHBOURS], similar[~own][:_NEIGHBOURS]
        tiles = []
        for other, image, value in zip(near, bank.squares(near), similar):
            tile = {**_tile(image), "similarity": f"{value:.2f}"}
            tile["file"] = named_file(bank.images, other)
            if asked.labels is not None and bank.labels is not None:
                tile["name"] = class_names[bank.labels[other]]
                tile["same"] = bool(bank.labels[other] == asked.labels[index])
            tiles.append(tile)
        query = {**_tile(query), "file": named_file(asked.images, index)}
        if asked.labels is not None:
            query["name"] = class_names[asked.labels[index]]
        rows.append({"query": query, "tiles": tiles})
    return rows


def _tile(image):
    """A square image of at most 128 pixels, inline."""
    picture = Image.fromarray(image)
    small = len(image) <= _TILE
    return inline(picture if small else pictures.fitted(image, _TILE), 2**14)


def _map(some, class_names):
    """The features in two dimensions: points of classes, thumbnails, and their data.

    The pictures are for readers without scripts; the data is what the page's script
    draws.
    """
    some = some.take(spread_indices(some.images, _ON_MAP))
    points = project(some.features)
    drawn = {"count": len(points), "key": []}
    few = len(class_names) <= figures.MOST_CLASSES
    if some.labels is not None:
        if few:
            drawn["svg"] = figures.scatter("map", points, some.labels)
        for label in map(int, np.unique(some.labels)):
            colour, sign = figures.key(label)[::2] if few else (None, None)
            colour = colour and figures.adapting(colour)
            named_class = {"label": label, "name": class_names[label]}
            drawn["key"].append({**named_class, "colour": colour, "sign": sign})
    squares = some.squares(np.arange(len(points)))
    side, thumbnail = 1200, 72
    # Images of one class stand together in the set; room is given in another order.
    order = np.random.default_rng(0).permutation(len(points))
    shown = order[pictures.indices_apart(points[order], thumbnail / (side - thumbnail))]
    picture = pictures.scattered(squares[shown], points[shown], side, thumbnail)
    drawn |= {"shown": len(shown), "picture": inline(picture)}
    sheet, cell = _sheet(squares)
    drawn["sheet"] = inline(sheet, _SPRITE_BYTES)
    drawn["data"] = {
        "cell": cell,
        "columns": sheet.width // cell,
        # In ten-thousandths, from the left and from the top.
        "x": np.round(1e4 * points[:, 0]).astype(int).tolist(),
        "y": np.round(1e4 * (1 - points[:, 1])).astype(int).tolist(),
        "labels": None if some.labels is None else list(map(int, some.labels)),
        "files": _files(some.images),
        "classes": drawn["key"],
    }
    return drawn


def _files(images):
    """Names of all files, or None where images have none."""
    files = [named_file(images, index) for index in range(len(images))]
    return files if any(files) else None


def _sheet(squares):
    """All thumbnails in one picture, row by row, and the side of each in pixels."""
    count, side = len(squares), squares.shape[1]
    columns = math.ceil(math.sqrt(count))
    cell = max(min(side, _TILE, math.isqrt(_SPRITE_PIXELS // columns**2)), 1)
    rows = -(-count // columns)
    sheet = Image.new("RGB", (columns * cell, rows * cell))
    for index, square in enumerate(squares):
        picture = Image.fromarray(square)
        if side != cell:
            picture = picture.resize((cell, cell), Image.Resampling.LANCZOS)
        sheet.paste(picture, (index % columns * cell, index // columns * cell))
    return sheet, cell


def project(features, steps=500):
    """Projects features to two dimensions by t-SNE.

    Args:
        features: float array [count, dim], at least four.
        steps: iterations.

    Returns:
        float array [count, 2] in 0-1, the same for the same features.
    """
    unit = neighbours.unit_rows(features)
    # scikit-learn divides by the variance, which collapsed features do not have. The
    # noise is far below any meaningful difference.
    unit = unit + np.random.default_rng(0).normal(0, 1e-6, unit.shape)
    tsne = TSNE(
        perplexity=min(30, (len(unit) - 1) / 3),
        init="pca" if min(unit.shape) > 1 else "random",
        max_iter=steps,
        random_state=0,
    )
    # Its threads wait for each other in busy loops, which takes minutes on a busy
    # processor; one thread takes seconds.
    with threadpool_limits(1):
        points = tsne.fit_transform(unit)
    points -= points.min(axis=0)
    return points / np.maximum(points.max(axis=0), 1e-12)


def classes(predictions, class_names):
    """Confusion matrix and per-class accuracies of the kNN classifier.

    Args:
        predictions: `Predictions` with `knn_classes`.
        class_names: list of strings.

    Returns:
        Dict of the figure and the rows of the table.
    """
    names = [named(name) for name in class_names]
    counts = confusion_matrix(
        predictions.test.labels, predictions.knn_classes, labels=range(len(names))
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
