"""Packs a folder of images into a few large files, which disks read faster.

  ressl-pack --data_dir=my_images --output=my_shards
  ressl-train --recipe=folder --dataset=packed --data_dir=my_shards

The files of the images are not changed. Training on the shards equals training
on the folder.
"""

import dataclasses
import functools
import shlex

from ressl_keras import cli
from ressl_keras.errors import printable
from ressl_keras.settings import Options, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackOptions(Options):
    """Flags of the command."""

    data_dir: str = setting(
        None,
        "The folder of images.",
        group="Data",
        first=True,
        required=True,
        path=True,
    )
    labels: str = setting(
        "folders",
        "Classes of the images: 'folders' (sub-folders are classes), 'none', or a CSV "
        "file with a file and a label in each row.",
        group="Data",
        first=True,
    )
    check_images: bool = setting(
        True,
        "Decode every image once and leave out those that cannot be read.",
        group="Data",
    )
    output: str = setting(
        None,
        "Folder to write into, absent or empty.",
        group="Output",
        first=True,
        required=True,
        path=True,
    )
    format: str = setting(
        "tfrecord",
        "Kind of the shards: tfrecord, or tar as WebDataset reads it.",
        group="Output",
        first=True,
        choices=("tfrecord", "tar"),
    )
    shard_mib: int = setting(
        256, "Size of a shard in MiB.", group="Output", low=1, high=2**20
    )


def main():
    """The command."""
    cli.run(pack, PackOptions, __doc__)


def pack(options):
    """Packs as the options say."""
    from ressl_keras.data import checking, packing
    from ressl_keras.data.datasets import load_dataset

    packing.prepare(options.output)  # refused before any image is read
    log = functools.partial(print, flush=True)
    dataset = load_dataset(
        "folder",
        options.data_dir,
        check=options.check_images,
        memory_limit=0,
        labels=options.labels,
        log=log,
    )
    for path in dataset.skipped:
        log(f"Left out, since it cannot be decoded: {printable(path)}")
    with checking.naming_unreadable(dataset.files):
        counts = packing.pack(
            dataset,
            options.data_dir,
            options.output,
            options.format,
            options.shard_mib * 2**20,
            options.check_images,
            log,
        )
    found = " and ".join(
        f"{count:,} images of {name}" for name, count in counts.items()
    )
    log(f"{found} are in {printable(options.output)}. To learn from them:")
    words = ["ressl-train", "--recipe=folder", "--dataset=packed"]
    words.append(f"--data_dir={options.output}")
    log(f"  {shlex.join(words)}")


if __name__ == "__main__":
    main()
