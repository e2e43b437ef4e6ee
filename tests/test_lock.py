"""Two processes on one run's folder."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from ressl_keras import UsageError
from ressl_keras.run_folder import RunFolder

# Holds the lock until its input ends.
HOLDER = """
import sys
from ressl_keras.run_folder import RunFolder
with RunFolder(sys.argv[1]).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_told_who_holds_the_folder(holder, tmp_path):
    told = f"in use by process {holder.pid} on {socket.gethostname()}"
    for _ in range(2):  # the refusal itself changes nothing
        with pytest.raises(UsageError, match=told), RunFolder(tmp_path).locked():
            pass
    holder.communicate("")
    with RunFolder(tmp_path).locked():
        assert f"process {os.getpid()} " in (tmp_path / "lock.txt").read_text()


def test_a_killed_process_leaves_no_lock(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert str(holder.pid) in (tmp_path / "lock.txt").read_text()
    with RunFolder(tmp_path).locked():
        pass


def test_training_and_export_take_the_lock(holder, tmp_path):
    from test_checkpoints import run

    from ressl_keras.training.exporting import export_encoder

    with pytest.raises(UsageError, match="in use by process"):
        run(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["lock.txt"]
    (tmp_path / "flags.txt").write_text("--image_size=32\n")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / f"step-{1:09d}-{0:016x}.weights.h5").touch()
    with pytest.raises(UsageError, match="in use by process"):
        export_encoder(tmp_path)


def test_a_folder_that_cannot_be_locked_is_used_all_the_same(
    tmp_path, monkeypatch, capsys
):
    """Some network disks have no locks."""
    import errno
    import fcntl

    def flock(file, operation):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "flock", flock)
    with RunFolder(tmp_path).locked():
        pass
    assert "cannot be locked; start no second run there" in capsys.readouterr().out
