"""What a search finds, as lines, a CSV file or a page with pictures."""

import csv
import dataclasses
import os

import numpy as np

from ressl_keras.data.reading import read_image
from ressl_keras.embeddings import duplicates as finding
from ressl_keras.embeddings.search import nearest_in
from ressl_keras.embeddings.table import Table, read_table
from ressl_keras.encoders.encoder import decoder_in, encoder_hash
from ressl_keras.errors import UsageError, printable
from ressl_keras.evaluation import pictures
from ressl_keras.evaluation.page import clean, folded, inline, load_template
from ressl_keras.files import writing

_SIDE = 160  # of a picture on a page, in pixels
_COLUMNS = ("group", "file", "set", "label", "similarity", "of")


@dataclasses.dataclass
class Source:
    """Embedded images and the folder that their files are in.

    Attributes:
        table: `Table`.
        folder: the folder, or None where no pictures are needed.
        name: for people.
    """

    table: Table
    folder: str | None = None
    name: str = ""

    @classmethod
    def read(cls, path, folder=None, like=None):
        """The images of a file.

        Raises:
            UsageError: if it is no table, or its encoder, or how its images were read,
                is another than in the source `like`.
        """
        table = read_table(path)
        found = cls(table, folder, os.path.basename(path))
        if like is not None:
            _check_alike(path, found, like)
        return found

    @classmethod
    def of_image(cls, path, encoder, bank):
        """One image, embedded.

        Raises:
            UsageError: if it cannot be read, or the bank's encoder is another.
        """
        if encoder_hash(encoder) != bank.encoder:
            raise UsageError(f"{bank.name} is of another encoder than --encoder.")
        size, decoder = encoder.image_size, encoder.decoder
        if bank.reading is not None:
            size = bank.reading["size"]
            decoder = decoder_in(bank.reading, decoder.channels)
        image = read_image(path, size, **dataclasses.asdict(decoder))
        embedding = np.asarray(encoder(image[np.newaxis]), np.float32)
        nothing = np.full([1, 2], -1)
        folder, file = os.path.split(path)
        return cls(Table([file], ["query"], [None], nothing, embedding), folder, file)

    @property
    def encoder(self):
        """Hash of the encoder."""
        return self.table.facts.get("encoder")

    @property
    def reading(self):
        """How the images were read, a dict; None in files of earlier versions."""
        return self.table.facts.get("images")

    def describe(self, index):
        """File, set and label of an image, a dict."""
        table = self.table
        return {
            "file": table.files[index],
            "set": table.sets[index],
            "label": table.labels[index] or "",
        }

    def picture(self, index):
        """A small picture of an image, inline; None where it cannot be read."""
        path = os.path.join(self.folder, self.table.files[index])
        try:
            image = read_image(path)
        except UsageError:
            return None
        return inline(pictures.fitted(pictures.shown(image), _SIDE))


def _check_alike(path, found, like):
    """Checks that two sources can be compared: of one encoder, read in one way."""
    if found.encoder != like.encoder:
        raise UsageError(
            f"{path} and {like.name} are of different encoders; embed both with one."
        )
    one, other = found.reading, like.reading
    if one is None or other is None or one == other:
        return
    differences = ", ".join(
        f"{name} is {one.get(name)} and {other.get(name)}"
        for name in one | other
        if one.get(name) != other.get(name)
    )
    raise UsageError(
        f"The images of {path} and {like.name} were read differently: {differences}. "
        "Embed both with the same flags."
    )


@dataclasses.dataclass
class Found:
    """Groups of images.

    Attributes:
        title: what they are.
        summary: how many there are, a sentence.
        groups: list of lists of (source, index, similarity, file it is similar to); the
            first of a group is the image that the others were found for.
    """

    title: str
    summary: str
    groups: list


def neighbours(asked, bank, count, index="exact"):
    """The nearest images of a bank to each that is asked for.

    Args:
        asked: `Source`; the bank itself, then no image finds itself.
        bank: `Source`.
        count: images found for each.
        index: as in `nearest_in`.

    Returns:
        `Found`.
    """
    more = count + (asked is bank)
    vectors = asked.table.embeddings, bank.table.embeddings
    found, similarities = nearest_in(*vectors, more, index)
    groups = []
    for row, (near, similar) in enumerate(zip(found, similarities)):
        name = asked.table.files[row]
        group = [(asked, row, None, "")]
        for other, value in zip(near, similar):
            if other < 0:  # fewer were found
                break
            if (asked is not bank or other != row) and len(group) <= count:
                group.append((bank, int(other), float(value), name))
        groups.append(group)
    summary = f"The {count} nearest of {len(bank.table):,} images in {bank.name}"
    return Found("Nearest images", f"{summary}, for {len(groups):,}.", groups)


def duplicates(asked, bank, similarity, index="exact"):
    """Groups of near-duplicates inside a source, or between two.

    Args:
        asked: `Source`; the bank itself for the duplicates inside it.
        bank: `Source`.
        similarity: cosine similarity from which two images count as near-duplicates.
        index: as in `nearest_in`.

    Returns:
        `Found`; groups with images of different sets come first, since they are leaks.
    """
    if asked is bank:
        return _within(bank, similarity, index)
    vectors = asked.table.embeddings, bank.table.embeddings
    by_row = {}
    for pair in finding.pairs_between(*vectors, similarity, index=index):
        by_row.setdefault(pair.first, []).append(pair)
    groups = []
    for row, pairs in by_row.items():
        name = asked.table.files[row]
        group = [(asked, row, None, "")]
        group += [(bank, pair.second, pair.similarity, name) for pair in pairs]
        groups.append(group)
    summary = (
        f"{len(groups):,} of {len(asked.table):,} images in {asked.name} have a "
        f"near-duplicate in {bank.name}, from similarity {similarity:g} on."
    )
    return Found("Leaks", summary, groups)


def _within(bank, similarity, index):
    table = bank.table
    pairs = finding.pairs_within(table.embeddings, similarity, index=index)
    best = {}
    for pair in pairs:  # the most alike first
        best.setdefault(pair.first, (pair.similarity, table.files[pair.second]))
        best.setdefault(pair.second, (pair.similarity, table.files[pair.first]))
    groups = []
    for members in finding.groups(pairs, len(table)):
        group = [(bank, int(row), *best[row]) for row in members]
        groups.append(sorted(group, key=lambda image: -image[2]))
    groups.sort(key=lambda group: -max(value for _, _, value, _ in group))
    groups.sort(key=lambda group: -len({table.sets[row] for _, row, _, _ in group}))
    leaks = sum(len({table.sets[row] for _, row, _, _ in g}) > 1 for g in groups)
    images = sum(map(len, groups))
    summary = (
        f"{len(groups):,} groups of near-duplicates, {images:,} of {len(table):,} "
        f"images, from similarity {similarity:g} on; {leaks:,} groups with images of "
        "more than one set."
    )
    return Found("Near-duplicates", summary, groups)


def _rows(found):
    """Dicts of the columns of a table, one for each image of each group."""
    for number, group in enumerate(found.groups, 1):
        for source, index, similarity, of in group:
            value = "" if similarity is None else f"{similarity:.4f}"
            described = source.describe(index)
            yield {"group": number, **described, "similarity": value, "of": of}


def as_text(found, most):
    """The first groups as lines of text."""
    lines = []
    for number, group in enumerate(found.groups[:most], 1):
        for place, (source, index, similarity, _) in enumerate(group):
            facts = source.describe(index)
            value = f"{number:>5}  " if place == 0 else " " * 7
            value += " " * 6 if similarity is None else f"{similarity:.4f}"
            shown = "  ".join(filter(None, (facts["set"], facts["label"])))
            lines.append(f"{value}  {printable(facts['file'])}  {shown}".rstrip())
    if len(found.groups) > most:
        lines.append(f"... and {len(found.groups) - most:,} more; --output has all.")
    return "\n".join(lines)


def write_csv(path, found):
    """Writes all groups as a table, a row for each image."""
    with writing(path, newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        writer.writerows(_rows(found))


def write_page(path, found, most, command=None):
    """Writes the first groups as one HTML file with pictures, to judge by eye."""
    groups = []
    for group in found.groups[:most]:
        tiles = []
        for source, index, similarity, of in group:
            facts = {k: clean(v) for k, v in source.describe(index).items()}
            value = "" if similarity is None else f"{similarity:.3f}"
            picture = source.picture(index)
            tiles.append(
                {**facts, "similarity": value, "of": clean(of), "picture": picture}
            )
        groups.append({"tiles": tiles, "leak": len({t["set"] for t in tiles}) > 1})
    page = load_template("ressl_keras.embeddings", "listing.html").render(
        title=found.title,
        summary=found.summary,
        groups=groups,
        left_out=len(found.groups) - len(groups),
        command=command and clean(folded(command)),
    )
    with writing(path) as file:
        file.write(page)
