"""The tree of an image folder: which files are images, of which set and class."""

import collections
import dataclasses
import os
import stat
import sys

from ressl_keras.errors import UsageError, printable

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")

# Names of folders that are sets of images and never classes, ignoring case.
_SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("val", "valid", "validation"),
}
# What operating systems and storage devices leave in folders, ignoring case.
_FOREIGN = ("__macosx", "@eadir", "$recycle.bin", "system volume information")
_FOREIGN += ("lost+found", "thumbs.db", "desktop.ini")
# Tiny ImageNet's list of the classes of the images in val/images.
_CLASS_LIST = "val_annotations.txt"


@dataclasses.dataclass
class Listing:
    """Images of a folder, before any was read.

    Attributes:
        files: (path, class) of images to learn from, sorted; the class is empty for
            images outside of class folders.
        held_out: the same of the images that are never learned from; empty where the
            folder has no such set.
        names: names of the two sets' folders, empty without such folders.
        others: how many files of other kinds there are, in words; may be empty.
    """

    files: list
    held_out: list = dataclasses.field(default_factory=list)
    names: tuple = ()
    others: str = ""


def list_images(root, log=print, with_sets=True):
    """Finds the images of a folder.

    Args:
        root: the folder. Its sub-folders are `train` and `test` or `validation`, under
            any of the usual names; else they are classes.
        log: called with a line of text about what is ignored.
        with_sets: whether to look for the two sets; if not, all is one set.

    Returns:
        A `Listing`.

    Raises:
        UsageError: if there is no such folder, it cannot be read, or the names of its
            sub-folders have no single meaning.
    """
    if not root:
        raise UsageError("--dataset=folder needs --data_dir, the folder of images.")
    if not os.path.isdir(root):
        raise UsageError(f"There is no folder {root}.")
    splits = _find_splits(root, log) if with_sets else ()
    folders = [os.path.join(root, name) for name in splits] if splits else [root]
    paths, others, passed_over = _walk(folders)
    if passed_over:
        log(
            f"{passed_over} links to images or folders that are listed already are "
            "not followed."
        )
    if others:
        log(f"{others}.")
    found = [_with_classes(paths, folder, log) for folder in folders]
    return Listing(*found, names=splits, others=others)


def choose_classes(listing, log=print):
    """Decides which images have labels, and which are held out.

    Args:
        listing: `Listing` of the readable images.
        log: called with a line of text about what is ignored.

    Returns:
        Tuple of class names, files to learn from and files held out, lists of
        (path, class). Without labels the first and the last are empty.
    """
    files, held_out = listing.files, listing.held_out
    class_names = sorted({name for _, name in files} - {""})
    if len(class_names) < 2:
        if held_out:
            log(f"{listing.names[1]} is not used: {listing.names[0]} has no classes.")
        return [], files, []
    loose = [path for path, name in files if not name]
    if loose:
        log(
            f"Warning: {len(loose)} images outside of the class folders are ignored, "
            f"such as {printable(loose[0])}."
        )
        files = [file for file in files if file[1]]
    if len(listing.names) > 1 and held_out:
        held_out = _of_known_classes(listing, class_names, log)
        return (class_names if held_out else []), files, held_out
    if len(listing.names) > 1:
        log(
            f"Warning: {listing.names[1]} has no readable image; every tenth image of "
            f"{listing.names[0]} is held out instead."
        )
    # Without a set of its own, every tenth image of the sorted list is held out, in
    # training and in evaluation alike.
    train, held_out = hold_out(files)
    if not held_out:
        log("Fewer than ten images: none is held out to evaluate the encoder on.")
        return [], files, []
    return class_names, train, held_out


def hold_out(files):
    """Splits a sorted list: nine of ten to learn from, and every tenth held out."""
    return [f for i, f in enumerate(files) if i % 10 != 9], files[9::10]


def _of_known_classes(listing, class_names, log):
    """The held-out files of classes to learn from; says what is left out."""
    train, test = listing.names
    tested = {name for _, name in listing.held_out}
    learned = set(class_names)
    known = [file for file in listing.held_out if file[1] in learned]
    if not known:
        log(
            f"Warning: {train} and {test} have no class in common; {test} is ignored, "
            "and the encoder is not evaluated."
        )
        return []
    unknown = tested - learned
    if unknown:
        log(
            f"Warning: {len(listing.held_out) - len(known)} images of {test} are "
            f"ignored, since {train} lacks their classes: {_listed(unknown)}."
        )
    untested = learned - tested
    if untested:
        log(f"Warning: {test} lacks classes of {train}: {_listed(untested)}.")
    return known


def _listed(names, most=5):
    """Some names for a line of text."""
    shown = [printable(name) or "(no folder)" for name in sorted(names)]
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + more


def _find_splits(root, log):
    """Names of the folders to learn from and to evaluate on; empty for classes.

    Raises:
        UsageError: if the names have no single meaning.
    """
    folders = [entry.name for entry in _scan(root) if _is_folder(entry)]
    found = {split: [] for split in _SPLITS}
    for name in folders:
        for split in found:
            found[split] += [name] if split_of(name) == split else []
    for names in found.values():
        if len(names) > 1:
            raise UsageError(
                f"{root} has {_listed(names)}, which mean the same; leave one of them."
            )
    chosen = [name for names in found.values() for name in names]
    others = [name for name in folders if name not in chosen]
    if not chosen:
        return ()
    if not found["train"] or (len(chosen) == 1 and others):
        beside = f"beside {_listed(others)}" if found["train"] else "but no train"
        raise UsageError(
            f"{root} has {_listed(chosen)}, {beside}. Folders of this name are sets of "
            "images, not classes: rename what is a class, or give the folder with the "
            "images as --data_dir."
        )
    if len(chosen) > 2 and _classes(root, chosen[0]):
        # The first of test and validation that can be evaluated on.
        def lacks_classes(name):
            known = _classes(root, chosen[0], name)
            return not (known or _class_list(os.path.join(root, name)))

        chosen[1:] = sorted(chosen[1:], key=lacks_classes)
    ignored = [*chosen[2:], *others]
    if ignored:
        log(f"Warning: ignored beside {_listed(chosen[:2])}: {_listed(ignored)}.")
    return tuple(chosen[:2])


def _classes(root, *names):
    """Names of the sub-folders that all of some folders have, a set."""
    found = [
        {entry.name for entry in _scan(os.path.join(root, name)) if _is_folder(entry)}
        for name in names
    ]
    return set.intersection(*found)


def split_of(name):
    """`train`, `test` or `validation` where that is what a name means, or None."""
    lowered = name.lower()
    return next((split for split, names in _SPLITS.items() if lowered in names), None)


def _with_classes(paths, folder, log):
    """Sorted (path, class) of the paths below a folder: classes are its folders.

    A list of classes in the folder comes before its folders.
    """
    inside, listed = os.path.join(folder, ""), _class_list(folder)
    found, inner = [], set()
    for path in sorted(path for path in paths if path.startswith(inside)):
        head, *rest = path[len(inside) :].split(os.sep)
        name = listed.get(os.path.basename(path), head if rest else "")
        # One text for a class, not one for each of its images.
        found.append((path, sys.intern(name)))
        if len(rest) > 1 and split_of(rest[0]):
            inner.add(os.path.join(head, rest[0]))
    if inner:
        log(
            f"Warning: {_listed(inner)} are read as parts of their classes; sets are "
            "looked for in --data_dir itself."
        )
    return found


def _class_list(folder):
    """Classes by file name where a folder has Tiny ImageNet's list of them, or {}.

    Raises:
        UsageError: if the list cannot be read, or a line has no class.
    """
    path = os.path.join(folder, _CLASS_LIST)
    if not os.path.isfile(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{printable(path)} cannot be read: {reason}.") from error
    classes = {}
    for number, line in enumerate(lines, 1):
        name, *cells = line.split("\t")
        if not line.strip():
            continue
        if not cells or not cells[0].strip():
            raise UsageError(
                f"{printable(path)}, line {number}: expected a file and its class, "
                "separated by a tab."
            )
        classes[name] = cells[0].strip()
    return classes


def _walk(folders):
    """Paths of the image files below some folders; no folder and no file twice.

    A link never leads to a folder above, or to one that was listed. Links come last,
    so that what they point to keeps the place where it is.

    Returns:
        Tuple of the paths, the number of other files in words, and the number of links
        that were not followed.
    """
    seen = {place for folder in folders for place in _above(folder)}
    seen.difference_update(map(_identity, folders))
    waiting, links, files, file_links = list(folders)[::-1], [], [], []
    passed_over, others = 0, collections.Counter()
    while waiting or links:
        links.sort(reverse=True)
        linked = not waiting
        folder = links.pop() if linked else waiting.pop()
        place = _identity(folder)
        if place in seen:
            passed_over += linked
            continue
        seen.add(place)
        for entry in _scan(folder):
            if _is_folder(entry):
                (links if entry.is_symlink() else waiting).append(entry.path)
            elif entry.name.lower().endswith(SUFFIXES):
                # A named pipe or a device is not an image, and reading it may never
                # end. Entries are not kept: they are several times as large as paths.
                if entry.is_symlink():
                    file_links.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    files.append(entry.path)
            else:
                others[os.path.splitext(entry.name)[1].lower()] += 1
    linked = _distinct_links(files, file_links)
    passed_over += len(file_links) - len(linked)
    return files + linked, _counted(others), passed_over


def _counted(endings, most=5):
    """Such as `9 files passed over: 8 .heic, 1 .txt`."""
    if not endings:
        return ""
    shown = [
        f"{count:,} {printable(ending) or 'without ending'}"
        for ending, count in endings.most_common(most)
    ]
    rest = endings.total() - sum(count for _, count in endings.most_common(most))
    shown += [f"{rest:,} others"] if rest else []
    files = "file" if endings.total() == 1 else "files"
    return f"{endings.total():,} {files} passed over: {', '.join(shown)}"


def _distinct_links(paths, links):
    """Links to files that are neither listed nor linked to before.

    One that leads nowhere is kept: it is an image that cannot be read.
    """
    if not links:
        return []
    seen = set(map(_identity, paths))
    kept = []
    for link in sorted(links):
        try:
            status = os.stat(link)
        except OSError:
            kept.append(link)
            continue
        place = status.st_dev, status.st_ino
        if stat.S_ISREG(status.st_mode) and place not in seen:
            seen.add(place)
            kept.append(link)
    return kept


def _scan(folder):
    """Entries of a folder by name, without hidden and foreign ones.

    Raises:
        UsageError: if it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(
                (entry for entry in entries if not _is_foreign(entry.name)),
                key=lambda entry: entry.name,
            )
    except OSError as error:
        raise UsageError(
            f"The folder {printable(folder)} cannot be read: {error.strerror}."
        ) from error


def _is_foreign(name):
    return name.startswith(".") or name.lower() in _FOREIGN


def _is_folder(entry):
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(path):
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _above(folder):
    """Identities of the folders that a folder is in."""
    path = os.path.realpath(folder)
    while path != os.path.dirname(path):
        path = os.path.dirname(path)
        yield _identity(path)
