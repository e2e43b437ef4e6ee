"""Several runs side by side: a table, a plot, a page."""

import dataclasses
import datetime
import os
import statistics
import urllib.parse

from ressl_keras.config import Config
from ressl_keras.evaluation import curves, figures, page
from ressl_keras.evaluation.report import facts_of_time
from ressl_keras.files import read_json
from ressl_keras.run_folder import RunFolder

_TEMPLATE = "comparison.html"
# Settings that say where a run is and not what it does.
_PLACES = ("workdir",)


@dataclasses.dataclass
class Run:
    """What a run of a recipe shows.

    Attributes:
        recipe: name of the flagfile, or of the run.
        seed: its seed, or None where there is one run of a name.
        curve: list of (step, kNN top-1 in per cent), as measured during the run.
        results: `evaluation.json`, or an empty dict if the run was not evaluated.
        folder: `RunFolder`.
    """

    recipe: str
    seed: int | None
    curve: list
    results: dict
    folder: RunFolder

    @property
    def name(self):
        return self.recipe if self.seed is None else f"{self.recipe}, seed {self.seed}"

    @property
    def last(self):
        """The last (step, accuracy) of the training, or None; not that of its start."""
        return self.curve[-1] if self.curve and self.curve[-1][0] else None


def read_run(folder, recipe, seed=None):
    """What a run's files show.

    Args:
        folder: its work directory.
        recipe: name of its flagfile, or of the run.
        seed: its seed, or None where there is one run of a name.

    Returns:
        A `Run`.
    """
    files = RunFolder(folder)
    curve = curves.columns_of(files.read_metrics()).get("knn_top1", [])
    return Run(recipe, seed, curve, read_json(files.evaluation), files)


def names(folders):
    """Short names of some runs' folders, all of them different."""
    short = [os.path.basename(os.path.abspath(folder)) for folder in folders]
    return short if len(set(short)) == len(short) else list(map(str, folders))


# Title and value of each column of the table.
_COLUMNS = {
    "kNN, monitor": lambda run: run.last and run.last[1],
    "kNN": lambda run: run.results.get("knn", {}).get("top1"),
    "untrained": lambda run: run.results.get("knn", {}).get("untrained_top1"),
    "linear": lambda run: run.results.get("linear", {}).get("top1"),
}
HEADER = ("recipe", "seeds", "steps", *_COLUMNS)


def summary(runs):
    """Mean and spread of each recipe's accuracies, below `HEADER`.

    Args:
        runs: list of `Run`.

    Returns:
        List of rows, lists of strings. A spread is the standard deviation over the
        seeds (of a sample, with n - 1); without one there is a single seed.
    """
    rows = []
    for recipe in dict.fromkeys(run.recipe for run in runs):
        own = [run for run in runs if run.recipe == recipe]
        steps = sorted({run.last[0] for run in own if run.last})
        cells = [recipe, str(len(own)), " or ".join(map(str, steps))]
        for value in _COLUMNS.values():
            cells.append(mean_and_spread([value(run) for run in own]))
        rows.append(cells)
    return rows


def table(runs):
    """The rows of `summary` as Markdown, lines of text."""
    rows = [HEADER, ["---"] * len(HEADER), *summary(runs)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def mean_and_spread(values):
    """Numbers as `mean ± standard deviation`; nothing where one is missing."""
    if None in values:
        return ""
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def plot(runs, path):
    """Draws kNN over steps: a line for the mean, a band from lowest to highest seed.

    Args:
        runs: list of `Run`.
        path: image file to write.
    """
    from matplotlib.figure import Figure

    # Not pyplot: it needs a display and keeps state.
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="kNN top-1 (%)")
    for recipe in dict.fromkeys(run.recipe for run in runs):
        lines = [dict(run.curve) for run in runs if run.recipe == recipe]
        steps = sorted(set.intersection(*map(set, lines)))
        values = [[line[step] for line in lines] for step in steps]
        axes.plot(steps, list(map(statistics.mean, values)), marker="o", label=recipe)
        axes.fill_between(
            steps, list(map(min, values)), list(map(max, values)), alpha=0.2
        )
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def write(path, runs):
    """Writes a page with the curves, the settings that differ and the results.

    Args:
        path: HTML file to write.
        runs: list of `Run`.
    """
    beside = os.path.dirname(os.path.abspath(path))
    sections = {
        "title": _title(runs),
        "written": f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
        "header": HEADER,
        "rows": [[page.clean(cell) for cell in row] for row in summary(runs)],
        "runs": [_about(run, beside) for run in runs],
        "curves": _curves(runs),
        "settings": differing({run.name: settings(run.folder) for run in runs}),
        "names": [page.clean(run.name) for run in runs],
    }
    page.write(path, _TEMPLATE, sections)


def _title(runs, most=4):
    """Names of the recipes or runs, the first few."""
    recipes = list(dict.fromkeys(run.recipe for run in runs))
    more = f" and {len(recipes) - most} more" if len(recipes) > most else ""
    return page.clean(", ".join(recipes[:most]) + more)


def _about(run, beside):
    """Name, dates and devices of a run, and a link to its report."""
    link = None
    if os.path.isfile(run.folder.report):
        link = os.fsencode(os.path.relpath(run.folder.report, beside))
        link = urllib.parse.quote(link)
    facts = facts_of_time(read_json(run.folder.history))
    facts = {name: page.clean(value) for name, value in facts.items()}
    return {"name": page.clean(run.name), "link": link, "facts": facts}


def _curves(runs):
    """One figure for each column of the metrics, a line for each run."""
    columns = {run.name: curves.columns_of(run.folder.read_metrics()) for run in runs}
    labels = _labels(columns)
    drawn = []
    for panel in curves.PANELS:
        for column in panel.columns:
            lines = {
                labels[name]: curves.scaled(own[column], panel.scale)
                for name, own in columns.items()
                if column in own
            }
            if not lines:
                continue
            title = panel.title
            if len(panel.columns) > 1:
                title = column.replace("_", " ").capitalize()
            svg = figures.curves(
                f"curve{len(drawn)}",
                title,
                lines,
                panel.unit,
                size=(5.6, 3.4),
                **curves.range_of(panel),
            )
            drawn.append({"title": title, "svg": svg, "note": panel.note})
    # What tells most first.
    return sorted(drawn, key=lambda figure: figure["title"] != "kNN accuracy")


def _labels(names, most=28):
    """A label for each name, all different: long names lack their middle."""
    labels = {}
    for name in names:
        label = text = page.clean(name)
        if len(text) > most:
            label = text = f"{text[: most // 2]}…{text[most // 2 - most + 1 :]}"
        count = 1
        while label in labels.values():
            count += 1
            label = f"{text} ({count})"
        labels[name] = label
    return labels


def settings(folder):
    """The settings of a run as texts, a dict from name to value."""
    if not folder.is_run():
        return {}
    found = {}
    for line in folder.read_config(Config).to_flags() + folder.flag_lines():
        name, equals, value = line.lstrip("-").partition("=")
        if not equals:
            name, value = name.removeprefix("no"), str(not name.startswith("no"))
        if line.startswith("-") and name not in _PLACES:
            found[name] = value
    return found


def differing(settings_of_runs):
    """The settings that are not the same in all runs.

    Args:
        settings_of_runs: dict from name of a run to result of `settings`.

    Returns:
        Dict from name of a setting to its value in each run; a dash where it is not
        set.
    """
    every = dict.fromkeys(name for own in settings_of_runs.values() for name in own)
    rows = {
        name: [page.clean(own.get(name, "-")) for own in settings_of_runs.values()]
        for name in every
    }
    return {name: values for name, values in rows.items() if len(set(values)) > 1}
