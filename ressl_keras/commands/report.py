"""Draws the report of a run again, or puts several runs side by side.

  ressl-report runs/cifar10
  ressl-report runs/first runs/second --output=both.html

Of one run it writes report.html, from the run's files and its images; nothing
is evaluated anew. Of several runs it writes one page: curves in one picture,
the settings that differ, results.
"""

import dataclasses
import os

from ressl_keras import cli
from ressl_keras.errors import UsageError
from ressl_keras.run_folder import RunFolder
from ressl_keras.settings import Options, setting

_SEVERAL = "comparison.html"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportOptions(Options):
    """Flags of the command."""

    output: str | None = setting(
        None,
        "HTML file to write. Default: report.html in the run's folder; of several "
        f"runs {_SEVERAL} here.",
        group="Output",
        first=True,
        path=True,
    )
    images: bool = setting(
        True,
        "Read the run's images, for neighbours, map and classes.",
        group="Data",
        first=True,
    )
    data_dir: str | None = setting(
        None,
        "Folder of the images, if they are not where the run found them.",
        group="Data",
        path=True,
    )


def main():
    """The command."""
    cli.run(report, ReportOptions, __doc__, takes_words=True)


def report(options, runs):
    """Writes the page that the options say.

    Args:
        options: `ReportOptions`.
        runs: work directories, a list.

    Raises:
        UsageError: if one of them is no run.
    """
    if not runs:
        raise UsageError("Give the folder of a run: ressl-report runs/mine.")
    for run in runs:
        if not RunFolder(run).is_run():
            missing = os.path.basename(RunFolder(run).flags)
            raise UsageError(f"{run} is not a run: it has no {missing}.")
    if options.output and os.path.isdir(options.output):
        raise UsageError(f"--output={options.output} is a folder; give an HTML file.")
    if len(runs) > 1:
        from ressl_keras.evaluation import comparison

        path = options.output or _SEVERAL
        found = [
            comparison.read_run(run, name)
            for run, name in zip(runs, comparison.names(runs))
        ]
        print(comparison.table(found))
        comparison.write(path, found)
    else:
        path = _draw_again(options, runs[0])
    print(f"Written to {path}.")


def _draw_again(options, run):
    from ressl_keras.commands.train import TrainOptions
    from ressl_keras.evaluation import judgement

    folder, dataset = RunFolder(run), None
    trained = folder.read_config(TrainOptions)
    if not any(line.startswith("--dataset=") for line in folder.flag_lines()):
        print("The run does not say which images it read: no neighbours, no map.")
    elif options.images:
        if options.data_dir:
            trained = dataclasses.replace(trained, data_dir=options.data_dir)
        dataset = trained.load(check=trained.check_images)
    again = f"ressl-train --flagfile={folder.flags}"
    return judgement.report_again(run, options.output, dataset, again)


if __name__ == "__main__":
    main()
