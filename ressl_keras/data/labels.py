"""Which images of a folder have which label, and which are held out."""

import collections
import csv
import dataclasses
import os

from ressl_keras.data import folders
from ressl_keras.errors import UsageError, printable

FOLDERS, NONE = "folders", "none"


@dataclasses.dataclass
class Assignment:
    """The images of a folder by what they are for, lists of (path, class).

    Attributes:
        pretrain: images to learn from.
        class_names: sorted; empty without labels, and then the others are empty too.
        train: the labelled images among them.
        held_out: labelled images that are never learned from.
    """

    pretrain: list
    class_names: list = dataclasses.field(default_factory=list)
    train: list = dataclasses.field(default_factory=list)
    held_out: list = dataclasses.field(default_factory=list)

    def without(self, paths):
        """The same without some images; without labels if none of a set are left."""
        pretrain, train, held_out = (
            [file for file in files if file[0] not in paths]
            for files in (self.pretrain, self.train, self.held_out)
        )
        if not train or not held_out:
            return Assignment(pretrain)
        return Assignment(pretrain, self.class_names, train, held_out)


def assign(listing, source, log=print):
    """Gives the images of a folder their labels and holds some out.

    Args:
        listing: `folders.Listing`.
        source: `folders`: sub-folders are classes; `none`; or what `read_table`
            returns.
        log: called with a line of text about what is ignored.

    Returns:
        An `Assignment`.
    """
    if source == NONE:
        return Assignment([*listing.files, *listing.held_out])
    if source == FOLDERS:
        class_names, files, held_out = folders.choose_classes(listing, log)
        return Assignment(files, class_names, files if class_names else [], held_out)
    return _assign_from_table(listing, source, log)


def _assign_from_table(listing, table, log):
    """Images without a row are learned from; of the others some are held out."""
    rows = collections.Counter(table.keys())

    def labelled(files):
        found = []
        for path, _ in files:
            label = table.get(os.path.abspath(path))
            rows.pop(os.path.abspath(path), None)
            if label is not None:
                found.append((path, label))
        return found

    train, held_out = labelled(listing.files), labelled(listing.held_out)
    if rows:
        log(
            f"Warning: {len(rows)} rows of --labels name no readable image of the "
            f"folder, such as {printable(next(iter(rows)))}."
        )
    if not held_out:
        if len(listing.names) > 1:
            log(
                f"No image of {listing.names[1]} has a row in --labels; every tenth of "
                f"{listing.names[0]} that has one is held out instead."
            )
        train, held_out = folders.hold_out(train)
    known = {label for _, label in train}
    class_names = sorted(known)
    held_out = [file for file in held_out if file[1] in known]
    if len(class_names) < 2 or not held_out:
        log(
            f"Warning: {len(train)} labelled images of {len(class_names)} classes are "
            "too few to evaluate the encoder with; none is held out."
        )
        return Assignment(listing.files)
    kept = {path for path, _ in held_out}
    pretrain = [file for file in listing.files if file[0] not in kept]
    return Assignment(pretrain, class_names, train, held_out)


def read_table(path, root):
    """Reads a table of labels.

    Args:
        path: CSV file with an image and its label in each row. A first row whose image
            is not there is a heading. A row without a label says nothing.
        root: folder that the images' paths are relative to.

    Returns:
        Dict from absolute path to label.

    Raises:
        UsageError: if the file cannot be read, a row has fewer than two cells, or an
            image has two labels.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if any(map(str.strip, row))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"--labels={path} cannot be read: {reason}. It is {FOLDERS}, {NONE}, or a "
            "CSV file of images and labels."
        ) from error
    table = {}
    for number, row in enumerate(rows, 1):
        if len(row) < 2:
            raise UsageError(
                f"{path}, row {number}: expected a file and a label, separated by a "
                f"comma; got {row[0]!r}."
            )
        name, label = (cell.strip() for cell in row[:2])
        image = os.path.abspath(os.path.join(root, name))
        if not label or (number == 1 and not os.path.exists(image)):
            continue
        if table.setdefault(image, label) != label:
            raise UsageError(f"{path}, row {number}: {name} has two labels.")
    return table
