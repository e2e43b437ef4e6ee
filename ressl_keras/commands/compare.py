"""Compares recipes: the same budget and seeds for each, a table, plot and page.

  ressl-compare --flagfiles=flags/a.flags,flags/b.flags \\
      --seeds=3 --workdir=runs/comparison -- --epochs=20 --data_dir=my_data

The arguments after `--` are given to every run after its flagfile. The runs
are sequential, the first seed of all recipes first; the same command again
resumes an interrupted comparison.
"""

import dataclasses
import os
import shlex
import subprocess
import sys

from ressl_keras import cli
from ressl_keras.errors import UsageError
from ressl_keras.files import read_lines, write_lines
from ressl_keras.settings import Options, setting

COMMAND_FILE = "finished.txt"


def compare(flagfiles, seeds, workdir, options=(), script=None, log=print):
    """Runs what has not run yet, and writes `comparison.md`, `.png` and `.html`.

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
    from ressl_keras.evaluation import comparison  # TensorFlow

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
        comparison.read_run(os.path.join(workdir, name, f"seed-{seed}"), name, seed)
        for name in names
        for seed in range(seeds)
    ]
    path = os.path.join(workdir, "comparison.md")
    table = comparison.table(runs)
    write_lines(path, [table])
    log(table)
    comparison.plot(runs, os.path.join(workdir, "comparison.png"))
    comparison.write(os.path.join(workdir, "comparison.html"), runs)
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
