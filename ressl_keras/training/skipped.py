"""What a run could not read: a list in its folder, and a limit."""

import keras

from ressl_keras.errors import UsageError, printable
from ressl_keras.files import open_text, write_lines


def write_faults(path, faults):
    """Lists unreadable images in a file: the reason, a tab and the path in each line.

    Args:
        path: of the file; `cut -f2-` shows the paths in it.
        faults: dict from path to reason.
    """
    write_lines(path, [f"{reason}\t{name}" for name, reason in faults.items()])


def read_faults(path):
    """What `write_faults` wrote; without the file, or of another kind, empty.

    A path with a line break in it is not found again.
    """
    try:
        with open_text(path, newline="\n") as file:
            lines = [line.rstrip("\n").partition("\t") for line in file]
    except OSError:
        return {}
    return {name: reason for reason, tab, name in lines if tab and name}


class SkippedList:
    """The file that lists the unreadable images of a run.

    Args:
        path: of the file.
        keep: whether to keep what an earlier part of the run wrote.
    """

    def __init__(self, path, keep):
        self.path, self._faults = path, read_faults(path) if keep else {}

    def add(self, faults):
        """Writes the file again if there is something new.

        Args:
            faults: dict from path to reason.

        Returns:
            List of the paths that are new.
        """
        new = [path for path in faults if path not in self._faults]
        if new:
            self._faults |= faults
            write_faults(self.path, self._faults)
        return new


def announce(faults, skipped, log):
    """Lists images that were left out before a run, and says so.

    Args:
        faults: dict from path to reason; may be empty.
        skipped: `SkippedList`.
        log: called with a line of text.
    """
    if not faults:
        return
    skipped.add(faults)
    log(f"{len(faults)} unreadable images skipped, listed in {skipped.path}:")
    log("\n".join(f"  {printable(path)}" for path in list(faults)[:5]))


class SkippedImages(keras.callbacks.Callback):
    """Lists after each epoch what could not be read, and stops where it is too much.

    Each of several workers knows what it tried to read itself; the chief lists that.

    Args:
        dataset: `Dataset` of the run.
        share: of the images read so far that may be unreadable, 0-1.
        skipped: `SkippedList`, or None to write nothing.
        log: called with a line of text.
        save: function that saves the state and returns a sentence about it.

    Raises:
        UsageError: if more cannot be read than the share allows.
    """

    lazy = True  # see `LazyCallbacks`

    def __init__(self, dataset, share, skipped, log, save):
        super().__init__()
        self.dataset, self.share, self.skipped = dataset, share, skipped
        self.log, self.save = log, save
        if skipped:
            skipped.add(dataset.skipped)

    def on_train_batch_end(self, batch, logs=None):
        images = self.dataset.pretrain
        unreadable = getattr(images, "unreadable", None)
        if unreadable is None:
            return
        excess = unreadable.excess(self.share, len(images))
        if not excess:
            return
        found, read = excess
        path, why = next(iter(unreadable.faults().items()))
        listed = ""
        if self.skipped:
            self.skipped.add(self.dataset.faults())
            listed = f" {self.skipped.path} lists them."
        raise UsageError(
            f"{found:,} of {read:,} images read so far could not be read "
            f"({found / read:.1%}), more than --max_unreadable={self.share:g} "
            f"allows, such as {printable(path)}, which {why}.{listed} {self.save()} "
            "Put them back and give the same command, which goes on from there; with a "
            "higher --max_unreadable it goes on without them."
        )

    def on_epoch_end(self, epoch, logs=None):
        if not self.skipped:
            return
        faults = self.dataset.faults()
        new = self.skipped.add(faults)
        if new:
            one, images = new[0], "image" if len(new) == 1 else "images"
            self.log(
                f"Epoch {epoch + 1}: {len(new):,} {images} could not be read, and the "
                f"next ones took their place, such as {printable(one)}, "
                f"which {faults[one]}. {self.skipped.path} lists all."
            )
