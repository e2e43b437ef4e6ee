"""Program of test_damage: a run whose files are damaged, or whose disk is full.

  python tests/damaged_runs.py FOLDER damages=60 limits=30 disks=30 writes=30

Each trial takes a copy of an interrupted run, gives the command again, and compares
with what the command makes of the undamaged run.

damages: a file of the run's folder is damaged.
limits: no file may be longer than a limit.
disks: the folder is a tmpfs with little room; needs the right to mount one.
writes: the n-th file that Python opens to write, or renames, meets a full disk.

After limits, disks and writes the command is given again without them. Half of these
trials are of a run that is trained and not exported. Exits with status 1 if anything
was lost.
"""

import builtins
import collections
import contextlib
import errno
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from unittest import mock

import small_run
import tensorflow as tf

from ressl_keras.errors import UsageError
from ressl_keras.evaluation import report
from ressl_keras.run_folder import RunFolder
from ressl_keras.training.exporting import export_encoder

EPOCHS = 3
KINDS = ("flip", "truncate", "empty", "delete", "garbage", "folder")


def damage(path, kind, chance):
    """Damages a file in one of the `KINDS` of ways."""
    content = bytearray(path.read_bytes())
    if kind == "flip" and content:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif kind == "truncate":
        content = content[: chance.randrange(len(content) + 1)]
    elif kind == "empty":
        content = b""
    elif kind == "garbage":
        content = chance.randbytes(len(content))
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind != "delete":
        path.write_bytes(content)


def attempt(folder):
    """Gives the command; returns the line of a refusal, None where it ended well."""
    try:
        small_run.run(folder, EPOCHS, simple_views=True)
    except UsageError as error:
        line = str(error)
    except OSError as error:
        if error.filename is None or error.strerror is None:
            raise
        line = f"{error.filename}: {error.strerror}"  # as the command prints it
    else:
        return None
    if "\n" in line:
        raise AssertionError(f"not one line: {line}")
    return line


def ended_as(reference, folder, but=None):
    """Checks the files of a run that continued.

    Args:
        reference: folder of the undisturbed run.
        folder: folder of the run.
        but: path of a file whose contents from before are lost, or None.
    """
    small_run.same_state(folder, reference)
    if but is None or but.name != "metrics.csv":
        small_run.same_metrics(folder, reference)
    files = RunFolder(folder)
    assert files.has_encoder() and files.has_views()
    assert os.path.isfile(files.report) and os.path.isfile(files.description)
    assert any(files.export_versions()), "no SavedModel"
    left = [p for p in pathlib.Path(folder).rglob("writing-*")]
    assert not left, left


def damages(bases, reference, count):
    """Damages one file after the other; yields name, folder and function of trials."""
    base = bases[0]
    chance = random.Random(0)
    files = sorted(p.relative_to(base) for p in base.rglob("*") if p.is_file())
    newest = max(file for file in files if file.name.startswith("step-"))
    chosen = [newest, pathlib.Path("flags.txt")]
    chosen += chance.choices(files, k=count - len(chosen))
    for file in chosen:
        kind = chance.choice(KINDS)
        here = base.with_name("here")
        shutil.copytree(base, here)
        damage(here / file, kind, chance)
        yield (
            f"{kind} {file}",
            here,
            lambda here=here, file=file: (
                _unrefused(here),
                ended_as(reference, here, file),
            ),
        )
    for kind in ("flip", "delete")[: count // 10]:
        here = base.with_name("here")
        shutil.copytree(base, here)
        for path in (here / "checkpoints").iterdir():
            damage(path, kind, chance)
        # Nothing good is left: it starts again.
        yield f"{kind} all checkpoints", here, lambda here=here: _unrefused(here)


def _unrefused(folder):
    line = attempt(folder)
    assert line is None, line


def limits(bases, reference, count):
    """Limits the size of any file; yields name, folder and function of trials."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # Python's own default
    largest = 3 * 2**20  # more than is set aside for a checkpoint
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for i in range(count):
        limit = int((largest, 4e5)[i % 2] * (i / count) ** 2)
        here = reference.with_name("here")
        shutil.copytree(bases[i % 2], here)

        @contextlib.contextmanager
        def limited(limit=limit):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            try:
                yield
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

        yield (
            f"files of {limit} bytes",
            here,
            lambda here=here, limited=limited: _refused_then_continued(
                here, limited, reference
            ),
        )


def disks(bases, reference, count):
    """Fills a small disk; yields name, folder and function of trials."""
    here = reference.with_name("here")
    for i in range(count):
        # A checkpoint needs more than a megabyte, an export a few hundred kilobytes.
        more = (3e6, 5e5)[i % 2]
        here.mkdir(exist_ok=True)
        if _mount(here, "size=1g"):
            print("No right to mount a tmpfs.")
            return
        try:
            shutil.copytree(bases[i % 2], here, dirs_exist_ok=True)
            room = int(more * (i / count) ** 2) // 4096

            @contextlib.contextmanager
            def small(room=room):
                disk = os.statvfs(here)
                used = disk.f_blocks - disk.f_bfree
                _mount(here, f"remount,size={(used + room) * disk.f_frsize}")
                try:
                    yield
                finally:
                    _mount(here, "remount,size=1g")

            yield (
                f"disk with {room} pages free",
                here,
                lambda small=small: _refused_then_continued(here, small, reference),
            )
        finally:
            subprocess.run(["umount", "-l", str(here)], check=True)
            here.rmdir()


def _mount(folder, options):
    """Mounts a tmpfs; returns whether that was refused."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True).returncode != 0


def writes(bases, reference, count):
    """Fails the n-th write; yields name, folder and function of trials."""
    for i in range(count):
        here = reference.with_name("here")
        shutil.copytree(bases[i % 2], here)
        yield (
            f"write {i // 2}",
            here,
            lambda here=here, number=i // 2: _refused_then_continued(
                here, lambda: failing(here, number), reference
            ),
        )


@contextlib.contextmanager
def failing(folder, number):
    """Within it, this file below a folder cannot be opened to write, or renamed."""
    count = 0

    def counted(function, writing):
        def call(path, *arguments, **options):
            nonlocal count
            inside = str(path).startswith(str(folder))
            if inside and writing(*arguments, **options):
                count += 1
                if count == number + 1:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            return function(path, *arguments, **options)

        return call

    def opened_to_write(mode="r", *_, **__):
        return mode[0] in "wax"

    with (
        mock.patch.multiple(
            os,
            replace=counted(os.replace, lambda *_: True),
            rename=counted(os.rename, lambda *_: True),
        ),
        mock.patch.object(builtins, "open", counted(open, opened_to_write)),
    ):
        yield


def _refused_then_continued(folder, limited, reference):
    """Returns the line with which the command gave up, None where it had room."""
    with limited():
        line = attempt(folder)
    if line is not None:
        _unrefused(folder)
    ended_as(reference, folder)
    return line


TRIALS = {"damages": damages, "limits": limits, "disks": disks, "writes": writes}


def prepare(folder):
    """An interrupted run, a trained one without an export, and the undisturbed end."""
    bases = folder / "interrupted", folder / "trained"
    reference = folder / "reference"
    if not reference.exists():
        with contextlib.suppress(KeyboardInterrupt):
            small_run.run(bases[0], EPOCHS, True, callbacks=[small_run.Interrupt(13)])
        export_encoder(bases[0], image_size=8, log=lambda line: None)
        (bases[0] / "evaluation.json").write_text('{"knn": {"top1": 50.0}}')
        report.write(bases[0] / "report.html", run=str(bases[0]))
        shutil.copytree(bases[0], reference)
        small_run.run(reference, EPOCHS, True)
        shutil.copytree(reference, bases[1])
        shutil.rmtree(bases[1] / "export")
        for name in ("encoder.keras", "encoder.json", "report.html"):
            (bases[1] / name).unlink()
    return bases, reference


def main(folder, *wanted):
    tf.get_logger().setLevel("ERROR")  # it advises against many functions
    bases, reference = prepare(pathlib.Path(folder))
    lost = 0
    for kind, count in (word.split("=") for word in wanted):
        seen, start = collections.Counter(), time.monotonic()
        for name, here, trial in TRIALS[kind](bases, reference, int(count)):
            try:
                line = trial()
            except BaseException:
                seen["lost"] += 1
                print(f"LOST after {name}:", flush=True)
                traceback.print_exc(limit=-6, file=sys.stdout)
            else:
                refused = isinstance(line, str)
                seen["refused, then continued" if refused else "continued"] += 1
                print(f"{name}: {line if refused else 'continued'}", flush=True)
            shutil.rmtree(here, ignore_errors=True)
        lost += seen["lost"]
        seconds = time.monotonic() - start
        print(f"{kind}: {dict(seen)}, lost {seen['lost']}, {seconds:.0f} seconds")
    sys.exit(lost > 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
