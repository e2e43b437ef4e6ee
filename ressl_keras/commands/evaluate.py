"""Judges an encoder: kNN, a linear probe, fine-tuning, a picture of neighbours.

  ressl-evaluate --encoder=runs/cifar10/encoder.keras --dataset=cifar10
  ressl-evaluate --encoder=runs/cifar10 --dataset=cifar10 \\
      --protocol=finetune --label_fraction=0.01
  ressl-evaluate --encoder=runs/cifar10 --dataset=cifar10 \\
      --protocol=neighbours

Accuracies are printed and written as JSON, beside those of the same encoder
untrained.
"""

import dataclasses
import os

from ressl_keras import cli
from ressl_keras.commands.data_options import DataOptions
from ressl_keras.errors import UsageError
from ressl_keras.run_folder import RunFolder
from ressl_keras.settings import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions(DataOptions):
    """Flags of the command."""

    encoder: str = setting(
        None,
        "The encoder: a .keras file, a SavedModel folder (not for finetune), or the "
        "work directory of its run. Any image encoder will do.",
        group="Encoder",
        first=True,
        required=True,
        path=True,
    )
    preprocessing: str = setting(
        "none",
        "What an encoder from elsewhere expects to be done to images in 0-255, as "
        "keras.applications names it. Encoders trained here do it themselves.",
        group="Encoder",
        choices=("none", "tf", "torch", "caffe"),
    )
    label_fraction: float = setting(
        1.0,
        "Share of the training labels used, the same for every class: 0.01 and 0.1 in "
        "the semi-supervised protocol.",
        group="Data",
        first=True,
        above=0,
        high=1,
    )
    protocol: tuple[str, ...] = setting(
        ("knn", "linear"),
        "Any of knn, linear, finetune, and neighbours, which draws a picture.",
        group="Protocol",
        first=True,
        choices=("knn", "linear", "finetune", "neighbours"),
    )
    probe: str = setting(
        "fast",
        "Linear probe: fast, on features extracted once, in seconds; or paper, on "
        "random crops and flips for 100 epochs.",
        group="Protocol",
        first=True,
        choices=("fast", "paper"),
    )
    finetune_epochs: int | None = setting(
        None,
        "Epochs of fine-tuning. Default: 10, or as many as make 1000 steps.",
        group="Protocol",
        low=1,
        high=1000000,
    )
    seed: int = setting(
        0,
        "Seed of the untrained encoder, the choice of labels, and all learning.",
        group="Protocol",
        low=0,
        high=2**31 - 1,
    )
    output: str | None = setting(
        None,
        "JSON file to write. Default: evaluation.json beside the encoder.",
        group="Output",
        first=True,
        path=True,
    )
    feature_cache: str | None = setting(
        None, "Folder that keeps extracted features for the next time.", group="Output"
    )


def main():
    """The command."""
    cli.run(evaluate, EvaluateOptions, __doc__)


def evaluate(options):
    """Judges an encoder as the options say."""
    from ressl_keras.data import checking
    from ressl_keras.encoders import encoder as encoders
    from ressl_keras.evaluation import judgement

    encoder = encoders.load_encoder(options.encoder, options.preprocessing)
    title = options.encoder.rstrip("/")
    beside = encoders.is_frozen(encoder) or not os.path.isdir(title)
    folder = RunFolder(os.path.dirname(title) if beside else title)
    output = options.output or folder.evaluation
    if os.path.isdir(output) or not os.path.basename(output):
        raise UsageError(f"--output={output} is a folder; give a JSON file.")
    RunFolder(os.path.dirname(output) or ".").prepare()
    dataset = options.load()
    with checking.naming_unreadable(dataset.files):
        judgement.judge(
            encoder,
            dataset,
            output,
            run=folder.path if folder.is_run() else None,
            title=title,
            command=cli.command_line(),
            protocols=options.protocol,
            label_fraction=options.label_fraction,
            probe=options.probe,
            finetune_epochs=options.finetune_epochs,
            seed=options.seed,
            cache=options.feature_cache,
        )


if __name__ == "__main__":
    main()
