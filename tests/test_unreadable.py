"""Images that cannot be read: replaced by the next one, counted, and remembered.

Pillow says which can be read, NumPy which comes next.
"""

import os

import numpy as np
import pytest
import tensorflow as tf
from options import parse
from PIL import Image

from ressl_keras.commands.check import CheckOptions, check
from ressl_keras.data import checking, pipeline
from ressl_keras.data.images import EncodedImages, Subset

COUNT, BATCH, SIZE = 20, 6, 8
BROKEN = {3: "gone", 4: "text", 11: "gone", 19: "cut"}


def is_readable(path):
    try:
        with Image.open(path) as image:
            image.load()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """PNG, TIFF and JPEG files of three sizes, each of its own gray; four are broken.

    A crop then shows by its colour which file was read.
    """
    folder, found = tmp_path_factory.mktemp("files"), []
    for i in range(COUNT):
        path = folder / f"{i:02}.{('png', 'tiff', 'jpg')[i % 3]}"
        Image.new("RGB", (12, 9 + i % 3), (10 * i,) * 3).save(path)
        if BROKEN.get(i) == "gone":
            path.unlink()
        elif BROKEN.get(i) == "text":
            path.write_text("no image")
        elif BROKEN.get(i) == "cut":
            path.write_bytes(path.read_bytes()[:60])
        found.append(str(path))
    return found


@pytest.fixture(scope="module")
def following(paths):
    """For each file the index of the next that Pillow reads, itself included."""
    readable = np.array([is_readable(path) for path in paths])
    np.testing.assert_array_equal(np.flatnonzero(~readable), list(BROKEN))
    (readable,) = np.nonzero(readable)
    after = np.searchsorted(readable, np.arange(COUNT))
    return readable[after % len(readable)]


@pytest.fixture
def images(paths):
    return EncodedImages(list(map(os.fsencode, paths)), np.arange(COUNT))


def training(images, first, last, worker=0, workers=1):
    """The images that each step reads, by the colours of both views."""
    batches = pipeline.training_batches(
        images, BATCH, 3, first, last, SIZE, worker, workers
    )
    for batch in batches.as_numpy_iterator():
        read = files_in(batch["teacher"])
        np.testing.assert_array_equal(files_in(batch["student"]), read)
        yield read


def files_in(batch):
    gray = np.mean(batch, axis=(1, 2, 3)) / 10
    np.testing.assert_allclose(gray, np.round(gray), atol=0.15)
    return np.round(gray).astype(int)


@pytest.mark.long
def test_training_reads_the_next_readable_image_in_place_of_a_broken_one(
    images, following
):
    """Epochs of three steps; also from the middle of one on, and half of a batch."""
    order = pipeline.shuffled_indices(COUNT, BATCH, 3, 2, 11)
    expected = [following[step] for step in order.as_numpy_iterator()]
    assert len(images.unreadable.indices()) == 0
    np.testing.assert_array_equal(list(training(images, 2, 11)), expected)
    np.testing.assert_array_equal(images.unreadable.indices(), list(BROKEN))
    half = list(training(images, 5, 8, worker=1, workers=2))
    np.testing.assert_array_equal(half, [step[3:] for step in expected[3:6]])


def test_evaluation_keeps_its_rows_and_says_which_are_others(images, following, paths):
    batches = list(pipeline.evaluation_batches(images, SIZE, BATCH))
    assert [len(batch) for batch in batches] == [6, 6, 6, 2]
    np.testing.assert_array_equal(files_in(np.concatenate(batches)), following)
    np.testing.assert_array_equal(images.unreadable.indices(), list(BROKEN))
    words = {"gone": "is not there any more", "text": "cannot be decoded"}
    words["cut"] = words["text"]
    assert images.unreadable.faults() == {
        paths[i]: words[what] for i, what in BROKEN.items()
    }
    part = Subset(images, [19, 0, 3, 4, 5])
    (batch,) = pipeline.evaluation_batches(part, SIZE)
    np.testing.assert_array_equal(files_in(batch), [0, 0, 5, 5, 5])
    np.testing.assert_array_equal(part.unreadable.indices(), [0, 2, 3])


@pytest.mark.long
def test_a_crop_has_the_label_of_the_image_that_was_read(images, following):
    order = pipeline.shuffled_indices(COUNT, BATCH, 1, 0, 6).as_numpy_iterator()
    crops = pipeline.labelled_crops(images, BATCH, 2, SIZE, seed=1)
    for step, (batch, labels) in zip(order, crops.as_numpy_iterator(), strict=True):
        np.testing.assert_array_equal(labels, following[step])
        np.testing.assert_array_equal(files_in(batch), labels)


def test_a_file_that_fails_once_is_not_replaced(images, following, monkeypatch):
    """As on a network disk: it is read a second time before another takes its place."""
    asked = []

    def once(index):
        asked.append(int(index))
        if index == 7 and asked.count(7) == 1:
            raise OSError("try again")
        return np.int64(index)

    def encoded(index):
        known = tf.numpy_function(once, [index], tf.int64)
        return tf.io.read_file(tf.gather(images.sources, known))

    monkeypatch.setattr(images, "encoded", encoded)
    batches = list(pipeline.evaluation_batches(images, SIZE, 4))
    np.testing.assert_array_equal(files_in(np.concatenate(batches)), following)
    assert 7 not in images.unreadable.indices() and asked.count(7) == 2


def test_where_nothing_can_be_read_the_error_is_that_of_the_image(tmp_path):
    images = EncodedImages([os.fsencode(tmp_path / f"{i}.png") for i in range(9)])
    with pytest.raises(tf.errors.OpError, match=r"0\.png; No such file"):
        list(pipeline.evaluation_batches(images, SIZE))


def test_a_share_is_exceeded_only_beyond_ten():
    found = checking.Unreadable(str)
    for read, count, expected in [
        (20, 10, None),
        (20, 11, (11, 20)),
        (2000, 20, None),
        (2000, 21, (21, 2000)),
    ]:
        found = checking.Unreadable(str)
        found.record(np.arange(count), read)
        assert found.excess(0.01, 10000) == expected
    # Read again in the next epochs, they are no more than there are.
    found.record(np.arange(0), 10**6)
    assert found.excess(0.01, 2000) == (21, 2000) and not found.excess(0.01, 2100)
    # What an evaluation finds does not count.
    found.record(np.arange(100))
    assert not found.excess(0.01, 2100) and len(found.indices()) == 100


@pytest.fixture
def tree(tmp_path, random):
    """Forty images of one size; one has a readable header only, and one is text."""
    for i in range(40):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, [10, 12, 3]).astype(np.uint8)
        Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:80])
    (tmp_path / "images" / "a" / "text.png").write_text("no image")
    return tmp_path / "images"


def checked(tree, *words):
    """Lines that the command prints, and the listed names by reason."""
    lines, output = [], tree.parent / "unreadable.txt"
    words = [f"--data_dir={tree}", f"--output={output}", *words]
    check(parse(CheckOptions, *words), lines.append)
    listed = [line.split("\t") for line in output.read_text().splitlines()]
    return lines, {os.path.basename(path): reason for reason, path in listed}


def test_the_command_names_what_cannot_be_read(tree):
    lines, found = checked(tree)
    assert found == dict.fromkeys(["39.png", "text.png"], "cannot be decoded")
    assert {"41 images, 2 unreadable.", "2 cannot be decoded, such as:"} < set(lines)


def test_a_second_check_reads_what_is_new_or_changed_only(tree, monkeypatch):
    read = []
    decodable = checking._decodable

    def counting(paths, decoder):
        read.extend(map(os.path.basename, paths))
        return decodable(paths, decoder)

    monkeypatch.setattr(checking, "_decodable", counting)
    _, first = checked(tree)
    assert len(set(read)) == 41
    # What cannot be decoded is tried once more.
    assert sorted(read) == sorted([*set(read), "39.png", "text.png"])
    read.clear()
    lines, second = checked(tree)
    assert not read and second == first
    assert lines[0].startswith("41 of 41 images are as an earlier check found them")
    # Repaired, damaged, new, gone.
    Image.new("RGB", (5, 6)).save(tree / "a" / "text.png")
    (tree / "b" / "01.png").write_bytes(b"broken")
    Image.new("RGB", (5, 6)).save(tree / "new.png")
    (tree / "a" / "02.png").unlink()
    lines, third = checked(tree)
    assert sorted(read) == ["01.png", "01.png", "new.png", "text.png"]
    assert set(third) == {"39.png", "01.png"}
    assert "41 images, 2 unreadable." in lines
    read.clear()
    checked(tree, "--again")
    assert len(set(read)) == 41
    assert sorted(read) == sorted([*set(read), "01.png", "39.png"])


def test_an_error_in_passing_is_not_remembered(tree, monkeypatch):
    decodable, calls = checking._decodable, []

    def failing_first(paths, decoder):
        calls.append(paths)
        found = list(decodable(paths, decoder))
        return found[5:] if len(calls) == 1 else found

    expected = checked(tree)[1]
    monkeypatch.setattr(checking, "_decodable", failing_first)
    assert checked(tree, "--again")[1] == expected


def test_what_is_remembered_is_by_path_size_and_time(tree):
    """With all three as before a file is not opened; one of them is enough to."""
    _, first = checked(tree)
    path = tree / "b" / "01.png"
    status = path.stat()
    path.write_bytes(b"x" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert checked(tree)[1] == first
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert set(checked(tree)[1]) - set(first) == {"01.png"}


def test_a_damaged_memory_is_written_anew(tree, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    _, first = checked(tree)
    (kept,) = (tmp_path / "own" / "ressl_keras").iterdir()
    for damage in (b"", kept.read_bytes()[:200]):
        kept.write_bytes(damage)
        assert checked(tree)[1] == first
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    lines, found = checked(tree)
    assert found == first and "The check is not remembered" in "".join(lines)


def test_the_check_says_how_far_it_is(tree):
    paths = [str(path) for path in sorted(tree.rglob("*.png"))]
    seconds, lines = iter(range(0, 1000, 3)), []
    sizes, faults = checking.check(
        paths, str(tree), log=lines.append, again=True, clock=lambda: next(seconds)
    )
    # Every fourth of 39; a read clock is three seconds further.
    assert lines == [f"Checked {n} of 41 images." for n in range(4, 39, 4)]
    assert len(faults) == 2
    assert set(map(tuple, sizes.tolist())) == {(10, 12), (0, 0)}
