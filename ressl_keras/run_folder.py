"""The files of a run: their names, and reading those that several modules share."""

import contextlib
import csv
import dataclasses
import hashlib
import os
import shutil
import tempfile
import zipfile
import zlib

from ressl_keras.errors import TEMPORARY, UsageError
from ressl_keras.files import (
    lock,
    open_text,
    read_json,
    read_lines,
    unless_damaged,
    write_lines,
    writing,
)
from ressl_keras.settings import settings_of


class RunFolder:
    """Paths of a run's files.

    Args:
        path: the run's work directory; need not exist.

    Attributes:
        flags: the effective settings, a flagfile.
        metrics: one row per epoch, CSV; before them a row of the untrained encoder.
        history: when, on what and how long the run trained, JSON.
        network: the network that the run began with, where it is the user's own.
        initial: the encoder before the first step, a Keras file.
        encoder: the student's backbone, a Keras file.
        description: facts about the encoder, JSON.
        card: the encoder's model card, Markdown.
        classifier: the encoder with a linear layer that an evaluation kept, Keras.
        classifier_export: folder of its SavedModel versions.
        evaluation: accuracies, JSON.
        report: the report, HTML.
        views: picture of the augmented views, PNG.
        neighbours: picture of nearest neighbours, PNG.
        skipped: list of unreadable images, text.
        lock: the process that trains or exports here, or did last, text.
        checkpoints: folder of checkpoints.
        tensorboard: folder of TensorBoard logs.
        export: folder of SavedModel versions.
    """

    def __init__(self, path):
        self.path = str(path)
        self.flags = self._inside("flags.txt")
        self.metrics = self._inside("metrics.csv")
        self.history = self._inside("history.json")
        self.network = self._inside("network.keras")
        self.initial = self._inside("initial.keras")
        self.encoder = self._inside("encoder.keras")
        self.description = self._inside("encoder.json")
        self.card = self._inside("README.md")
        self.classifier = self._inside("classifier.keras")
        self.classifier_export = self._inside("classifier")
        self.evaluation = self._inside("evaluation.json")
        self.report = self._inside("report.html")
        self.views = self._inside("views.png")
        self.neighbours = self._inside("neighbours.png")
        self.skipped = self._inside("skipped.txt")
        self.lock = self._inside("lock.txt")
        self.checkpoints = self._inside("checkpoints")
        self.tensorboard = self._inside("tensorboard")
        self.export = self._inside("export")

    def _inside(self, name):
        return os.path.join(self.path, name)

    def encoder_in(self, ending):
        """Path of the encoder in another format, such as `encoder.onnx`."""
        return self._inside(f"encoder.{ending}")

    def prepare(self):
        """Makes the folder and checks that it is writable.

        Raises:
            UsageError: if it cannot be written.
        """
        try:
            os.makedirs(self.path, exist_ok=True)
            # Unnamed, since several workers may check one folder at the same time.
            tempfile.TemporaryFile(dir=self.path, prefix=".writable-").close()
        except OSError as error:
            raise UsageError(
                f"The work directory {self.path} cannot be written: {error.strerror}."
            ) from error

    @contextlib.contextmanager
    def locked(self):
        """A context in which no other process trains or exports here.

        The operating system holds the lock. The file only says who holds it.

        Raises:
            UsageError: if another process holds the lock.
        """
        file = os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._take(file)
            holder = f"process {os.getpid()} on {os.uname().nodename}"
            # On a full disk the lock holds all the same.
            with contextlib.suppress(OSError):
                os.ftruncate(file, 0)
                os.write(file, holder.encode())
            yield
        finally:
            os.close(file)

    def _take(self, file):
        try:
            if not lock(file):
                print(f"{self.path} cannot be locked; start no second run there.")
        except BlockingIOError:
            holder = os.read(file, 1000).decode(errors="replace") or "another process"
            raise UsageError(
                f"{self.path} is in use by {holder}. Wait until it ends, or give "
                "another --workdir."
            ) from None

    def remove_leftovers(self):
        """Removes what interrupted writes left; call it where nobody else writes."""
        for folder in (self.path, self.checkpoints, self.export):
            if not os.path.isdir(folder):
                continue
            for entry in os.scandir(folder):
                if entry.name.startswith(TEMPORARY):
                    remove = shutil.rmtree if entry.is_dir() else os.remove
                    remove(entry.path)

    def is_run(self):
        """Whether the folder holds the settings of a run."""
        return os.path.isfile(self.flags)

    def has_checkpoints(self):
        """Whether training has begun to save its state here."""
        return os.path.isdir(self.checkpoints)

    def read_config(self, options_class):
        """The settings that the run was started with.

        Args:
            options_class: `Config` or a subclass. What the file does not name has its
                default, also in runs of earlier versions.

        Raises:
            UsageError: if there is no such file or it cannot be read.
        """
        if not self.is_run():
            raise UsageError(f"{self.path} is not a run: it has no {self.flags}.")
        try:
            return options_class.from_flags(self.flag_lines())
        except UsageError as error:
            raise UsageError(f"{self.flags} cannot be read: {error}") from error

    def flag_lines(self):
        """Lines of the settings file; empty without one."""
        return read_lines(self.flags) if os.path.isfile(self.flags) else []

    def resumed(self, config):
        """The settings to resume the run here with; None where there is none.

        Args:
            config: `Config` or a subclass. What is `auto` becomes what the run chose.

        Raises:
            UsageError: if the folder holds checkpoints of a run with other settings,
                apart from those that a resumed run may change.
        """
        if not (self._has_sound_flags() and self.has_checkpoints()):
            return None
        before = self.read_config(type(config))
        chosen = {
            name: getattr(before, name)
            for name, known in settings_of(type(config)).items()
            if getattr(config, name) == "auto" and not known.resumable
        }
        config = dataclasses.replace(config, **chosen)
        then, now = [], []
        for name, known in settings_of(type(config)).items():
            old, new = getattr(before, name), getattr(config, name)
            if old != new and not known.resumable:
                then.append(known.flag(old) or f"no --{name}")
                now.append(known.flag(new) or f"no --{name}")
        if then:
            raise UsageError(
                f"{self.path} holds a run with other flags: there {' '.join(then)}, "
                f"here {' '.join(now)}. Give another --workdir, or the flags of that "
                "run."
            )
        return config

    def write_config(self, config):
        """Writes the settings as a flagfile, with a checksum in its first line."""
        lines = config.to_flags()
        write_lines(self.flags, [_checksum_line(lines), *lines])

    def _has_sound_flags(self):
        """Whether the settings are as they were written; else they are set aside.

        The command gives them again, so that a damaged file need not lock a run out.
        """
        return _is_sound(self.flags, _check_flags)

    def dataset_name(self):
        """Name of the data set, where the command that trained knew it; else None."""
        description = read_json(self.description)
        if isinstance(description.get("dataset"), str):
            kind, space, path = description["dataset"].partition(" ")
            # Up to 0.1.0 the whole path of a folder was written.
            return f"{kind}{space}{os.path.basename(path)}"
        for line in self.flag_lines():
            if line.startswith("--dataset="):
                return line.partition("=")[2]
        return None

    def export_versions(self):
        """Numbers of the complete SavedModel versions, sorted."""
        if not os.path.isdir(self.export):
            return []
        return sorted(
            int(name)
            for name in os.listdir(self.export)
            if name.isdecimal()
            and os.path.isfile(os.path.join(self.export, name, "saved_model.pb"))
        )

    def is_exported(self):
        """Whether all files of the encoder are there; damaged ones are set aside."""
        return bool(
            self.has_encoder()
            and read_json(self.description)
            and self.export_versions()
        )

    def has_views(self):
        """Whether the picture of the views is there; a damaged one is set aside."""
        return _is_sound(self.views, _load_picture)

    def has_encoder(self):
        """Whether the encoder's file is there; a damaged one is set aside."""
        return _is_sound(self.encoder, _check_archive)

    def has_initial(self):
        """Whether the encoder's first state is there; a damaged one is set aside."""
        return _is_sound(self.initial, _check_archive)

    def read_metrics(self):
        """Rows of the metrics table, a list of dicts of strings; may be empty.

        A damaged table is set aside.
        """
        rows = unless_damaged(self.metrics, _read_table)
        return [] if rows is None else rows

    def write_metrics(self, rows, first_columns=()):
        """Replaces the metrics table.

        Args:
            rows: list of dicts; a column that a row lacks stays empty.
            first_columns: names of the columns at the left.
        """
        names = {name: None for row in rows for name in row}
        with writing(self.metrics, newline="") as file:
            writer = csv.DictWriter(
                file, dict.fromkeys([*first_columns, *names]), restval=""
            )
            writer.writeheader()
            writer.writerows(rows)

    def last_metric(self, column):
        """The last number in a column of the metrics table, or None."""
        numbers = [row[column] for row in self.read_metrics() if row.get(column)]
        return float(numbers[-1]) if numbers else None


def unfinished(output):
    """Folder beside a result for what an interrupted evaluation goes on from."""
    return f"{os.path.splitext(output)[0]}.unfinished"


def _is_sound(path, check):
    """Whether there is a file that a check accepts; a damaged one is set aside."""
    return unless_damaged(path, check) is not None


def _checksum_line(lines):
    digest = hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape"))
    return f"# checksum {digest.hexdigest()[:16]}"


def _check_flags(path):
    with open_text(path) as file:
        first, *lines = file.read().splitlines() or [""]
    # Up to 0.1.0 there was no checksum.
    if not first.startswith("-") and first != _checksum_line(lines):
        raise ValueError("not as it was written")
    return True


def _read_table(path):
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, strict=True))
    for row in rows:
        int(row["epoch"]), int(row["step"])
        for value in row.values():
            float(value or 0)
    return rows


def _load_picture(path):
    from PIL import Image

    try:
        with Image.open(path) as picture:
            picture.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError("not a picture") from error
    return True


def _check_archive(path):
    # Its checksums find every damaged byte of the contents.
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise ValueError("damaged contents")
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise ValueError("not a zip file") from error
    return True
