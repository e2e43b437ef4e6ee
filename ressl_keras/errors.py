"""How the package says that a request cannot be met."""

import contextlib
import difflib
import errno
import os

# How the name of a file begins until it is complete.
TEMPORARY = "writing-"
# What a disk can refuse: no space, a limit, no permission, a fault.
_DISK = ("ENOSPC", "EFBIG", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO", "ENOTCONN")
_DISK_ERRORS = tuple(getattr(errno, name) for name in _DISK if hasattr(errno, name))


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


def first_line(error):
    """The first line of an exception's message that is not blank, or its class."""
    lines = [line.strip() for line in str(error).split("\n") if line.strip()]
    return lines[0] if lines else type(error).__name__


def disk_error(error):
    """The `OSError` of a disk that an exception stands for, or None.

    HDF5 and TensorFlow have exceptions of their own and put the reason into the text.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            return OSError(error.errno, os.strerror(error.errno), error.filename)
        for number in _DISK_ERRORS:
            if os.strerror(number) in str(error):
                return OSError(number, os.strerror(number))
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def naming_disk_errors(path):
    """Turns whatever a library raises for a full disk into an `OSError` with the path.

    Args:
        path: what is written, where the error names no file or a temporary one.

    Raises:
        OSError: which a command prints in one line.
    """
    try:
        yield
    except Exception as error:
        found = disk_error(error)
        if found is None:
            raise
        name = os.path.basename(os.fsdecode(found.filename or TEMPORARY))
        if not name.startswith(TEMPORARY):
            raise
        raise OSError(found.errno, found.strerror, str(path)) from error
