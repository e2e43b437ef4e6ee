"""Program of test_damage: a run whose files are damaged, or whose disk is full.

  python tests/damaged_runs.py FOLDER damages COUNT
  python tests/damaged_runs.py FOLDER limits COUNT
  python tests/damaged_runs.py FOLDER disks COUNT

Each trial takes a copy of a run that was interrupted after it had been exported, gives
the command again, and compares with what the command makes of the undamaged run.
`limits` limits the size of files, `disks` that of a tmpfs, which needs the right to
mount one; the command is then given again without the limit. Exits with status 1 if
anything was lost.
"""

import collections
import contextlib
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


def damages(base, reference, count):
    """Damages one file after the other; yields what each trial lost."""
    chance = random.Random(0)
    files = sorted(p.relative_to(base) for p in base.rglob("*") if p.is_file())
    chosen = [files[i % len(files)] for i in range(count)]
    for file in chance.sample(chosen, count):
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


def limits(base, reference, count):
    """Limits the size of any file; yields what each trial lost."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # Python's own default
    largest = 3 * 2**20  # more than is set aside for a checkpoint
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for i in range(count):
        limit = int(largest * 1.1 * (i / count) ** 3)
        here = base.with_name("here")
        shutil.copytree(base, here)

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


def disks(base, reference, count):
    """Fills a small disk; yields what each trial lost."""
    here = base.with_name("here")
    more = [sum(p.stat().st_size for p in x.rglob("*")) for x in (base, reference)]
    more = 1.2 * (more[1] - more[0]) + 3e6  # what is written aside needs room, too
    for i in range(count):
        here.mkdir(exist_ok=True)
        if _mount(here, "size=1g"):
            print("No right to mount a tmpfs.")
            return
        try:
            shutil.copytree(base, here, dirs_exist_ok=True)
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


def _refused_then_continued(folder, limited, reference):
    """Returns the line with which the command gave up, None where it had room."""
    with limited():
        line = attempt(folder)
    if line is not None:
        _unrefused(folder)
    ended_as(reference, folder)
    return line


TRIALS = {"damages": damages, "limits": limits, "disks": disks}


def main(folder, kind, count):
    tf.get_logger().setLevel("ERROR")  # it advises against many functions
    folder = pathlib.Path(folder)
    base, reference = folder / "base", folder / "reference"
    if not reference.exists():
        with contextlib.suppress(KeyboardInterrupt):
            small_run.run(base, EPOCHS, True, callbacks=[small_run.Interrupt(13)])
        export_encoder(base, image_size=8, log=lambda line: None)
        (base / "evaluation.json").write_text('{"knn": {"top1": 50.0}}')
        report.write(base / "report.html", run=str(base))
        shutil.copytree(base, reference)
        small_run.run(reference, EPOCHS, True)
    seen, lost, start = collections.Counter(), 0, time.monotonic()
    for name, here, trial in TRIALS[kind](base, reference, int(count)):
        try:
            line = trial()
        except BaseException:
            lost += 1
            print(f"LOST after {name}:", flush=True)
            traceback.print_exc(limit=-6, file=sys.stdout)
        else:
            seen[
                "refused, then continued" if isinstance(line, str) else "continued"
            ] += 1
            print(
                f"{name}: {line if isinstance(line, str) else 'continued'}", flush=True
            )
        shutil.rmtree(here, ignore_errors=True)
    seconds = time.monotonic() - start
    print(f"{kind}: {dict(seen)}, lost {lost}, {seconds:.0f} seconds")
    sys.exit(lost > 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
