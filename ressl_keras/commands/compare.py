"""Compares recipes: the same budget and seeds for each, one table and one plot.

  ressl-compare --flagfiles=flags/a.flags,flags/b.flags \\
      --seeds=3 --workdir=runs/comparison -- --epochs=20 --data_dir=my_data

The arguments after `--` are given to every run after its flagfile. The runs
are sequential, the first seed of all recipes first; the same command again
resumes an interrupted comparison.
"""

import dataclasses
import os
import shlex
import statistics
import subprocess
import sys

from ressl_keras import cli
from ressl_keras.errors import UsageError
from ressl_keras.run_folder import RunFolder, read_json, read_lines, write_lines
from ressl_keras.settings import Options, setting

COMMAND_FILE = "finished.txt"


@dataclasses.dataclass
class Run:
    """What a finished run of a recipe shows.

    Attributes:
        recipe: name of the flagfile.
        seed: its seed.
        curve: list of (step, kNN top-1 in per cent), as measured during the run.
        results: `evaluation.json`, or an empty dict if the run was not evaluated.
    """

    recipe: str
    seed: int
    curve: list
    results: dict


def compare(flagfiles, seeds, workdir, options=(), script=None, log=print):
    """Runs what has not run yet, and writes `comparison.md` and `comparison.png`.

    Args:
        flagfiles: paths of flagfiles, or names of recipes.
        seeds: how many seeds, from 0, each recipe is run with.
        workdir: folder for everything; a run is in `RECIPE/seed-N` below it.
        options: flags for all runs.
        script: the training script; None takes the installed command's module.
        log: called with a line of text.

    Returns:
        Path of the table.

    Raises:
        UsageError: if a file is not there, two recipes have one name, a run failed, or
            the folder holds finished runs with other flags.
    """
    if script and not os.path.isfile(script):
        raise UsageError(f"There is no file {script}.")
    flagfiles = [_flagfile(name) for name in flagfiles]
    names = [os.path.splitext(os.path.basename(path))[0] for path in flagfiles]
    if len(set(names)) < len(names) or not names:
        raise UsageError(f"Recipes must have different names; got {', '.join(names)}.")
    for seed in range(seeds):
        for name, flagfile in zip(names, flagfiles):
            folder = os.path.join(workdir, name, f"seed-{seed}")
            training = [script] if script else ["-m", "ressl_keras.commands.train"]
            flags = [f"--flagfile={flagfile}", *options, f"--seed={seed}"]
            _run([*training, *flags], folder, log)
    runs = [
        read_run(os.path.join(workdir, name, f"seed-{seed}"), name, seed)
        for name in names
        for seed in range(seeds)
    ]
    path = os.path.join(workdir, "comparison.md")
    write_lines(path, [table(runs)])
    log(table(runs))
    plot(runs, os.path.join(workdir, "comparison.png"))
    return path


def _flagfile(name):
    """Path of a flagfile, given as such or as the name of a recipe."""
    if os.path.isfile(name):
        return name
    if os.path.dirname(name) or name.endswith(".flags"):
        raise UsageError(f"There is no file {name}.")
    return cli.recipe_path(name)


def _run(command, folder, log):
    """One run in a process of its own, unless it has finished before."""
    marker, line = os.path.join(folder, COMMAND_FILE), shlex.join(command)
    if os.path.exists(marker):
        (before,) = read_lines(marker)
        if before != line:
            raise UsageError(
                f"{folder} holds a finished run of another command, {before}; this one "
                f"is {line}. Give another --workdir."
            )
        return
    log(f"{folder}: {line}")
    code = subprocess.call([sys.executable, *command, f"--workdir={folder}"])
    if code:
        raise UsageError(f"The run in {folder} ended with status {code}.")
    write_lines(marker, [line])


def read_run(folder, recipe, seed):
    """What a run's files show.

    Args:
        folder: its work directory.
        recipe: name of its flagfile.
        seed: its seed.

    Returns:
        A `Run`.
    """
    files = RunFolder(folder)
    curve = [
        (int(row["step"]), float(row["knn_top1"]))
        for row in files.read_metrics()
        if row["knn_top1"]
    ]
    results = read_json(files.evaluation)
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
    from matplotlib.figure import Figure

    # Not pyplot: it needs a display and keeps state.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions(Options):
    """Flags of the command."""

    flagfiles: tuple[str, ...] = setting(
        None,
        "Flagfiles to compare, or names of recipes, separated by commas.",
        group="Runs",
        first=True,
        required=True,
    )
    seeds: int = setting(
        3, "Seeds per recipe.", group="Runs", first=True, low=1, high=1000
    )
    script: str | None = setting(
        None, "Training script. Default: ressl-train.", group="Runs"
    )
    workdir: str = setting(
        "runs/comparison", "Folder of the runs.", group="Output", first=True, path=True
    )


def main():
    """The command."""
    cli.run(run_comparison, CompareOptions, __doc__, takes_more=True)


def run_comparison(options, arguments):
    """Compares as the options say."""
    path = compare(
        options.flagfiles, options.seeds, options.workdir, arguments, options.script
    )
    print(f"Written to {path}.")


if __name__ == "__main__":
    main()
