"""Shards packed from a folder: the same training, and what is wrong with them."""

import io
import json
import os
import shutil
import tarfile

import numpy as np
import pytest
import tensorflow as tf
from options import parse
from PIL import Image

from benchmarks.record import Memory
from ressl_keras import UsageError
from ressl_keras.commands import pack as command
from ressl_keras.data import packed, packing, pipeline
from ressl_keras.data.datasets import load_dataset

KINDS = pytest.mark.parametrize("kind", packing.KINDS)
ENDINGS = (".jpg", ".PNG", ".bmp")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of several sizes and formats in two classes, train and test."""
    root, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(36):
        split = "test" if number % 6 == 0 else "train"
        place = root / split / ("cats", "dogs")[number // 6 % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, [*random.integers(20, 60, 2), 3])
        ending = ENDINGS[number % 3]
        kind = ending.upper()[1:].replace("JPG", "JPEG")
        Image.fromarray(pixels.astype(np.uint8)).save(
            place / f"{number:02}{ending}", kind
        )
    return root


def packed_from(folder, output, *flags):
    """Packs a folder by the command; loads what it wrote."""
    words = [f"--data_dir={folder}", f"--output={output}", *flags]
    command.pack(parse(command.PackOptions, *words))
    return load_dataset("packed", str(output))


def batches(images, *steps, worker=0, workers=1):
    """The batches of steps, lists of arrays."""
    found = pipeline.training_batches(images, 8, 3, *steps, 16, worker, workers)
    return [[batch[name].numpy() for name in sorted(batch)] for batch in found]


def equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def sets(folder, tmp_path_factory):
    """The data set of the folder, of its records, and of its tar shards."""
    root = tmp_path_factory.mktemp("sets")
    found = {"folder": load_dataset("folder", str(folder))}
    for kind in packing.KINDS:
        found[kind] = packed_from(folder, root / kind, f"--format={kind}")
    return found


@pytest.fixture(scope="module")
def expected(sets):
    """Two epochs and a half of the folder."""
    return batches(sets["folder"].pretrain, 0, 7)


@KINDS
@pytest.mark.long
def test_shards_train_as_the_folder_that_they_were_packed_from(kind, sets, expected):
    assert len(sets[kind].pretrain) == 30
    equal(batches(sets[kind].pretrain, 0, 7), expected)


def test_training_goes_on_in_the_middle_of_an_epoch(sets, expected):
    equal(batches(sets["tfrecord"].pretrain, 5, 7), expected[5:])


@pytest.mark.long
def test_workers_share_the_batches_of_a_set_of_shards(sets, expected):
    images = sets["tar"].pretrain
    shares = [batches(images, 5, 7, worker=worker, workers=2) for worker in range(2)]
    whole = [[np.concatenate(halves) for halves in zip(*both)] for both in zip(*shares)]
    equal(whole, expected[5:])


@KINDS
def test_shards_are_judged_as_the_folder(kind, sets):
    ours, theirs = sets[kind], sets["folder"]
    assert ours.class_names == theirs.class_names == ["cats", "dogs"]
    assert ours.train is ours.pretrain and ours.labelled
    for one, other in ((ours.train, theirs.train), (ours.test, theirs.test)):
        np.testing.assert_array_equal(one.labels, other.labels)
        equal(contents(one), contents(other))
    equal(
        pipeline.evaluation_batches(ours.test, 16, 4),
        pipeline.evaluation_batches(theirs.test, 16, 4),
    )


def contents(images):
    """The encoded images of a set in their order."""
    read = tf.data.Dataset.range(len(images)).map(images.encoded)
    return list(read.as_numpy_iterator())


def files_below(folder, split):
    """(class, bytes) of the files of a set in the order of their names."""
    paths = sorted((folder / split).rglob("*.*"))
    return [(path.parent.name, path.read_bytes()) for path in paths]


@pytest.mark.parametrize("shard", ["tfrecord"], indirect=True)
def test_records_hold_the_files_as_they_are(shard, folder):
    spec = {
        "image": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([], tf.int64),
        "name": tf.io.FixedLenFeature([], tf.string),
    }
    for split in ("train", "test"):
        name = str(shard).replace("train", split)
        records = tf.data.TFRecordDataset(name)
        examples = [tf.io.parse_single_example(record, spec) for record in records]
        found = [(("cats", "dogs")[e["label"]], e["image"].numpy()) for e in examples]
        assert found == files_below(folder, split)
        for example in examples:
            path = folder / example["name"].numpy().decode()
            assert path.read_bytes() == example["image"].numpy()


@pytest.mark.parametrize("shard", ["tar"], indirect=True)
def test_tar_shards_have_the_layout_of_webdataset(shard, folder):
    found = []
    with tarfile.open(shard) as archive:
        members = [(m.name, archive.extractfile(m).read()) for m in archive]
    for (image, data), (label, number) in zip(members[::2], members[1::2]):
        stem, ending = os.path.splitext(image)
        assert label == f"{stem}.cls" and ending in (".jpg", ".png", ".bmp")
        found.append((("cats", "dogs")[int(number)], data))
    assert found == files_below(folder, "train")


@KINDS
def test_a_set_is_split_into_shards_of_the_size_asked_for(kind, folder, tmp_path):
    dataset = load_dataset("folder", str(folder), memory_limit=0)
    output = tmp_path / "shards"
    packing.pack(dataset, str(folder), str(output), kind, shard_bytes=20_000)
    sizes = [path.stat().st_size for path in sorted(output.glob(f"train-*.{kind}"))]
    assert len(sizes) > 2 and max(sizes) < 60_000
    found = load_dataset("packed", str(output))
    assert contents(found.pretrain) == contents(dataset.pretrain)


def test_images_without_a_label_are_learned_from(folder, tmp_path):
    """A table names twenty images; every tenth of them is held out."""
    flat, table = tmp_path / "flat", tmp_path / "labels.csv"
    flat.symlink_to(folder / "train")  # a folder without train and test
    paths = sorted((folder / "train").rglob("*.*"))[:20]
    rows = [
        f"{path.relative_to(folder / 'train')},{'ab'[place % 2]}"
        for place, path in enumerate(paths)
    ]
    table.write_text("\n".join(rows))
    ours = packed_from(flat, tmp_path / "shards", f"--labels={table}")
    theirs = load_dataset("folder", str(flat), labels=str(table))
    assert (len(ours.pretrain), len(ours.train), len(ours.test)) == (28, 18, 2)
    assert ours.class_names == ["a", "b"]
    np.testing.assert_array_equal(ours.train.labels, theirs.train.labels)
    for name in ("pretrain", "train", "test"):
        assert contents(getattr(ours, name)) == contents(getattr(theirs, name))


@pytest.mark.parametrize("flag", ["--labels=none", "--labels=folders"])
def test_shards_without_labels_stay_without(flag, folder, tmp_path):
    source = folder if "none" in flag else folder / "train" / "cats"
    dataset = packed_from(source, tmp_path / "shards", flag)
    assert len(dataset.pretrain) == (36 if "none" in flag else 15)
    assert dataset.pretrain.labels is None
    assert not dataset.labelled and dataset.class_names == []


def test_broken_images_are_left_out_where_images_are_checked(tmp_path, capsys):
    root = tmp_path / "images"
    root.mkdir()
    for number in range(3):
        Image.new("RGB", (20 + number, 20), (number, 0, 0)).save(root / f"{number}.png")
    (root / "3.png").write_bytes((root / "0.png").read_bytes()[:50])
    assert len(packed_from(root, tmp_path / "checked").pretrain) == 3
    assert f"cannot be decoded: {root}/3.png" in capsys.readouterr().out
    unchecked = packed_from(root, tmp_path / "unchecked", "--nocheck_images")
    assert len(unchecked.pretrain) == 4


@pytest.mark.long
def test_small_images_of_one_size_are_kept_in_memory(tmp_path, random):
    root = tmp_path / "images"
    root.mkdir()
    pixels = random.integers(0, 256, [5, 8, 10, 3]).astype(np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(root / f"{number}.png")
    found = packed_from(root, tmp_path / "shards").pretrain
    np.testing.assert_array_equal(found.images, pixels)
    output = str(tmp_path / "shards")
    limit = pixels.size - 1
    assert not load_dataset("packed", output, memory_limit=limit).pretrain.same_size
    unchecked = packed_from(root, tmp_path / "unchecked", "--nocheck_images")
    assert unchecked.pretrain.storage == "read from 1 shard"
    Image.new("RGB", (10, 9)).save(root / "other.png")
    assert not packed_from(root, tmp_path / "several").pretrain.same_size


def test_a_folder_is_packed_into_once(folder, tmp_path):
    output = tmp_path / "shards"
    packed_from(folder, output)
    before = sorted(output.iterdir())
    with pytest.raises(UsageError, match="is packed already"):
        packed_from(folder, output)
    assert sorted(output.iterdir()) == before
    with pytest.raises(UsageError, match="not empty: it has test"):
        packed_from(folder, folder)


@KINDS
def test_packing_that_stopped_while_it_gave_names_starts_again(
    kind, folder, tmp_path, monkeypatch
):
    output, renamed, rename = tmp_path / "shards", [], packing.replace_on_disk

    def stop_at_the_second(*names):
        if renamed:
            raise KeyboardInterrupt
        renamed.append(rename(*names))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(packing, "replace_on_disk", stop_at_the_second)
        packed_from(folder, output, f"--format={kind}")
    assert renamed
    assert len(packed_from(folder, output, f"--format={kind}").pretrain) == 30
    assert not [path for path in output.iterdir() if path.name.startswith("writing")]


@KINDS
def test_what_was_interrupted_is_no_data_set_and_is_packed_anew(
    kind, folder, tmp_path, monkeypatch
):
    output = tmp_path / "shards"

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(packing, "_finish", stop)
        packed_from(folder, output, f"--format={kind}")
    with pytest.raises(UsageError, match="not packed to its end"):
        load_dataset("packed", str(output))
    assert len(packed_from(folder, output, f"--format={kind}").pretrain) == 30


def png(value, size=(12, 10)):
    file = io.BytesIO()
    Image.new("RGB", size, (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_tar_shards_of_others_are_read(tmp_path):
    """Labels before or behind their images, in JSON or alone, folders in the keys."""
    write_tar(
        tmp_path / "set-train-0000.tar",
        [
            ("a/0001.png", png(1)),
            ("a/0001.cls", b"2\n"),
            ("a/0002.cls", b"0"),
            ("a/0002.PNG", png(2)),
            ("b/0002.txt", b"a caption"),
            ("b/0002.left.txt", b"another"),
            ("b/0002.png", png(3)),
            ("b/0002.json", json.dumps({"label": 1, "width": 12}).encode()),
        ],
    )
    write_tar(
        tmp_path / "set-train-0001.tar", [("x.jpg", png(4)), ("x.json", b'{"cls": 2}')]
    )
    write_tar(
        tmp_path / "set-validation-0000.tar", [("0.png", png(5)), ("0.cls", b"1")]
    )
    dataset = load_dataset("packed", str(tmp_path))
    np.testing.assert_array_equal(dataset.train.labels, [2, 0, 1, 2])
    np.testing.assert_array_equal(dataset.test.labels, [1])
    assert dataset.class_names == ["0", "1", "2"]
    pixels = [dataset.train.read(i).numpy()[0, 0, 0] for i in range(4)]
    assert pixels == [1, 2, 3, 4]


def test_labels_that_are_no_numbers_and_files_of_a_mac_cost_no_image(tmp_path):
    """Nor do links, which are the file that they point to."""
    path = tmp_path / "train-0.tar"
    write_tar(
        path,
        [
            ("0.png", png(0)),
            ("._0.png", b"of a Mac"),
            ("0.cls", b"1"),
            ("1.png", png(1)),
            ("1.json", b'{"label": "dog"}'),
            ("2.png", png(2)),
            ("2.json", b'[{"box": [0, 1]}]'),
        ],
    )
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("3.png")
        link.type, link.linkname = tarfile.LNKTYPE, "1.png"
        archive.addfile(link)
    write_tar(tmp_path / "test-0.tar", [("0.png", png(9))])
    write_tar(tmp_path / "val-0.tar", [("0.png", png(5)), ("0.cls", b"1")])
    lines = []
    dataset = load_dataset("packed", str(tmp_path), log=lines.append)
    assert "The shards for test are not used." in lines
    shades = [dataset.pretrain.read(i).numpy()[0, 0, 0] for i in range(4)]
    assert shades == [0, 1, 2, 1] and len(dataset.pretrain) == 4
    assert dataset.pretrain.labels.tolist() == [1, -1, -1, -1]
    assert dataset.test.read(0).numpy()[0, 0, 0] == 5


@pytest.mark.parametrize(
    "members, message",
    [
        ([("0.png", png(0)), ("0.cls", b"cat")], r"train-0.tar: 0.cls holds no class"),
        ([("0.png", png(0)), ("0.json", b"{")], r"train-0.tar: 0.json holds no class"),
        ([("0.txt", b"only text")], "hold no image"),
        ([], "hold no image"),
    ],
)
def test_tar_shards_with_other_contents_are_refused(members, message, tmp_path):
    write_tar(tmp_path / "train-0.tar", members)
    with pytest.raises(UsageError, match=message):
        load_dataset("packed", str(tmp_path))


@pytest.mark.parametrize(
    "name, message",
    [
        (None, "needs --data_dir"),
        ("nowhere", "There is no folder"),
        ("empty", "no packed.json and no .tar shards"),
        ("test_only", "no .tar shards to learn from"),
        ("odd", r"packed.json cannot be read \(KeyError\)"),
        ("lost", "shard .*train-000000.tfrecord cannot be read: No such file"),
    ],
)
def test_folders_that_are_not_packed_are_refused_in_a_line(name, message, tmp_path):
    for folder in ("empty", "test_only", "odd", "lost"):
        (tmp_path / folder).mkdir()
    write_tar(tmp_path / "test_only" / "test-0.tar", [("0.png", png(0))])
    (tmp_path / "odd" / "packed.json").write_text('{"sets": {}}')
    facts = {"sets": {"train": {"shards": ["train-000000.tfrecord"]}}}
    facts["class_names"] = []
    (tmp_path / "lost" / "packed.json").write_text(json.dumps(facts))
    with pytest.raises(UsageError, match=message) as refused:
        load_dataset("packed", name and str(tmp_path / name))
    assert "\n" not in str(refused.value)


@pytest.fixture(params=packing.KINDS)
def shard(request, sets, tmp_path):
    """Path of the one shard of a packed set, whose index is there."""
    source = os.path.dirname(sets[request.param].pretrain.index.paths[0])
    shutil.copytree(source, tmp_path / "shards")
    return tmp_path / "shards" / f"train-000000.{request.param}"


@pytest.mark.parametrize("kept", [0.6, 0.99, 0])
def test_a_shard_that_was_cut_is_one_line(kept, shard):
    data = shard.read_bytes()
    shard.write_bytes(data[: int(kept * len(data)) // 512 * 512])
    message = (
        "hold no image" if not kept and shard.suffix == ".tfrecord" else shard.name
    )
    with pytest.raises(UsageError, match=message) as refused:
        load_dataset("packed", str(shard.parent))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("shard", ["tfrecord"], indirect=True)
def test_a_record_with_a_wrong_byte_is_one_line(shard):
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UsageError, match=r"train-000000\.tfrecord is damaged"):
        load_dataset("packed", str(shard.parent))


@pytest.mark.long
def test_images_behind_the_end_of_a_shard_that_is_cut_are_named(shard):
    images = load_dataset("packed", str(shard.parent)).pretrain
    os.truncate(shard, shard.stat().st_size // 2)
    list(pipeline.evaluation_batches(images, 16))
    gone = images.index.offsets + images.index.lengths > shard.stat().st_size
    np.testing.assert_array_equal(images.unreadable.indices(), np.flatnonzero(gone))
    assert gone.any() and not gone.all()
    for place in images.unreadable.faults():
        assert place.startswith(f"{shard}, byte ")


def test_the_second_start_reads_no_record(shard):
    labels = load_dataset("packed", str(shard.parent)).train.labels
    status = shard.stat()
    shard.write_bytes(bytes(status.st_size))
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    found = load_dataset("packed", str(shard.parent)).train.labels
    np.testing.assert_array_equal(found, labels)


def relabel(shard):
    """Packs one black image of class 1 into a shard."""
    if shard.suffix == ".tar":
        write_tar(shard, [("0.png", png(0)), ("0.cls", b"1")])
        return
    image = tf.train.Feature(bytes_list=tf.train.BytesList(value=[png(0)]))
    label = tf.train.Feature(int64_list=tf.train.Int64List(value=[1]))
    features = tf.train.Features(feature={"image": image, "label": label})
    with tf.io.TFRecordWriter(str(shard)) as writer:
        writer.write(tf.train.Example(features=features).SerializeToString())


@pytest.mark.parametrize("damage", ["stale", "cut", "flipped", "text", "folder"])
def test_an_index_that_is_stale_or_damaged_is_built_anew(
    damage, shard, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    index = shard.parent / "ressl-index-train.npz"
    data = index.read_bytes()
    expected = load_dataset("packed", str(shard.parent)).train.labels
    if damage == "stale":
        relabel(shard)
        expected = [1]
    elif damage == "folder":  # a place that cannot be written
        index.unlink()
        (index / "inside").mkdir(parents=True)
    else:
        flipped = bytearray(data)
        flipped[len(data) // 2] ^= 1
        damaged = {"cut": data[:-99], "flipped": flipped, "text": b"no index"}
        index.write_bytes(damaged[damage])
    for _ in range(2):
        found = load_dataset("packed", str(shard.parent)).train.labels
        np.testing.assert_array_equal(found, expected)
    if damage == "folder":
        assert len(list((tmp_path / "cache" / "ressl_keras").iterdir())) == 1
    elif damage != "stale":
        assert index.read_bytes() == data
    assert not list(shard.parent.glob("writing-*"))


def test_few_shards_are_open_at_a_time(folder, tmp_path, monkeypatch):
    def open_shards():
        links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
        return sum(
            os.readlink(link).startswith(str(tmp_path))
            for link in links
            if os.path.lexists(link)
        )

    dataset = load_dataset("folder", str(folder), memory_limit=0)
    packing.pack(dataset, str(folder), str(tmp_path / "p"), shard_bytes=5000)
    monkeypatch.setattr(packed, "_MOST_OPEN", 3)
    images = load_dataset("packed", str(tmp_path / "p")).pretrain
    assert len(images.index.paths) > 6
    read = tf.data.Dataset.range(len(images)).repeat(5).map(images.encoded, 16)
    found = list(read.as_numpy_iterator())
    assert found[: len(images)] == [data for _, data in files_below(folder, "train")]
    assert open_shards() == 3


def test_zeros_at_the_end_of_an_image_are_read(tmp_path):
    data = png(7) + bytes(9)
    write_tar(tmp_path / "train-0.tar", [("0.png", data), ("1.png", b"\0" * 5)])
    images = load_dataset("packed", str(tmp_path)).pretrain
    assert [images.encoded(i).numpy() for i in range(2)] == [data, bytes(5)]


def test_the_bytes_of_an_image_are_freed_again(tmp_path):
    """Twenty passes over 16 MB, read and left alone, take none of the memory."""
    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(16):
        noise = random.integers(0, 256, [580, 580, 3]).astype(np.uint8)
        Image.fromarray(noise).save(tmp_path / "images" / f"{number}.bmp")
    images = packed_from(tmp_path / "images", tmp_path / "packed").pretrain
    lengths = tf.data.Dataset.range(16).map(
        lambda index: tf.strings.length(images.encoded(index))
    )

    list(lengths)
    before = Memory.now()
    read = sum(int(length) for length in lengths.repeat(20)) / 2**20
    assert read > 300 and Memory.now() - before < 0.2 * read
