"""Exports an encoder: a Keras file, a SavedModel, other formats.

  ressl-export --workdir=runs/cifar10 --formats=onnx
  ressl-export --workdir=runs/cifar10 --network=teacher --output=runs/teacher
  ressl-export --encoder=mobilenet.keras --preprocessing=tf \\
      --image_size=224 --output=served

A run writes the first two when it ends. This command exports again, from the
last checkpoint of a run, or an encoder in a file, trained here or elsewhere.
"""

import dataclasses
import os

from ressl_keras import cli
from ressl_keras.commands.encoder_options import PreprocessingOptions
from ressl_keras.config import MAX_PIXELS
from ressl_keras.errors import UsageError
from ressl_keras.settings import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions(PreprocessingOptions):
    """Flags of the command."""

    workdir: str | None = setting(
        None, "Folder of the run to export.", group="Run", first=True, path=True
    )
    encoder: str | None = setting(
        None,
        "Encoder to export in place of a run's: a .keras file.",
        group="Run",
        first=True,
        path=True,
    )
    network: str = setting(
        "student",
        "Network whose encoder is exported; the paper's is the student's.",
        group="Encoder",
        first=True,
        choices=("student", "teacher"),
    )
    projector: bool = setting(
        False, "Keep the projector behind the backbone.", group="Encoder", first=True
    )
    normalize: bool = setting(
        False,
        "Scale embeddings to unit length, in every format.",
        group="Encoder",
        first=True,
    )
    output: str | None = setting(
        None,
        "Folder to write into. Default: that of the run, or of the encoder.",
        group="Output",
        first=True,
        path=True,
    )
    formats: tuple[str, ...] = setting(
        (),
        "Other formats to write: onnx, litert.",
        group="Output",
        first=True,
        choices=("onnx", "litert"),
    )
    image_size: int | None = setting(
        None,
        "Side of the encoder's images in pixels. Default: its own.",
        group="Encoder",
        low=8,
        high=4096,
    )
    max_pixels: int = setting(
        MAX_PIXELS,
        "Encoded images with more pixels are refused by the SavedModel, before they "
        "are decoded.",
        group="Output",
        low=1,
        high=2**31 - 1,
    )
    warmup: bool | None = setting(
        None,
        "Put warm-up requests into the SavedModel. Default: where "
        "tensorflow-serving-api is installed.",
        group="Output",
    )

    def __post_init__(self):
        super().__post_init__()
        if (self.workdir is None) == (self.encoder is None):
            raise UsageError(
                "Give --workdir, the folder of a run, or --encoder, a .keras file."
            )
        if self.encoder and (self.network != "student" or self.projector):
            raise UsageError("--network and --projector are for a run, --workdir.")
        if self.workdir and self.preprocessing != "none":
            raise UsageError("--preprocessing is for --encoder; runs do their own.")


def main():
    """The command."""
    cli.run(export, ExportOptions, __doc__)


def export(options):
    """Exports as the options say."""
    from ressl_keras.training.exporting import export_encoder, export_file

    shared = {
        name: getattr(options, name)
        for name in ("normalize", "formats", "warmup", "image_size", "max_pixels")
    }
    if options.encoder:
        output = options.output or os.path.dirname(options.encoder) or "."
        export_file(options.encoder, output, options.preprocessing, **shared)
    else:
        export_encoder(
            options.workdir,
            options.network,
            options.projector,
            output=options.output,
            **shared,
        )


if __name__ == "__main__":
    main()
