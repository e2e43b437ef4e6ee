"""How the package says that a request cannot be met."""

import difflib


class UsageError(ValueError):
    """A mistake that the user can correct, reported in one line.

    The commands print its message without a traceback and exit with status 1. Any
    other exception is a defect and keeps its traceback.
    """


def closest(name, names, count=3):
    """A hint at the known names most like an unknown one, ignoring case.

    Args:
        name: the unknown name.
        names: the known names; of several alike, earlier ones come first.
        count: names to hint at.

    Returns:
        A sentence.
    """
    known = {candidate.lower(): candidate for candidate in names}
    matches = difflib.get_close_matches(name.lower(), known, n=count, cutoff=0.5)
    if not matches:
        return f"Known are {', '.join(sorted(names)[:40])}."
    return f"Did you mean {' or '.join(known[match] for match in matches)}?"


def printable(text):
    r"""A text, such as a file name, that any terminal takes on one line.

    Bytes that are no UTF-8 and unprintable characters become escapes like `\udcff`.
    """
    text = str(text).encode("utf-8", "backslashreplace").decode()
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )
