"""Compares recipes: the same budget and seeds for each, one table and one plot.

  python -m ressl_keras.compare --flagfiles=flags/a.flags,flags/b.flags \\
      --seeds=3 --workdir=runs/comparison -- --epochs=20 --data_dir=my_data

What follows `--` is given to every run after its flagfile. The runs go one
after the other, the first seed of all recipes first; the same command again
goes on where an interrupted one stopped.
"""

import dataclasses
import json
import os
import shlex
import statistics
import subprocess
import sys

from matplotlib.figure import Figure

from ressl_keras.callbacks import METRICS_FILE, MetricsTable
from ressl_keras.errors import UsageError

COMMAND_FILE = "finished.txt"


@dataclasses.dataclass
class Run:
    """What a finished run of a recipe shows.

    Attributes:
        recipe: name of the flagfile.
        seed: its seed.
        curve: list of (step, kNN top-1 in per cent), as the run looked at it.
        results: `evaluation.json`, or an empty dict if the run was not evaluated.
    """

    recipe: str
    seed: int
    curve: list
    results: dict


def compare(flagfiles, seeds, workdir, options=(), script="train.py", progress=print):
    """Runs what has not run yet, and writes `comparison.md` and `comparison.png`.

    Args:
        flagfiles: paths of the recipes.
        seeds: how many seeds, from 0, each recipe is run with.
        workdir: folder for everything; a run is in `RECIPE/seed-N` below it.
        options: flags for all runs.
        script: the training script.
        progress: called with a line of text now and then.

    Returns:
        Path of the table.

    Raises:
        UsageError: if a file is not there, two recipes have one name, a run failed, or
            the folder holds finished runs with other flags.
    """
    for path in (*flagfiles, script):
        if not os.path.isfile(path):
            raise UsageError(f"There is no file {path}.")
    names = [os.path.splitext(os.path.basename(path))[0] for path in flagfiles]
    if len(set(names)) < len(names) or not names:
        raise UsageError(f"Recipes need names of their own; got {', '.join(names)}.")
    for seed in range(seeds):
        for name, flagfile in zip(names, flagfiles):
            folder = os.path.join(workdir, name, f"seed-{seed}")
            command = [script, f"--flagfile={flagfile}", *options, f"--seed={seed}"]
            _run(command, folder, progress)
    runs = [
        read_run(os.path.join(workdir, name, f"seed-{seed}"), name, seed)
        for name in names
        for seed in range(seeds)
    ]
    path = os.path.join(workdir, "comparison.md")
    with open(path, "w") as file:
        file.write(table(runs) + "\n")
    progress(table(runs))
    plot(runs, os.path.join(workdir, "comparison.png"))
    return path


def _run(command, folder, progress):
    """One run in a process of its own, unless it has finished before."""
    marker, line = os.path.join(folder, COMMAND_FILE), shlex.join(command)
    if os.path.exists(marker):
        with open(marker) as file:
            before = file.read().strip()
        if before != line:
            raise UsageError(
                f"{folder} holds a finished run of another command, {before}; this one "
                f"is {line}. Give another --workdir."
            )
        return
    progress(f"{folder}: {line}")
    code = subprocess.call([sys.executable, *command, f"--workdir={folder}"])
    if code:
        raise UsageError(f"The run in {folder} ended with status {code}.")
    with open(marker, "w") as file:
        file.write(line + "\n")


def read_run(folder, recipe, seed):
    """What a run's files show.

    Args:
        folder: its work directory.
        recipe: name of its flagfile.
        seed: its seed.

    Returns:
        A `Run`.
    """
    rows = MetricsTable.read(os.path.join(folder, METRICS_FILE))
    curve = [
        (int(row["step"]), float(row["knn_top1"])) for row in rows if row["knn_top1"]
    ]
    results, path = {}, os.path.join(folder, "evaluation.json")
    if os.path.exists(path):
        with open(path) as file:
            results = json.load(file)
    return Run(recipe, seed, curve, results)


def table(runs):
    """Mean and spread of each recipe's accuracies, as Markdown.

    Args:
        runs: list of `Run`.

    Returns:
        Lines of text. A spread is the standard deviation over the seeds (of a sample,
        with n - 1); without one there is a single seed.
    """
    columns = {
        "kNN, monitor": lambda run: run.curve[-1][1] if run.curve else None,
        "kNN": lambda run: run.results.get("knn", {}).get("top1"),
        "untrained": lambda run: run.results.get("knn", {}).get("untrained_top1"),
        "linear": lambda run: run.results.get("linear", {}).get("top1"),
    }
    lines = [
        "| recipe | seeds | steps | " + " | ".join(columns) + " |",
        "| --- " * (3 + len(columns)) + "|",
    ]
    for recipe in dict.fromkeys(run.recipe for run in runs):
        own = [run for run in runs if run.recipe == recipe]
        steps = sorted({run.curve[-1][0] for run in own if run.curve})
        cells = [recipe, str(len(own)), " or ".join(map(str, steps))]
        for value in columns.values():
            cells.append(mean_and_spread([value(run) for run in own]))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


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
    # Not pyplot: no display is needed, and no state is kept.
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="kNN top-1 (%)")
    for recipe in dict.fromkeys(run.recipe for run in runs):
        curves = [dict(run.curve) for run in runs if run.recipe == recipe]
        steps = sorted(set.intersection(*map(set, curves)))
        values = [[curve[step] for curve in curves] for step in steps]
        axes.plot(steps, list(map(statistics.mean, values)), marker="o", label=recipe)
        axes.fill_between(
            steps, list(map(min, values)), list(map(max, values)), alpha=0.2
        )
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


# What --help shows: those that matter first, and the others.
GROUPS = {"Runs": ("flagfiles seeds", "script"), "Output": ("workdir", "")}


def main(options):
    from absl import flags

    values = flags.FLAGS
    path = compare(
        values.flagfiles, values.seeds, values.workdir, options, values.script
    )
    print(f"Written to {path}.")


def define_flags(values):
    from absl import flags

    flags.DEFINE_list(
        "flagfiles",
        None,
        "Recipes to compare, separated by commas.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "seeds", 3, "Seeds that each is run with.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_string(
        "workdir", "runs/comparison", "Folder of the runs.", flag_values=values
    )
    flags.DEFINE_string(
        "script", "train.py", "The training script.", flag_values=values
    )
    flags.register_validator(
        "flagfiles", bool, "give the recipes to compare", flag_values=values
    )


if __name__ == "__main__":
    from absl import flags

    import ressl_command

    define_flags(flags.FLAGS)
    ressl_command.run(main, GROUPS, takes_more=True)
