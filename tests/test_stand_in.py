"""The stand-in for ImageNet: the same files each time, as a folder and in TFDS."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import ROOT
from PIL import Image

pytestmark = pytest.mark.long


def make(folder, *options):
    command = [sys.executable, "-m", "benchmarks.stand_in", f"--folder={folder}"]
    command += ["--classes=3", "--train=12", "--test=4", "--side=40", *options]
    result = subprocess.run(
        [*command, f"--results={folder}.jsonl"], cwd=ROOT, capture_output=True
    )
    assert result.returncode == 0, result.stderr.decode()
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("made") / "it", "--shards=2", "--processes=2")


def files(folder):
    found = sorted((folder / "images").rglob("*.JPEG"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_a_second_time_it_draws_the_same_images_each_another(made, tmp_path):
    again = make(tmp_path / "again", "--processes=1", "--notfds")
    assert files(again) == files(made)
    assert len(set(files(made).values())) == 16


def test_the_folder_has_images_of_many_sizes_in_the_folders_of_their_classes(made):
    names = list(files(made))
    assert [name.split("/")[1] for name in names] == ["test"] * 4 + ["train"] * 12
    assert {name.split("/")[2] for name in names} == {f"n0000000{i}" for i in range(3)}
    sizes = [Image.open(made / name).size for name in names]
    assert len(set(sizes)) > 8
    assert 20 < np.median([min(size) for size in sizes]) < 80


def test_tfds_finds_the_same_files_without_code(made):
    builder = tfds.builder("stand_in", data_dir=str(made / "tfds"))
    assert {n: s.num_shards for n, s in builder.info.splits.items()} == {
        "train": 2,
        "validation": 2,
    }
    assert set(builder.info.features) == {"image", "label", "file_name"}
    decoders = {"image": tfds.decode.SkipDecoding()}
    found = {}
    for split, folder in (("train", "train"), ("validation", "test")):
        for record in builder.as_dataset(split=split, decoders=decoders):
            name = builder.info.features["label"].int2str(record["label"].numpy())
            path = f"images/{folder}/{name}/{record['file_name'].numpy().decode()}"
            found[path] = record["image"].numpy()
    assert found == files(made)


def test_it_writes_what_it_made(made):
    line = json.loads(made.with_name("it.jsonl").read_text())
    assert line["benchmark"] == "stand_in" and line["images"] == 16
    assert line["bytes"] == sum(map(len, files(made).values()))
