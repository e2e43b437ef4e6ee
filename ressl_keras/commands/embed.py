"""Embeds images: file names, labels and embeddings in one file.

  ressl-embed --encoder=runs/mine --data_dir=my_images --output=mine.parquet
  ressl-embed --encoder=runs/mine --data_dir=my_images \\
      --output=mine.parquet --update
  ressl-embed --encoder=runs/cifar10 --dataset=cifar10 --output=cifar10.npy

An interrupted call goes on where it was when it is given again. ressl-search
reads the Parquet file.
"""

import dataclasses
import json
import os
import shutil

from ressl_keras import cli
from ressl_keras.commands.data_options import DataOptions
from ressl_keras.commands.device_options import DeviceOptions
from ressl_keras.commands.encoder_options import EncoderOptions
from ressl_keras.errors import UsageError
from ressl_keras.settings import setting

ENDINGS = (".parquet", ".npy", ".tfrecord")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbedOptions(DataOptions, DeviceOptions, EncoderOptions):
    """Flags of the command."""

    output: str = setting(
        None,
        "File to write: .parquet; .npy, with the names in a .csv beside it; or "
        ".tfrecord.",
        group="Output",
        first=True,
        required=True,
        path=True,
    )
    update: bool = setting(
        False,
        "Embed only files that are new or changed since the .parquet was written.",
        group="Output",
        first=True,
    )

    def __post_init__(self):
        super().__post_init__()
        ending = os.path.splitext(self.output)[1]
        if ending not in ENDINGS:
            raise UsageError(
                f"--output={self.output} ends neither in {', '.join(ENDINGS[:-1])} nor "
                f"{ENDINGS[-1]}."
            )
        if self.update and ending != ".parquet":
            raise UsageError("--update is for a .parquet file.")


def main():
    """The command."""
    cli.run(embed, EmbedOptions, __doc__)


def embed(options):
    """Embeds as the options say."""
    from ressl_keras import devices
    from ressl_keras.embeddings import embedding, table
    from ressl_keras.encoders.encoder import encoder_hash, input_size
    from ressl_keras.evaluation.features import Resources

    strategy, chief, log = options.start()
    with strategy.scope():
        encoder = options.load_encoder()
    dataset = options.load(encoder.decoder, log=log)
    size = input_size(encoder, dataset.pretrain)
    decoded = dataclasses.asdict(dataset.decoder or encoder.decoder)
    facts = {
        "encoder": encoder_hash(encoder),
        "images": json.loads(json.dumps({"size": size, **decoded})),  # as it is read
        "dataset": dataset.name,
    }
    known = None
    if options.update and os.path.exists(options.output):
        known = table.read_table(options.output)
        for name, what in (("encoder", "another encoder"), ("images", "other pixels")):
            if known and known.facts.get(name) != facts[name]:
                log(f"{options.output} is of {what}; all images are embedded.")
                known = None
    # What an interrupted call goes on from.
    work = f"{options.output}.work"
    resources = Resources(strategy=strategy, cache=work, log=log)
    root = options.data_dir if options.dataset == "folder" else None
    tables = embedding.embed(encoder, dataset, resources, root, known, log)
    if chief:
        count = table.WRITERS[os.path.splitext(options.output)[1]](
            options.output, tables, facts
        )
        shutil.rmtree(work, ignore_errors=True)
        log(f"{count:,} embeddings written to {options.output}.")
    else:
        list(tables)
    devices.barrier(strategy)


if __name__ == "__main__":
    main()
