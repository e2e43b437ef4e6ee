"""How the package says that a request cannot be met."""

import difflib


class UsageError(ValueError):
    """A mistake that the user can correct, reported in one line.

    The commands print its message without a traceback and exit with status 1. Any
    other exception is a defect and keeps its traceback.
    """


def closest(name, names, count=3, first=()):
    """A hint at the known names most like an unknown one, ignoring case.

    Args:
        name: the unknown name.
        names: the known names; of several alike, earlier ones come first.
        count: names to hint at.
        first: names that come before the others in the hint.

    Returns:
        A sentence.
    """
    names, known = list(names), {}
    for candidate in names:
        known.setdefault(candidate.lower(), candidate)
    matches = difflib.get_close_matches(name.lower(), known, n=count, cutoff=0.5)
    if not matches:
        return f"Known are {', '.join(sorted(names)[:40])}."
    found = [known[match] for match in matches]
    if first:
        found.sort(key=lambda candidate: candidate not in first)
    return f"Did you mean {' or '.join(found)}?"


def printable(text):
    r"""A text, such as a file name, that any terminal takes on one line.

    Bytes that are no UTF-8 and unprintable characters become escapes like `\udcff`.
    """
    text = str(text).encode("utf-8", "backslashreplace").decode()
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )
