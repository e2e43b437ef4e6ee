"""Pretrains an encoder on images without labels.

  ressl-train --recipe=quickstart
  ressl-train --recipe=cifar10 --workdir=runs/cifar10
  ressl-train --recipe=folder --data_dir=my_images --workdir=runs/mine

The same command again resumes a run that was interrupted.
"""

import dataclasses
import shlex
import signal
import sys

from ressl_keras import cli
from ressl_keras.commands.data_options import DataOptions
from ressl_keras.commands.device_options import DeviceOptions
from ressl_keras.config import Config
from ressl_keras.run_folder import RunFolder
from ressl_keras.settings import setting, settings_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions(DataOptions, DeviceOptions, Config):
    """What the command needs beside the settings of the training."""

    check_images: bool = setting(
        False,
        "Decode every image of a folder before training, to leave out what cannot be "
        "read; ressl-check does the same. What it finds is remembered.",
        group="Data",
    )
    workdir: str = setting(
        "runs/ressl",
        "Folder of the run's files.",
        group="Output",
        first=True,
        resumable=True,
        path=True,
    )
    preview: bool = setting(
        False,
        "Draw images and their views to views.png in --workdir, and stop.",
        group="Output",
        first=True,
        resumable=True,
    )
    evaluate: bool = setting(
        True,
        "Evaluate the encoder after training, where there are labels.",
        group="Output",
        first=True,
        resumable=True,
    )


def main():
    """The command."""
    cli.run(train, TrainOptions, __doc__)


def train(options):
    """Trains, evaluates and reports as the options say; exits where it was stopped."""
    import tensorflow as tf

    from ressl_keras.training import checkpoints

    try:
        run(options)
    except checkpoints.Stopped as stopped:
        print(f"\n{stopped} To resume:\n  {cli.command_line()}")
        sys.exit(128 + stopped.signal_number)
    except KeyboardInterrupt:
        step = checkpoints.last_step(RunFolder(options.workdir).checkpoints)
        saved = f" Step {step} is saved. To resume:" if step else ""
        again = saved or " No step is saved. To start again:"
        print(f"\nStopped.{again}\n  {cli.command_line()}")
        sys.exit(128 + signal.SIGINT)
    except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
        cli.print_error(
            f"Another worker was lost or cannot be reached ({type(error).__name__}). "
            "Start all workers again to resume from the last checkpoint."
        )
        cli.leave(1)


def run(options):
    """One run, from the data set to the report."""
    from ressl_keras import devices
    from ressl_keras.data import checking
    from ressl_keras.evaluation import judgement
    from ressl_keras.training import backbones, skipped
    from ressl_keras.training.memory import check_memory
    from ressl_keras.training.own import imported
    from ressl_keras.training.pretrain import pretrain
    from ressl_keras.training.preview import preview

    folder = RunFolder(options.workdir)
    backbones.check(options.backbone, options.width, folder)  # before images are read
    if options.objective:
        imported(options.objective, "objective")
    strategy, chief, log = options.start()
    if chief:
        folder.prepare()
    if not options.preview:
        # Refused before data are loaded; `pretrain` asks again.
        check_memory(options, machines=devices.place(strategy)[1])
        folder.resumed(options)
    dataset = options.load(check=options.check_images, log=log)
    if chief:
        listed = skipped.SkippedList(folder.skipped, keep=folder.has_checkpoints())
        skipped.announce(dataset.skipped, listed, log)
    if options.preview:
        if chief:
            with checking.naming_unreadable(dataset.files):
                log(f"The views are in {preview(dataset, folder.path, options)}.")
        return
    encoder = pretrain(dataset, folder.path, options, strategy=strategy, log=log)
    with checking.naming_unreadable(dataset.files):
        command = cli.command_line()
        judgement.judge_run(
            folder.path, dataset, options.evaluate, command, log, strategy
        )
    if chief:
        skipped.SkippedList(folder.skipped, keep=True).add(dataset.faults())
        what = "evaluate it" if dataset.labelled else "see what it finds alike"
        log(f"The encoder is {encoder}. To {what}:")
        log(f"  {_evaluation_command(encoder, dataset, options)}")
    devices.barrier(strategy)  # the others wait for the chief


def _evaluation_command(encoder, dataset, options):
    """A command that can be run: without labels it draws neighbours."""
    words = ["ressl-evaluate", f"--encoder={encoder}"]
    for name, known in settings_of(DataOptions).items():
        value = getattr(options, name)
        if value != known.default:
            words.append(known.flag(value))
    if not dataset.labelled:
        words.append("--protocol=neighbours")
    return shlex.join(words)


if __name__ == "__main__":
    main()
