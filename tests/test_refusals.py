"""Extreme and random flags: the run starts, or one line refuses it, at once."""

import json
import pathlib
import subprocess
import sys

import pytest

PROGRAM = pathlib.Path(__file__).parent / "refusals.py"


@pytest.mark.long
def test_a_run_starts_or_one_line_refuses_it_soon_and_in_little_memory(tmp_path):
    ended = subprocess.run(
        [sys.executable, PROGRAM, tmp_path, "60"],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    lines = [line for line in ended.stdout.splitlines() if line.startswith("[[")]
    attempts = [json.loads(line) for line in lines]
    refused = [said for _, said, _, _ in attempts if said != "started"]
    assert len(attempts) >= 60 and 20 < len(refused) < len(attempts)
    for words, said, seconds, megabytes in attempts:
        assert said and "\n" not in said, words
        assert megabytes < 500 and seconds < 5, (words, said, seconds, megabytes)
    said = {" ".join(words): line for words, line, _, _ in attempts}
    assert "Lower --width" in said["--width=4096"]
    for words, line in list(said.items())[:14]:
        assert line != "started", words
