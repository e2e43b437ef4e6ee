"""Trees of images as people have them: links, split folders, hidden and odd names."""

import os
import shutil
import subprocess

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from ressl_keras import UsageError
from ressl_keras.data import folders
from ressl_keras.data.datasets import load_dataset
from ressl_keras.data.images import name_of

COUNTS = {"train/cats": 6, "train/dogs": 6, "test/cats": 3, "test/dogs": 3}


def draw(folder, count, start=0, size=(12, 10)):
    """Files of images, each of another colour."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        Image.new("RGB", size, (i, 2 * i % 256, 99)).save(folder / f"{i:03}.png")


@pytest.fixture
def tree(tmp_path):
    """A folder of train and test with two classes each."""
    root, start = tmp_path / "above" / "tree", 0
    for name, count in COUNTS.items():
        draw(root / name, count, start)
        start += count
    return root


def relative(root, listing):
    """Names of the listed files below the root."""
    files = [*listing.files, *listing.held_out]
    return sorted(os.path.relpath(path, root) for path, _ in files)


def listed(root):
    lines = []
    return folders.list_images(str(root), lines.append), lines


def expected(root):
    """The regular files, as `find -type f` would list them."""
    return sorted(str(p.relative_to(root)) for p in root.rglob("*.png"))


@pytest.mark.parametrize("target", [".", "..", "../..", "../../..", "/"])
def test_a_link_to_a_folder_above_is_not_followed(target, tree):
    files = expected(tree)
    (tree / "train" / "again").symlink_to(target)
    (tree / "test" / "dogs" / "again").symlink_to(target)
    listing, lines = listed(tree)
    assert relative(tree, listing) == files
    assert len(lines) == 1 and lines[0].startswith("2 links")


def test_two_links_to_each_other_end(tree):
    files = expected(tree)
    (tree / "train" / "one").symlink_to(tree / "train" / "two")
    (tree / "train" / "two").symlink_to(tree / "train" / "one")
    (tree / "train" / "self.png").symlink_to(tree / "train" / "self.png")
    listing, _ = listed(tree)
    assert relative(tree, listing) == sorted([*files, "train/self.png"])


def test_a_folder_linked_twice_is_listed_where_it_is(tree):
    files = expected(tree)
    # By name both come before what they point to.
    (tree / "train" / "a").symlink_to(tree / "train" / "cats")
    (tree / "test" / "a").symlink_to(tree / "train" / "dogs")
    listing, lines = listed(tree)
    assert relative(tree, listing) == files
    assert {name for _, name in listing.files} == {"cats", "dogs"}
    assert lines[0].startswith("2 links")


def test_train_and_test_may_be_links_and_never_share_an_image(tree, tmp_path):
    root = tmp_path / "linked"
    root.mkdir()
    (root / "train").symlink_to(tree / "train")
    (root / "test").symlink_to(tree / "train" / "dogs")
    (root / "train" / "more").symlink_to(root / "test")
    listing, _ = listed(root)
    train, test = (
        {os.path.realpath(path) for path, _ in files}
        for files in (listing.files, listing.held_out)
    )
    assert not train & test
    assert len(train | test) == 12 == len(listing.files) + len(listing.held_out)


def test_a_link_to_elsewhere_is_followed_once(tree, tmp_path):
    draw(tmp_path / "elsewhere" / "inner", 4)
    for name in ("birds", "crows"):
        (tree / "train" / name).symlink_to(tmp_path / "elsewhere")
    listing, _ = listed(tree)
    birds = [path for path, name in listing.files if name == "birds"]
    assert len(birds) == 4 and not [n for _, n in listing.files if n == "crows"]


def test_links_to_files_count_once_and_those_that_lead_nowhere_are_skipped(tree):
    files = expected(tree)
    (tree / "train" / "cats" / "again.png").symlink_to(tree / "test/dogs/015.png")
    (tree / "train" / "cats" / "lost.png").symlink_to(tree / "nowhere.png")
    (tree / "train" / "cats" / "device.png").symlink_to("/dev/zero")
    os.mkfifo(tree / "train" / "cats" / "pipe.png")
    listing, _ = listed(tree)
    assert relative(tree, listing) == sorted([*files, "train/cats/lost.png"])
    dataset = load_dataset("folder", str(tree), log=lambda line: None)
    lost = str(tree / "train" / "cats" / "lost.png")
    assert dataset.skipped == {lost: "is not there any more"}


@pytest.mark.parametrize(
    "train, test",
    [
        ("train", "test"),
        ("Train", "Testing"),
        ("TRAINING", "VAL"),
        ("training", "valid"),
        ("train", "Validation"),
    ],
)
def test_split_folders_are_known_by_any_usual_name(train, test, tree):
    os.rename(tree / "train", tree / train)
    os.rename(tree / "test", tree / test)
    lines = []
    dataset = load_dataset("folder", str(tree), log=lines.append)
    assert dataset.class_names == ["cats", "dogs"] and not lines
    assert (len(dataset.train), len(dataset.test)) == (12, 6)
    reds = np.sort(dataset.test.images.numpy()[:, 0, 0, 0])
    np.testing.assert_array_equal(reds, range(12, 18))


@pytest.mark.parametrize(
    "change, message",
    [
        (("mkdir", "Training"), "Training, train, which mean the same"),
        (("remove", "train"), "test, but no train"),
        (("rename", "test", "birds"), "train, beside birds"),
    ],
)
def test_split_names_without_a_single_meaning_are_refused(change, message, tree):
    action, *names = change
    if action == "mkdir":
        draw(tree / names[0] / "cats", 1)
    elif action == "remove":
        shutil.rmtree(tree / names[0])
    else:
        os.rename(*(tree / name for name in names))
    with pytest.raises(UsageError, match=message) as caught:
        load_dataset("folder", str(tree))
    assert "\n" not in str(caught.value)


def test_a_train_folder_alone_is_the_folder_of_the_classes(tree):
    shutil.rmtree(tree / "test")
    dataset = load_dataset("folder", str(tree), log=lambda line: None)
    assert dataset.class_names == ["cats", "dogs"]
    assert (len(dataset.train), len(dataset.test)) == (11, 1)


def test_what_is_ignored_is_said(tree):
    draw(tree / "val" / "cats", 1)
    draw(tree / "extra", 1)
    draw(tree / "train", 2)
    draw(tree / "train" / "birds", 2)
    draw(tree / "test" / "cows", 2)
    lines = []
    dataset = load_dataset("folder", str(tree), log=lines.append)
    assert dataset.class_names == ["birds", "cats", "dogs"]
    assert (len(dataset.train), len(dataset.test)) == (14, 6)
    text = "\n".join(lines)
    assert "ignored beside test, train: extra, val" in text
    assert "2 images outside of the class folders" in text
    assert "2 images of test are ignored, since train lacks their classes: cows" in text
    assert "test lacks classes of train: birds" in text


def test_sets_without_a_class_in_common_are_said_and_not_judged(tree):
    for name in ("cats", "dogs"):
        os.rename(tree / "test" / name, tree / "test" / f"{name}2")
    lines = []
    dataset = load_dataset("folder", str(tree), log=lines.append)
    assert not dataset.labelled and len(dataset.pretrain) == 12
    assert "no class in common" in lines[0]


def test_split_folders_deeper_down_are_pointed_out(tree):
    draw(tree.parent / "other", 3)
    lines = []
    load_dataset("folder", str(tree.parent), log=lines.append)
    assert "tree/test, tree/train are read as parts of their classes" in lines[0]


@pytest.mark.parametrize(
    "name",
    [".thumbnails", ".git", "__MACOSX", "@eaDir", "$RECYCLE.BIN", "Lost+Found"],
)
def test_folders_of_the_system_are_no_classes(name, tree):
    files = expected(tree)
    for inside in ("", "train", "train/cats"):
        draw(tree / inside / name, 2)
    shutil.copy(tree / "train/cats/000.png", tree / "train/cats/._000.png")
    listing, lines = listed(tree)
    assert relative(tree, listing) == files and not lines


def test_a_folder_that_may_not_be_read_is_one_line(tree, monkeypatch):
    def scan(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", scan)  # root may read everything
    with pytest.raises(UsageError, match="cannot be read: Permission denied"):
        load_dataset("folder", str(tree))


@pytest.mark.parametrize("with_classes", ["test", "validation", "none"])
def test_of_two_sets_to_hold_out_the_one_with_classes_is_taken(with_classes, tmp_path):
    """The test images of a contest have no labels."""
    for name in ("train", "test", "validation"):
        draw(tmp_path / name / ("cats" if name in ("train", with_classes) else ""), 3)
    draw(tmp_path / "train" / "dogs", 3, start=3)
    listing, lines = listed(tmp_path)
    wanted = "validation" if with_classes == "validation" else "test"
    assert listing.names == ("train", wanted)
    ignored = {"test": "validation", "validation": "test"}[wanted]
    (line,) = lines
    assert line.startswith("Warning: ignored beside") and line.endswith(f": {ignored}.")


@pytest.mark.parametrize("kept", [True, False])
def test_a_broken_image_does_not_change_which_others_are_held_out(kept, tmp_path):
    for name in ("cats", "dogs"):
        draw(tmp_path / name, 15, start=15 * (name == "dogs"))
    (tmp_path / "cats" / "003.png").write_bytes(b"broken")
    (tmp_path / "dogs" / "019.png").write_bytes(b"broken")  # the second held out
    limit = 2**20 if kept else 0
    dataset = load_dataset("folder", str(tmp_path), check=True, memory_limit=limit)
    names = [os.path.basename(name_of(dataset.test, i)) for i in range(2)]
    assert names == ["009.png", "029.png"] and len(dataset.test) == 2
    assert len(dataset.train) == len(dataset.pretrain) == 26


def as_downloaded(root):
    """A tree like Tiny ImageNet's archive: the classes of val/ stand in a list."""
    for start, name in ((0, "n01"), (20, "n02")):
        draw(root / "train" / name / "images", 4, start)
    draw(root / "test" / "images", 2, 40)
    draw(root / "val" / "images", 3, 50)
    rows = ["050.png\tn02\t0\t32\t44\t62", "051.png\tn01", "052.png\tn02\t1\t1\t2\t2"]
    (root / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")


def test_tiny_imagenet_is_read_as_it_is_downloaded(tmp_path):
    as_downloaded(tmp_path)
    dataset = load_dataset("folder", str(tmp_path), log=lambda line: None)
    assert dataset.class_names == ["n01", "n02"] and len(dataset.train) == 8
    names = [os.path.basename(name_of(dataset.test, i)) for i in range(3)]
    assert names == ["050.png", "051.png", "052.png"]
    assert list(dataset.test.labels) == [1, 0, 1]


@pytest.mark.skipif(not shutil.which("awk"), reason="runs awk")
def test_the_documented_line_makes_a_list_of_kaggles(tmp_path):
    text = (ROOT / "docs" / "imagenet.md").read_text()
    (command,) = (line for line in text.split("\n") if line.startswith("awk "))
    root = tmp_path / "my_imagenet"
    for name in ("n01", "n02"):
        draw(root / "train" / name, 2)
    draw(root / "val", 2)
    for image in sorted((root / "val").iterdir()):
        image.rename(image.with_suffix(".JPEG"))
    (tmp_path / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\n000,n02 85 1 499 272 \n001,n01 1 0 9 2 n01 3 2 4 4\n"
    )
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    listing, _ = listed(root)
    assert [name for _, name in listing.held_out] == ["n02", "n01"]


def test_an_image_that_the_list_of_classes_lacks_has_that_of_its_folder(tmp_path):
    as_downloaded(tmp_path)
    draw(tmp_path / "val" / "n01", 1, 60)  # sorted into a class
    draw(tmp_path / "val" / "images", 1, 61)
    lines = []
    dataset = load_dataset("folder", str(tmp_path), log=lines.append)
    assert list(dataset.test.labels) == [1, 0, 1, 0]
    assert "1 images of val are ignored" in "\n".join(lines)


def test_a_line_of_the_list_of_classes_without_a_class_is_named(tmp_path):
    as_downloaded(tmp_path)
    path = tmp_path / "val" / "val_annotations.txt"
    path.write_text("050.png\tn02\n051.png\n")
    with pytest.raises(UsageError, match=r"val_annotations\.txt, line 2: expected a"):
        load_dataset("folder", str(tmp_path))
