"""Checks which images of a folder can be read.

  ressl-check --data_dir=my_images
  ressl-check --data_dir=my_images --output=unreadable.txt

Every image is decoded, several at a time. What is found is remembered by path,
size and time of change, so a second check reads new and changed files only.
Training does not need it: it replaces what cannot be read, and lists it.
"""

import collections
import dataclasses

from ressl_keras import cli
from ressl_keras.errors import printable
from ressl_keras.image_options import ImageOptions
from ressl_keras.settings import setting

_SHOWN = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckOptions(ImageOptions):
    """Flags of the command."""

    data_dir: str = setting(
        None,
        "The image folder.",
        group="Data",
        first=True,
        required=True,
        path=True,
    )
    again: bool = setting(
        False,
        "Decode all images, also those that an earlier check knows.",
        group="Data",
        first=True,
    )
    output: str | None = setting(
        None,
        "File to list the unreadable images in: the reason, a tab and the path.",
        group="Output",
        first=True,
        path=True,
    )


def main():
    """The command."""
    cli.run(check, CheckOptions, __doc__)


def check(options, log=print):
    """Checks a folder as the options say."""
    from ressl_keras.data import checking, folders
    from ressl_keras.data.decoding import Decoder
    from ressl_keras.training.skipped import write_faults

    listing = folders.list_images(options.data_dir, log, with_sets=False)
    paths = [path for path, _ in listing.files]
    decoder = Decoder(options.exif_orientation, options.value_range, options.channels)
    _, faults = checking.check(
        paths, options.data_dir, decoder, log, again=options.again
    )
    log(f"{len(paths):,} images, {len(faults):,} unreadable.")
    for reason, count in collections.Counter(faults.values()).most_common():
        log(f"{count:,} {reason}, such as:")
        some = [path for path, why in faults.items() if why == reason][:_SHOWN]
        log("\n".join(f"  {printable(path)}" for path in some))
    if options.output:
        write_faults(options.output, faults)
        log(f"They are listed in {options.output}.")


if __name__ == "__main__":
    main()
