"""Files that are whole or not there: written aside, renamed, and read back."""

import contextlib
import csv
import errno
import fcntl
import json
import os
import pathlib

from ressl_keras.errors import TEMPORARY, naming_disk_errors

# What reading a file raises that is not what was written.
_DAMAGES = (ValueError, KeyError, TypeError, RecursionError, csv.Error)
_DAMAGES += (IsADirectoryError,)


def cached(name):
    """Path of a file in the user's cache, of what can be found out again."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(caches, "ressl_keras", name)


@contextlib.contextmanager
def replacing(path):
    """Yields a temporary path whose file replaces `path` at the end.

    A reader never finds half a file, and a failure leaves the old one. The temporary
    file is in the same folder and its name ends like that of `path`.
    """
    with naming_disk_errors(path), writing_beside(path) as temporary:
        yield temporary
        if os.path.isdir(path):
            set_aside(path)
        replace_on_disk(temporary, path)


def replace_on_disk(temporary, path):
    """Renames a complete file or folder; returns once it and its name are on the disk.

    A file that is renamed before its contents are on the disk can be empty after a
    power cut, and the one that it replaced is gone.
    """
    for inside in pathlib.Path(temporary).rglob("*"):  # nothing in a file
        _flush(inside)
    _flush(temporary)
    os.replace(temporary, path)
    _flush(os.path.dirname(path) or ".")


def _flush(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network disks cannot flush a folder.
        unable = error.errno in (errno.EINVAL, errno.ENOTSUP, errno.EBADF)
        if not (unable and os.path.isdir(path)):
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing_beside(path):
    """Yields a temporary path in the same folder; what is left there is removed."""
    folder, name = os.path.split(str(path))
    temporary = os.path.join(folder, TEMPORARY + name)
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)


def lock(file, wait=False):
    """Takes the lock of an open file.

    The operating system drops it when the process ends in whatever way. It also holds
    on most network disks.

    Args:
        file: descriptor of the file.
        wait: whether to wait for another process that holds the lock.

    Returns:
        Whether it is taken; False on a disk that has no locks.

    Raises:
        BlockingIOError: if another process holds it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        return False
    return True


def open_text(path, mode="r", newline=None):
    """Opens a text file; file names in it that are no UTF-8 keep their bytes."""
    return open(path, mode, newline=newline, encoding="utf-8", errors="surrogateescape")


@contextlib.contextmanager
def writing(path, newline=None):
    """Yields a file of `open_text` that replaces `path` at the end."""
    with replacing(path) as temporary, open_text(temporary, "w", newline) as file:
        yield file


def write_lines(path, lines):
    """Writes a text file."""
    with writing(path) as file:
        file.writelines(f"{line}\n" for line in lines)


def read_lines(path):
    """Lines of a text file; bytes that are no UTF-8 become replacement characters."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        return file.read().splitlines()


def write_json(path, value):
    """Writes a JSON file."""
    write_lines(path, [json.dumps(value, indent=2)])


def read_json(path):
    """The dict in a JSON file; empty without the file. A damaged one is set aside."""
    found = unless_damaged(path, _load_dict)
    return {} if found is None else found


def unless_damaged(path, read):
    """What `read` returns of a file; None without the file.

    A file that it cannot make sense of is set aside, so that it stops no later start.

    Args:
        path: file to read.
        read: function of the path. `ValueError` says that the file is damaged.
    """
    if not os.path.exists(path):
        return None
    try:
        return read(path)
    except _DAMAGES:
        set_aside(path)
        return None


def set_aside(path):
    """Renames what is damaged, so that it is out of the way and can be looked at."""
    folder, name = os.path.split(path)
    damaged = os.path.join(folder, f"damaged-{name}")
    with contextlib.suppress(OSError):  # another process may have renamed it
        os.replace(path, damaged)
    print(f"{path} is damaged and set aside as {damaged}.", flush=True)


def _load_dict(path):
    with open(path, encoding="utf-8") as file:
        value = json.load(file)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value
