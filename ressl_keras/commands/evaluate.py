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
from ressl_keras.commands.device_options import DeviceOptions
from ressl_keras.commands.encoder_options import EncoderOptions
from ressl_keras.errors import UsageError
from ressl_keras.evaluation_options import EvaluationOptions
from ressl_keras.run_folder import RunFolder
from ressl_keras.settings import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions(EncoderOptions, DataOptions, DeviceOptions, EvaluationOptions):
    """Flags of the command."""

    output: str | None = setting(
        None,
        "JSON file to write. Default: evaluation.json beside the encoder.",
        group="Output",
        first=True,
        path=True,
    )


def main():
    """The command."""
    cli.run(evaluate, EvaluateOptions, __doc__)


def evaluate(options):
    """Judges an encoder as the options say."""
    from ressl_keras import devices
    from ressl_keras.data import checking
    from ressl_keras.encoders import encoder as encoders
    from ressl_keras.evaluation import judgement

    strategy, _, log = options.start()
    with strategy.scope():
        encoder = options.load_encoder()
    title = options.encoder.rstrip("/")
    beside = encoders.is_frozen(encoder) or not os.path.isdir(title)
    folder = RunFolder((os.path.dirname(title) or ".") if beside else title)
    output = options.output or folder.evaluation
    if os.path.isdir(output) or not os.path.basename(output):
        raise UsageError(f"--output={output} is a folder; give a JSON file.")
    RunFolder(os.path.dirname(output) or ".").prepare()
    dataset = options.load(encoder.decoder, log=log)
    with checking.naming_unreadable(dataset.files):
        judgement.judge(
            encoder,
            dataset,
            output,
            options,
            strategy=strategy,
            log=log,
            run=folder.path if folder.is_run() else None,
            title=title,
            command=cli.command_line(),
        )
    devices.barrier(strategy)  # the others wait for the chief


if __name__ == "__main__":
    main()
