"""train.py and evaluate.py as a person runs them."""

import csv
import json
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from options import parse
from PIL import Image

from ressl_keras import UsageError
from ressl_keras.commands import train

TINY = (
    "--backbone=resnet10_small",
    "--width=4",
    "--batch_size=64",
    "--queue_size=128",
    "--hidden_dim=16",
    "--embedding_dim=8",
    "--warmup_epochs=0",
    "--knn_every=1",
)


def script(name, *flags):
    command = [sys.executable, ROOT / name, *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True)


def command(*flags):
    """The same in this process, which saves the start of TensorFlow."""
    train.run(parse(train.TrainOptions, *map(str, flags), "--strategy=one_device"))


def rows(workdir):
    with open(workdir / "metrics.csv") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of forty images in two classes, one of them unreadable."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for i in range(40):
        place = folder / ("dark" if i % 2 else "light")
        place.mkdir(exist_ok=True)
        level = 40 if i % 2 else 200
        pixels = random.normal(level, 20, [20 + i % 7, 24, 3]).clip(0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i}.jpg")
    (folder / "dark" / "broken.jpg").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, images):
    """A short run on the folder: its work directory and its output."""
    workdir = tmp_path_factory.mktemp("run")
    result = script(
        "train.py",
        f"--workdir={workdir}",
        "--dataset=folder",
        f"--data_dir={images}",
        "--image_size=16",
        "--epochs=3",
        *TINY,
        "--batch_size=12",
    )
    assert result.returncode == 0, result.stderr
    return workdir, result.stdout


@pytest.mark.long
def test_a_run_leaves_the_files_that_others_rely_on(trained):
    workdir, output = trained
    table = rows(workdir)
    assert list(table[0])[:4] == ["epoch", "step", "loss", "knn_top1"]
    assert [(row["epoch"], row["step"]) for row in table] == [
        ("0", "0"),
        ("1", "3"),
        ("2", "6"),
        ("3", "9"),
    ]
    start, *table = table
    assert all(float(row["loss"]) > 0 for row in table) and not start["loss"]
    results = json.loads((workdir / "evaluation.json").read_text())
    # One untrained network, in the log, the table and the evaluation.
    untrained = results["knn"]["untrained_top1"]
    assert float(start["knn_top1"]) == pytest.approx(untrained, abs=0.005)
    assert f"kNN of the untrained encoder: {untrained:.2f} % of 4 test" in output
    assert {"top1", "untrained_top1"} <= set(results["knn"])
    assert {"top1", "top5", "untrained_top1"} <= set(results["linear"])
    assert (workdir / "encoder.keras").exists()
    assert (workdir / "export" / "1" / "saved_model.pb").exists()
    assert list(workdir.glob("tensorboard/**/*tfevents*"))
    assert "Epoch 3/3: loss " in output
    assert "images/s" in output
    assert not set("\r\b\033") & set(output)
    assert (workdir / "views.png").exists()
    page = (workdir / "report.html").read_text()
    assert f"{results['knn']['top1']:.2f}" in page and "train.py" in page


@pytest.mark.long
def test_a_run_lists_what_it_could_not_read(trained):
    workdir, output = trained
    assert "Epoch 1: 1 image could not be read" in output
    listed = (workdir / "skipped.txt").read_text()
    assert listed.startswith("cannot be decoded\t")
    assert listed.endswith("dark/broken.jpg\n") and listed.count("\n") == 1


@pytest.mark.long
def test_the_printed_command_evaluates_the_encoder(trained, tmp_path):
    workdir, output = trained
    line = next(line for line in output.split("\n") if "ressl-evaluate" in line)
    flags = line.split("ressl-evaluate")[1].split()
    result = script("evaluate.py", *flags, f"--output={tmp_path}/again.json")
    assert result.returncode == 0, result.stderr
    again = json.loads((tmp_path / "again.json").read_text())
    before = json.loads((workdir / "evaluation.json").read_text())
    for protocol in ("knn", "linear"):
        assert again[protocol]["top1"] == before[protocol]["top1"]
    assert "evaluate.py" in (tmp_path / "again.html").read_text()


@pytest.mark.long
def test_the_views_can_be_looked_at_before_training(images, tmp_path):
    command(
        "--dataset=folder",
        f"--data_dir={images}",
        "--preview",
        "--crops=32,16",
        "--check_images",
        f"--workdir={tmp_path}",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["skipped.txt", "views.png"]


@pytest.mark.long
def test_the_effective_flags_are_a_flagfile_that_repeats_the_run(
    trained, tmp_path, capsys
):
    """And that goes on with it for more epochs, but not with other flags."""
    workdir, _ = trained
    again = f"--flagfile={workdir}/flags.txt", f"--workdir={tmp_path}", "--noevaluate"
    command(*again)
    tables = [rows(folder) for folder in (workdir, tmp_path)]
    for row in [*tables[0], *tables[1]]:
        del row["images_per_second"], row["waiting"]
    assert tables[0] == tables[1]
    capsys.readouterr()
    command(*again, "--epochs=4")
    assert "Resuming at step 9 of 12" in capsys.readouterr().out
    told = "there --queue_size=128, here --queue_size=64"
    with pytest.raises(UsageError, match=told):
        command(*again, "--queue_size=64", "--batch_size=12")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--dataset=cifar11"], "Unknown data set 'cifar11'"),
        (["--dataset=folder", "--data_dir={empty}"], "No readable image under"),
        (["--dataset=folder", "--data_dir={broken}"], "(1 files could not be decoded)"),
        (
            ["--batch_size=9000", "--queue_size=9000"],
            "larger than the data set of 8000",
        ),
        (["--queue_size=32"], "queue of 32 is smaller than the batch of 64"),
        (["--workdir=/proc/run"], "work directory /proc/run cannot be written"),
        (["--backbone=resnet18_smal"], "Did you mean resnet18_small"),
    ],
)
def test_bad_input_gets_one_clear_line_before_training(
    flags, message, tmp_path, capsys
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "image.png").write_text("no image")
    flags = [
        flag.format(empty=tmp_path / "empty", broken=tmp_path / "broken")
        for flag in flags
    ]
    with pytest.raises(UsageError, match=re.escape(message)) as refused:
        command(*TINY, f"--workdir={tmp_path}/run", *flags)
    assert "\n" not in str(refused.value)
    assert "Epoch" not in capsys.readouterr().out


@pytest.mark.long
def test_a_refusal_is_one_line_on_stderr_and_status_1(tmp_path):
    result = script("train.py", f"--workdir={tmp_path}", "--dataset=cifar11")
    assert result.returncode == 1
    # TensorFlow's own lines about oneDNN come before its log level is read.
    said = result.stderr.splitlines()[-1]
    assert said.startswith("train.py: error: Unknown data set 'cifar11'")
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_quickstart_learns_shapes_within_three_minutes(tmp_path):
    start = time.monotonic()
    result = script(
        "train.py",
        f"--flagfile={ROOT}/flags/quickstart.flags",
        f"--workdir={tmp_path}",
    )
    seconds = time.monotonic() - start
    assert result.returncode == 0, result.stderr
    knn = json.loads((tmp_path / "evaluation.json").read_text())["knn"]
    print(f"kNN {knn['top1']} %, untrained {knn['untrained_top1']} %, {seconds:.0f} s")
    assert knn["top1"] >= knn["untrained_top1"] + 20
    assert seconds <= 180
