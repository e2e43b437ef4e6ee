"""The columns of a run's metrics table as figures, with how to read each."""

import dataclasses
import math

from ressl_keras.evaluation import figures
from ressl_keras.evaluation.verdict import MOST_WAITING, start_of


@dataclasses.dataclass(frozen=True)
class Panel:
    """One figure.

    Attributes:
        title: what it shows.
        unit: of the values, as they are drawn.
        columns: columns of the metrics table.
        note: how to read it.
        least: the smallest length of the axis, so that noise looks like noise.
        zero: whether the axis begins at zero.
        most: the largest possible value, or None.
        scale: what the columns are multiplied by.
        marked: whether a change of the objective shows in it.
    """

    title: str
    unit: str
    columns: tuple
    note: str = ""
    least: float = 0.0
    zero: bool = True
    most: float | None = None
    scale: float = 1.0
    marked: bool = False


PANELS = (
    Panel(
        "Loss",
        "nats",
        ("loss",),
        "It also falls in a collapse; see the spread.",
        least=0.5,
        zero=False,
        marked=True,
    ),
    Panel(
        "kNN accuracy",
        "%",
        ("knn_top1",),
        "During the training.",
        least=10.0,
        zero=False,
        most=100.0,
    ),
    Panel(
        "Entropy of the relations",
        "nats",
        ("teacher_entropy", "student_entropy"),
        "Near zero: one-hot. Near the log of the queue's size: uniform.",
        least=1.0,
        marked=True,
    ),
    Panel(
        "Agreement",
        "%",
        ("agreement",),
        "How often teacher and student name the same nearest image of the queue.",
        least=10.0,
        most=100.0,
        scale=100.0,
        marked=True,
    ),
    Panel(
        "Spread of the embeddings",
        "",
        ("embedding_std",),
        "Standard deviation; the dashed line is the maximum. Near zero: collapse.",
        least=0.01,
    ),
    Panel(
        "Effective rank",
        "",
        ("effective_rank",),
        "Directions that the embeddings use. Near one: collapse.",
        least=8.0,
    ),
    Panel("Age of the queue", "steps", ("queue_age",), "Of its oldest embeddings."),
    Panel("Learning rate", "", ("learning_rate",)),
    Panel("Speed", "images/s", ("images_per_second",)),
    Panel(
        "Waiting for data",
        "%",
        ("waiting",),
        f"Share of the time. Up to {100 * MOST_WAITING:.0f} % is fine.",
        least=100 * MOST_WAITING,
        most=100.0,
        scale=100.0,
    ),
)


def columns_of(rows):
    """Dict from column of a metrics table to its list of (step, value)."""
    columns = {}
    for row in rows:
        for name, value in row.items():
            if value and name not in ("epoch", "step"):
                points = columns.setdefault(name, [])
                points.append((int(row["step"]), float(value)))
    return columns


def draw(rows, config=None, history=None):
    """All columns of a metrics table, as figures in groups.

    Args:
        rows: of the table, dicts of strings.
        config: the run's `Config`, or None.
        history: the run's history, a dict; may be empty.

    Returns:
        List of dicts of `title`, `svg` and `note`.
    """
    columns, history = columns_of(rows), history or {}
    last_step = max((points[-1][0] for points in columns.values()), default=0)
    switch = switch_step(config, steps_per_epoch(rows, history))
    mark = 0 < switch < last_step
    known = {name for panel in PANELS for name in panel.columns}
    others = [
        Panel(name.replace("_", " "), "", (name,), zero=False)
        for name in columns
        if name not in known
    ]
    drawn = []
    for panel in (*PANELS, *others):
        lines = {
            name.replace("_", " "): scaled(columns[name], panel.scale)
            for name in panel.columns
            if name in columns
        }
        if not lines:
            continue
        guide, note = _about(panel, columns, config, history)
        words = ""
        if mark and panel is PANELS[0]:
            words = "Relation from here"
            note += (
                f" InfoNCE until step {switch:,}, the relation from there on: two "
                "losses that cannot be compared."
            )
        svg = figures.curves(
            f"curve{len(drawn)}",
            panel.title,
            lines,
            panel.unit,
            guide,
            (switch, words) if mark and panel.marked else None,
            **range_of(panel),
        )
        drawn.append({"title": panel.title, "svg": svg, "note": note})
    return drawn


def range_of(panel):
    """Arguments of `figures.value_range` for a panel."""
    return {"least": panel.least, "zero": panel.zero, "most": panel.most}


def scaled(points, scale):
    """Points (step, value) with their values multiplied."""
    return [(step, scale * value) for step, value in points]


def _about(panel, columns, config, history):
    """A value to mark by a dashed line, or None, and the note."""
    if "embedding_std" in panel.columns and config:
        return config.embedding_dim**-0.5, panel.note
    if "knn_top1" not in panel.columns:
        return None, panel.note
    note = panel.note
    if history.get("knn_images"):
        bank, queries = history["knn_images"]
        note = f"Of {queries:,} test images, among {bank:,} labelled ones."
    step, start = columns["knn_top1"][0]
    if step:
        return None, note
    words = f"The dashed line is the {start_of(config)} encoder, at step 0."
    return start, f"{note} {words}"


def steps_per_epoch(rows, history):
    """Steps of an epoch, or None where neither table nor history tell."""
    if history.get("steps_per_epoch"):
        return history["steps_per_epoch"]
    full = [row for row in rows if int(row["epoch"]) > 0]
    return int(full[0]["step"]) / int(full[0]["epoch"]) if full else None


def switch_step(config, steps_per_epoch):
    """Step from which the loss is the relation after InfoNCE; 0 without a switch."""
    if not config or not steps_per_epoch or config.objective:
        return 0
    if config.method != "ressl":
        return 0
    return round(config.info_nce_epochs * steps_per_epoch)


def last_of(columns, name):
    """The last number of a column that is one, or None."""
    numbers = [v for _, v in columns.get(name, ()) if math.isfinite(v)]
    return numbers[-1] if numbers else None
