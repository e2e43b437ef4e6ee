"""What earlier checks found out about the files of a folder.

One file for each folder, in the user's cache folder: 33 bytes for each image.
"""

import hashlib
import os

import numpy as np

from ressl_keras.files import cached, replacing

UNKNOWN, CHECKED = 0, 1
# The key is a hash of the path below the folder; `size` is height and width, 0 where
# the file cannot be decoded.
_ENTRY = np.dtype(
    [
        ("key", "<u8"),
        ("bytes", "<i8"),
        ("time", "<i8"),
        ("size", "<i4", 2),
        ("state", "u1"),
    ]
)


class CheckMemory:
    """The file of a folder.

    Args:
        root: the folder.
        what: text; checks of another kind have a file of their own.
    """

    def __init__(self, root, what=""):
        self.root = root
        place = os.fsencode(os.path.realpath(root)) + b"\0" + what.encode()
        self.path = cached(f"check-{_key(place):016x}.npy")

    def entries(self, paths, known=True):
        """One entry for each path; its state says whether it is known.

        Args:
            paths: list of paths below the folder.
            known: whether to look into the file.

        Returns:
            Structured array [count] with `size` and `state`, to be completed.
        """
        start, count = len(os.path.join(self.root, "")), len(paths)
        found = np.zeros(count, _ENTRY)
        keys = (_key(os.fsencode(path[start:])) for path in paths)
        found["key"] = np.fromiter(keys, np.uint64, count)
        facts = np.fromiter(map(_facts, paths), np.dtype((np.int64, 2)), count)
        found["bytes"], found["time"] = facts.T
        earlier = self._read()
        if known and len(earlier) and count:
            there = np.searchsorted(earlier["key"], found["key"])
            earlier = earlier[np.minimum(there, len(earlier) - 1)]
            facts = ("key", "bytes", "time")
            same = np.all([earlier[name] == found[name] for name in facts], axis=0)
            found[same] = earlier[same]
        return found

    def keep(self, entries, log=print):
        """Writes what is known now, beside what was known of other files.

        Args:
            entries: as `entries` returned them.
            log: called with a line of text if the file cannot be written.
        """
        known = entries[entries["state"] == CHECKED]
        earlier = self._read()
        others = earlier[~np.isin(earlier["key"], entries["key"])][: len(entries)]
        kept = np.concatenate([known, others])
        kept = kept[np.argsort(kept["key"])]
        try:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            with replacing(self.path) as temporary:
                np.save(temporary, kept)
        except OSError as error:
            log(f"The check is not remembered: {self.path}: {error.strerror}.")

    def _read(self):
        """Entries of the file, sorted by key; none if it is absent or damaged."""
        try:
            found = np.load(self.path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            found = None
        fits = isinstance(found, np.ndarray) and found.dtype == _ENTRY
        return found if fits and found.ndim == 1 else np.zeros(0, _ENTRY)


def _facts(path):
    """Size in bytes and time of change in nanoseconds."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, 0
    return status.st_size, status.st_mtime_ns


def _key(text):
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
