"""Nothing is lost: kills, damaged files, full disks. The long form:

python -m pytest -m slow -n 0 -s tests/test_damage.py
"""

import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent


def passes(program, *arguments):
    """Runs a program beside this file, which compares with an undisturbed run."""
    command = [sys.executable, HERE / program, *map(str, arguments)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=7200)
    print(result.stdout)
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.mark.long
def test_a_run_killed_three_times_ends_as_one_that_was_not(tmp_path):
    """SIGKILL at random moments, once in the middle of writing a checkpoint; the
    final state is equal bit for bit, and so is the table of metrics."""
    assert "3 kills, 25 steps: equal" in passes("killed_runs.py", tmp_path, 3, "simple")


@pytest.mark.long
def test_damages_and_full_disks_lose_nothing(tmp_path):
    output = passes("damaged_runs.py", tmp_path, "damages=2", "writes=1")
    assert output.count("lost 0") == 2
    assert "flags.txt" in output and "refused, then continued" in output


@pytest.mark.slow
def test_thirty_kills(tmp_path):
    assert "30 kills" in passes("killed_runs.py", tmp_path, 30)


@pytest.mark.slow
def test_sixty_damages_and_full_disks_at_every_write(tmp_path):
    trials = ("damages=60", "limits=30", "disks=30", "writes=50")
    output = passes("damaged_runs.py", tmp_path, *trials)
    assert output.count("lost 0") == 4
