"""One line with the path for whatever a library raises for a full disk."""

import errno
import os

import pytest
import tensorflow as tf

from ressl_keras import UsageError
from ressl_keras.config import Config
from ressl_keras.errors import disk_error, naming_disk_errors
from ressl_keras.files import replace_on_disk, replacing
from ressl_keras.run_folder import RunFolder

FULL = os.strerror(errno.ENOSPC)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, FULL),
        OSError(f"Can't write data (errno = 28, error message = '{FULL}', buf = 0x55)"),
        RuntimeError(f"Can't decrement id ref count (error message = '{FULL}')"),
        tf.errors.ResourceExhaustedError(None, None, f"/runs/events; {FULL}"),
        OSError(errno.ENOSPC, FULL, "runs/writing-encoder.keras"),
    ],
    ids=["plain", "hdf5", "hdf5 at the end", "tensorflow", "temporary"],
)
def test_a_full_disk_is_named_with_what_was_written(error):
    with pytest.raises(OSError) as caught, naming_disk_errors("runs/encoder.keras"):
        raise error
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == "runs/encoder.keras"


@pytest.mark.parametrize(
    "error",
    [ValueError("defect"), UsageError("mistake"), FileNotFoundError(2, "no", "a")],
)
def test_other_errors_stay_as_they_are(error):
    assert disk_error(error) is None
    with pytest.raises(type(error)) as caught, naming_disk_errors("runs"):
        raise error
    assert caught.value is error


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(OSError), replacing(path) as temporary:
        with open(temporary, "w") as file:
            file.write("half")
        raise OSError(errno.ENOSPC, FULL)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["report.html"]


@pytest.fixture
def flushed(monkeypatch):
    """Names of what is flushed, and `renamed` in its place, a list that grows."""
    done, rename = [], os.replace

    def flush(descriptor):
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))

    def replace(source, target):
        done.append("renamed")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", replace)
    return done


def test_contents_are_on_the_disk_before_the_name_and_the_name_too(flushed, tmp_path):
    with replacing(tmp_path / "a.txt") as temporary, open(temporary, "w") as file:
        file.write("new")
    assert flushed == ["writing-a.txt", "renamed", tmp_path.name]


def test_so_is_all_that_a_folder_holds(flushed, tmp_path):
    inside = tmp_path / "writing-1" / "variables"
    inside.mkdir(parents=True)
    (inside / "data").write_text("new")
    (tmp_path / "writing-1" / "saved_model.pb").write_text("new")
    replace_on_disk(tmp_path / "writing-1", tmp_path / "1")
    *before, renamed, name = flushed
    assert sorted(before) == ["data", "saved_model.pb", "variables", "writing-1"]
    assert (renamed, name) == ("renamed", tmp_path.name)
    assert (tmp_path / "1" / "variables" / "data").read_text() == "new"


def test_a_disk_that_cannot_flush_folders_will_do(tmp_path, monkeypatch):
    def flush(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", flush)
    with replacing(tmp_path / "a.txt") as temporary, open(temporary, "w") as file:
        file.write("new")
    assert (tmp_path / "a.txt").read_text() == "new"


def test_a_folder_in_the_place_of_a_file_is_set_aside(tmp_path):
    path = tmp_path / "report.html"
    path.mkdir()
    with replacing(path) as temporary, open(temporary, "w") as file:
        file.write("new")
    assert path.read_text() == "new" and (tmp_path / "damaged-report.html").is_dir()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content.replace(b"--seed=7", b"--seed=5"),
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"\xff\x00" * 50,
    ],
    ids=["flipped", "cut", "empty", "garbage"],
)
def test_damaged_settings_lock_no_run_out(damage, tmp_path):
    folder = RunFolder(tmp_path)
    os.makedirs(folder.checkpoints)
    config = Config(seed=7, epochs=3)
    folder.write_config(config)
    with pytest.raises(UsageError, match="holds a run with other flags"):
        folder.resumed(Config(seed=8))
    content = (tmp_path / "flags.txt").read_bytes()
    assert damage(content) != content
    (tmp_path / "flags.txt").write_bytes(damage(content))
    folder.resumed(config)
    assert (tmp_path / "damaged-flags.txt").exists()


def test_settings_of_earlier_versions_have_no_checksum(tmp_path):
    folder = RunFolder(tmp_path)
    os.makedirs(folder.checkpoints)
    (tmp_path / "flags.txt").write_text("--seed=7\n")
    folder.resumed(Config(seed=7))
    with pytest.raises(UsageError, match="there --seed=7, here --seed=8"):
        folder.resumed(Config(seed=8))
