"""The comparison with PyTorch, which need not be there."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT


def run(*options):
    command = [sys.executable, "-m", "benchmarks.pytorch", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    "options, hint",
    [
        (["--python=/nowhere/python"], "--python"),
        (["--script=nowhere.py"], "--script"),
    ],
    ids=["no python", "no script"],
)
@pytest.mark.long
def test_without_a_peer_it_says_so_in_a_line(options, hint, tmp_path):
    results = tmp_path / "results.jsonl"
    result = run(*options, f"--results={results}")
    assert result.returncode == 1
    assert hint in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert not results.exists()


@pytest.mark.slow
def test_it_takes_turns_and_writes_the_ratio(tmp_path):
    peer = tmp_path / "python"
    peer.write_text("#!/bin/sh\necho '{\"best_ms\": 2.0}'\n")
    peer.chmod(0o755)
    results = tmp_path / "results.jsonl"
    small = ["--networks=resnet10_16", "--dtypes=float32", "--batch_size=4"]
    small += ["--rounds=1", "--steps=1"]
    result = run(*small, f"--python={peer}", f"--results={results}")
    assert result.returncode == 0, result.stderr
    line = json.loads(results.read_text())
    assert line["pytorch_milliseconds"] == 2
    assert line["ratio_median"] == line["ours_milliseconds"] / 2
    assert result.stdout.splitlines()[-1].startswith("resnet10_16")
