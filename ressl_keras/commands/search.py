"""Finds images that are alike: neighbours, near-duplicates, leaks.

  ressl-search --embeddings=mine.parquet --data_dir=my_images --output=near.html
  ressl-search --embeddings=mine.parquet --query=cat.jpg --encoder=runs/mine
  ressl-search --embeddings=mine.parquet --duplicates --output=duplicates.html
  ressl-search --embeddings=train.parquet --against=test.parquet --duplicates

It reads what ressl-embed wrote. Nothing is moved or deleted.
"""

import dataclasses
import os

from ressl_keras import cli
from ressl_keras.commands.encoder_options import PreprocessingOptions
from ressl_keras.errors import UsageError
from ressl_keras.settings import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchOptions(PreprocessingOptions):
    """Flags of the command."""

    embeddings: str = setting(
        None,
        "Parquet file of ressl-embed to search in.",
        group="Images",
        first=True,
        required=True,
        path=True,
    )
    against: str | None = setting(
        None,
        "Second Parquet file, whose images are looked up in the first: test images "
        "among those of the training, say.",
        group="Images",
        first=True,
        path=True,
    )
    query: str | None = setting(
        None,
        "Image file to look up, embedded by --encoder. Default: every image.",
        group="Images",
        first=True,
        path=True,
    )
    encoder: str | None = setting(
        None,
        "Encoder of --query: a .keras file or a run, the one of the embeddings.",
        group="Images",
        first=True,
        path=True,
    )
    data_dir: str | None = setting(
        None,
        "Folder that the names in the file are relative to, for pictures.",
        group="Images",
        first=True,
        path=True,
    )
    against_data_dir: str | None = setting(
        None, "The same of --against. Default: --data_dir.", group="Images", path=True
    )
    neighbours: int = setting(
        5,
        "Images found for each.",
        group="Search",
        first=True,
        low=1,
        high=1000,
    )
    duplicates: bool = setting(
        False, "List groups of near-duplicates instead.", group="Search", first=True
    )
    similarity: float = setting(
        0.99,
        "Cosine similarity from which two images count as near-duplicates.",
        group="Search",
        first=True,
        above=0,
        high=1,
    )
    index: str = setting(
        "exact",
        "exact compares each image with every other; hnsw is faiss' approximate index, "
        "for millions.",
        group="Search",
        choices=("exact", "hnsw"),
    )
    output: tuple[str, ...] | None = setting(
        None,
        "Files to write, separated by commas: .csv, or .html with pictures. Default: a "
        "table on the screen.",
        group="Output",
        first=True,
        path=True,
    )
    most: int = setting(
        200,
        "Rows shown on the screen and on a page; a .csv has all.",
        group="Output",
        low=1,
        high=10000,
    )

    def __post_init__(self):
        super().__post_init__()
        if (self.query is None) != (self.encoder is None):
            raise UsageError("--query and --encoder go together.")
        if self.query and (self.duplicates or self.against):
            raise UsageError("--query goes neither with --duplicates nor --against.")
        for path in self.output or ():
            ending = os.path.splitext(path)[1]
            if ending not in (".csv", ".html"):
                raise UsageError(f"--output={path} ends neither in .csv nor .html.")
            if ending == ".html" and not self.data_dir:
                raise UsageError("A page with pictures needs --data_dir.")


def main():
    """The command."""
    cli.run(search, SearchOptions, __doc__)


def search(options):
    """Searches as the options say."""
    from ressl_keras.embeddings import listing
    from ressl_keras.encoders.encoder import load_encoder

    bank = listing.Source.read(options.embeddings, options.data_dir)
    asked = bank
    if options.query:
        asked = listing.Source.of_image(
            options.query, load_encoder(options.encoder, options.preprocessing), bank
        )
    elif options.against:
        folder = options.against_data_dir or options.data_dir
        asked = listing.Source.read(options.against, folder, like=bank)
    if options.duplicates:
        found = listing.duplicates(asked, bank, options.similarity, options.index)
    else:
        found = listing.neighbours(asked, bank, options.neighbours, options.index)
    print(found.summary)
    if options.output is None:
        print(listing.as_text(found, options.most))
        return
    for path in options.output:
        if path.endswith(".csv"):
            listing.write_csv(path, found)
        else:
            listing.write_page(path, found, options.most, cli.command_line())
    print(f"Written to {' and '.join(options.output)}.")


if __name__ == "__main__":
    main()
