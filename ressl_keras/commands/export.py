"""Exports the encoder of a run: a Keras file, a SavedModel, other formats.

  ressl-export --workdir=runs/cifar10
  ressl-export --workdir=runs/cifar10 --network=teacher --formats=onnx

A run writes the first two when it ends. This command exports again, from the
last checkpoint, with options for network, projector, unit length and formats.
"""

import dataclasses

from ressl_keras import cli
from ressl_keras.config import MAX_PIXELS
from ressl_keras.settings import Options, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions(Options):
    """Flags of the command."""

    workdir: str = setting(
        None, "Folder of the run.", group="Run", first=True, required=True, path=True
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
        "Scale the SavedModel's embeddings to unit length.",
        group="Encoder",
        first=True,
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
        "Side of the encoder's images in pixels. Default: the run's.",
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


def main():
    """The command."""
    cli.run(export, ExportOptions, __doc__)


def export(options):
    """Exports as the options say."""
    from ressl_keras.training.exporting import export_encoder

    options = dataclasses.asdict(options)
    options["with_projector"] = options.pop("projector")
    export_encoder(**options)


if __name__ == "__main__":
    main()
