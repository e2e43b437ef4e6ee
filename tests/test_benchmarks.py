"""Each benchmark runs, small, and writes its line. What it measures is for people."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

NETWORK = ["--backbone=resnet10_small", "--width=4", "--batch_size=8"]
SMALL = {
    "step": [*NETWORK, "--size=8", "--queue_size=16", "--rounds=1", "--steps=1"],
    "queue": ["--sizes=512,1024", "--dim=8", "--batch_size=8", "--repeats=1"],
    "knn": ["--features=500", "--queries=50", "--length=8", "--rounds=1"],
    "judging": ["--features=2000", "--queries=50", "--length=8", "--classes=5"],
    "scaling": [*NETWORK, "--devices=1,2", "--rounds=1", "--steps=2"],
    "memory": [
        "--backbone=resnet10_small",
        "--size=8",
        "--batch_sizes=2,4",
        "--queue_size=16",
        "--hidden_dim=8",
        "--embedding_dim=8",
    ],
    "saving": [
        "--backbone=resnet10_small",
        "--size=8",
        "--queue_size=16",
        "--hidden_dim=8",
        "--embedding_dim=8",
        "--rounds=1",
    ],
    "serving": [
        "--backbone=resnet10_small",
        "--width=4",
        "--size=8",
        "--batch_sizes=1,2",
        "--clients=2",
        "--seconds=0.1",
    ],
    "embedding": [
        "--backbone=resnet10_small",
        "--width=4",
        "--size=8",
        "--images=4",
        "--rounds=1",
    ],
    "million": ["--count=240", "--classes=3", "--sources=4"],
    "reading": ["--images=8", "--steps=2", "--batch_size=4", "--rounds=1"],
    "views": ["--rounds=1", "--cores=1", "--small_batch=4", "--large_batch=2"],
}
# The others take minutes: they start TensorFlow several times, read or compile much.
# test_stand_in has the stand-in for ImageNet.
QUICK = ("step", "knn", "saving", "serving", "embedding")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=pytest.mark.long if name in QUICK else pytest.mark.slow
        )
        for name in SMALL
    ],
)
def test_a_benchmark_writes_what_it_measured(name, tmp_path):
    results = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", f"benchmarks.{name}", *SMALL[name]]
    result = subprocess.run(
        [*command, f"--results={results}"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    line = json.loads(results.read_text())
    assert line["benchmark"] == name
    assert {"machine", "tensorflow", "keras", "commit"} <= set(line)
    assert result.stdout.count("\n") >= 2
