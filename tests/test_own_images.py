"""Images as people have them: other files, labels in a table, arrays, traps."""

import numpy as np
import pytest
import tensorflow as tf
from options import parse
from PIL import Image

from ressl_keras import Config, UsageError
from ressl_keras.commands import train
from ressl_keras.commands.evaluate import EvaluateOptions
from ressl_keras.commands.train import TrainOptions
from ressl_keras.data.datasets import as_dataset, load_dataset
from ressl_keras.data.own import images_from
from ressl_keras.training import build
from ressl_keras.training.cautions import cautions

ENDINGS = (".jpg", ".png", ".webp", ".tif", ".TIFF", ".gif", ".bmp")


@pytest.fixture
def folder(tmp_path):
    """Twenty-one images in three dated folders, and files of other kinds."""
    root = tmp_path / "photos"
    for i in range(21):
        day = root / f"2024-0{1 + i % 3}"
        day.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), (10 * i,) * 3).save(day / f"{i:02}{ENDINGS[i % 7]}")
        (day / f"._{i:02}.jpg").write_bytes(b"\0\5\26\7 AppleDouble")
    for name in ("a.heic", "b.HEIC", "c.mov", "readme", "Thumbs.db"):
        (root / "2024-01" / name).write_text("of another kind")
    return root


def loaded(folder, **options):
    lines = []
    dataset = load_dataset("folder", str(folder), log=lines.append, **options)
    return dataset, "\n".join(lines)


def test_every_format_is_read_and_others_are_counted_by_ending(folder):
    dataset, said = loaded(folder)
    assert not dataset.skipped
    shades = [
        images.images.numpy()[:, 0, 0, 0] for images in (dataset.pretrain, dataset.test)
    ]
    expected = np.arange(21) * 10
    assert np.abs(np.sort(np.concatenate(shades)).astype(int) - expected).max() <= 1
    *checked, last = said.splitlines()  # of slow machines there is progress before
    assert last == "4 files passed over: 2 .heic, 1 .mov, 1 without ending."
    assert all(line.startswith("Checked ") for line in checked)


def test_without_labels_nothing_is_held_out(folder):
    (folder / "2024-03").rename(folder / "test")
    (folder / "2024-02").rename(folder / "train")
    dataset, _ = loaded(folder, labels="none")
    assert len(dataset.pretrain) == 21 and not dataset.labelled
    assert dataset.test is None and dataset.class_names == []
    drawn = load_dataset("shapes", labels="none")
    assert not drawn.labelled and len(drawn.pretrain) == 8000


def test_a_table_labels_some_images_and_the_rest_is_learned_from(folder):
    files = sorted(
        p for p in folder.rglob("*") if p.suffix in ENDINGS and p.name[0] != "."
    )
    rows = [
        f"{p.relative_to(folder)},{'dark' if i < 10 else 'light'}"
        for i, p in enumerate(files)
        if i % 21 != 20
    ]
    table = folder.parent / "labels.csv"
    table.write_text("\n".join(["file,label", *rows, "gone.jpg,dark", ""]))
    dataset, said = loaded(folder, labels=str(table))
    assert dataset.class_names == ["dark", "light"]
    assert [len(s) for s in (dataset.pretrain, dataset.train, dataset.test)] == [
        19,
        18,
        2,
    ]
    assert "1 rows of --labels name no readable image" in said and "gone.jpg" in said
    labels = {p: i >= 10 for i, p in enumerate(files)}
    held_out = [files[9], files[19]]
    np.testing.assert_array_equal(dataset.test.labels, [labels[p] for p in held_out])
    learned = dataset.pretrain.images.numpy()[:, 0, 0, 0].astype(int)
    for path in held_out:
        assert np.abs(learned - 10 * int(path.stem)).min() > 1


def test_a_table_of_the_test_images_alone_leaves_them_untouched(tmp_path):
    for index in range(20):
        path = (
            tmp_path / "images" / ("train" if index < 10 else "test") / f"{index}.png"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (5 * index,) * 3).save(path)
    rows = [f"test/{index}.png,{'ab'[index % 2]}" for index in range(10, 20)]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join([*rows, "train/1.png,", "train/2.png, "]))
    dataset, _ = loaded(tmp_path / "images", labels=str(table))
    assert not dataset.labelled
    shades = dataset.pretrain.images.numpy()[:, 0, 0, 0] // 5
    assert sorted(shades) == list(range(10))


@pytest.mark.parametrize("held_out", ["without images", "without labels", "with both"])
def test_a_table_of_labels_holds_out_the_test_folder_or_every_tenth(held_out, tmp_path):
    rows, root = [], tmp_path / "images"
    for index in range(40 if held_out != "without images" else 30):
        path = root / ("train" if index < 30 else "test") / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (5 * index,) * 3).save(path)
        if index < 30 or held_out == "with both":
            rows.append(f"{path.relative_to(root)},{'odd' if index % 2 else 'even'}")
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(rows))
    dataset, said = loaded(root, labels=str(table))
    shades = dataset.test.images.numpy()[:, 0, 0, 0] // 5
    if held_out == "with both":
        assert shades.tolist() == list(range(30, 40)) and len(dataset.train) == 30
    else:
        assert shades.tolist() == [9, 19, 29]
        assert len(dataset.train) == len(dataset.pretrain) == 27
    assert ("every tenth" in said) == (held_out == "without labels")


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "cannot be read: No such file"),
        ("a.jpg\n", "row 1: expected a file and a label"),
        ("a.jpg,x\nb.jpg,x\nb.jpg,y\n", "row 3: b.jpg has two labels"),
    ],
)
def test_a_table_that_makes_no_sense_is_one_line(text, message, folder, tmp_path):
    table = tmp_path / "labels.csv"
    if text:
        table.write_text(text)
    with pytest.raises(UsageError, match=message):
        loaded(folder, labels=str(table))


def test_too_few_labels_hold_nothing_out(folder, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("2024-01/00.jpg,one\n2024-02/01.png,two\n")
    dataset, said = loaded(folder, labels=str(table))
    assert len(dataset.pretrain) == 21 and not dataset.labelled
    assert "2 labelled images of 2 classes are too few" in said


def test_a_folder_is_read_where_only_the_folder_is_given():
    for kind in (TrainOptions, EvaluateOptions):
        more = ["--encoder=x"] if kind is EvaluateOptions else []
        assert parse(kind, "--data_dir=photos", *more).dataset == "folder"
        assert parse(kind, *more).dataset == "shapes"
        assert parse(kind, "--data_dir=x", "--dataset=cifar10", *more).dataset == (
            "cifar10"
        )
    with pytest.raises(UsageError, match="--dataset=folder reads its images"):
        load_dataset("shapes", "photos")


def test_a_queue_too_large_and_a_run_too_short_are_warned_of():
    images = images_from(np.zeros([256, 8, 8, 3], np.uint8))

    def said(**options):
        config = Config(batch_size=64, **options)
        plan = build.make_plan(config, images)
        return "\n".join(cautions(config, plan, images))

    text = said(queue_size=2048, epochs=1)
    assert "queue of 2,048 embeddings is larger" in text and "4 steps in all" in text
    assert not said(queue_size=256, epochs=50)
    assert not said(queue_size=256, max_steps=4)
    assert not said(queue_size=4096, references="batch", epochs=50)


@pytest.mark.parametrize(
    ("fewest", "passes", "steps"), [(1, 1, 4), (4, 1, 4), (5, 2, 8), (10, 3, 12)]
)
def test_an_epoch_of_few_images_is_several_passes(fewest, passes, steps):
    images = images_from(np.zeros([270, 8, 8, 3], np.uint8))
    config = Config(
        backbone="resnet10_small",
        width=4,
        batch_size=64,
        epochs=5,
        info_nce_epochs=1.5,
        min_steps_per_epoch=fewest,
        image_size=8,
    )
    plan = build.make_plan(config, images)
    assert (plan.passes_per_epoch, plan.steps_per_epoch) == (passes, steps)
    assert (plan.total_steps, plan.last_epoch) == (5 * steps, 5)
    model = build.build_model(config, plan)
    assert model.objective.get_config()["steps"] == 1.5 * steps


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"patch_size": 4}, "--patch_size=4 has no effect with --backbone=resnet18"),
        ({"patch_size": 4, "backbone": "vit_tiny"}, None),
        ({"init_preprocessing": "torch"}, "--init_preprocessing=torch has no effect"),
        ({"init_preprocessing": "torch", "init": "x.keras"}, None),
        ({"adam_betas": (0.9, 0.99)}, "--adam_betas=0.9,0.99 has no effect"),
        ({"adam_betas": (0.9, 0.99), "optimizer": "adamw"}, None),
        ({"sgd_momentum": 0.8, "optimizer": "adamw"}, "--sgd_momentum=0.8 has no eff"),
        ({"info_nce_temperature": 0.1}, "has no effect without --info_nce_epochs"),
        ({"info_nce_temperature": 0.1, "info_nce_epochs": 1}, None),
        ({"info_nce_temperature": 0.1, "method": "moco_v2"}, None),
        ({"teacher_temperature": 0.1, "method": "moco_v2"}, "with --method=moco_v2"),
        ({"info_nce_epochs": 5, "method": "moco_v2"}, "--info_nce_epochs=5.0 has no"),
        ({"info_nce_temperature": 0.1, "objective": "mine:distance"}, None),
    ],
)
def test_a_setting_without_effect_is_named(options, said):
    images = images_from(np.zeros([256, 8, 8, 3], np.uint8))
    config = Config(batch_size=64, queue_size=256, epochs=50, **options)
    found = list(cautions(config, build.make_plan(config, images), images))
    if said is None:
        assert found == []
    else:
        (line,) = found
        assert said in line


def test_the_command_proposed_at_the_end_can_be_run(folder):
    options = TrainOptions(data_dir=str(folder), labels="none", exif_orientation=False)
    dataset, _ = loaded(folder, labels="none")
    command = train._evaluation_command("e.keras", dataset, options).split()
    proposed = parse(EvaluateOptions, *command[1:])
    assert proposed.protocol == ("neighbours",) and proposed.labels == "none"
    assert proposed.dataset == "folder" and not proposed.exif_orientation
    labelled = train._evaluation_command(
        "e.keras", load_dataset("shapes"), TrainOptions()
    )
    assert labelled == "ressl-evaluate --encoder=e.keras --dataset=shapes"


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("form", ["alone", "tuple", "dict"])
def test_any_tf_dataset_gives_its_images_and_labels(form, batched, random):
    pixels = random.integers(0, 256, [7, 6, 5, 3]).astype(np.uint8)
    labels = np.arange(7)
    elements = {
        "alone": pixels,
        "tuple": (pixels, labels),
        "dict": {"image": pixels, "label": labels},
    }
    source = tf.data.Dataset.from_tensor_slices(elements[form])
    images = images_from(source.batch(3) if batched else source)
    np.testing.assert_array_equal(images.images, pixels)
    if form == "alone":
        assert images.labels is None
    else:
        np.testing.assert_array_equal(images.labels, labels)


def test_images_of_several_sizes_are_kept_without_loss(random):
    made = [random.integers(0, 256, [4 + i, 5, 1]).astype(np.uint8) for i in range(3)]
    source = tf.data.Dataset.from_generator(
        lambda: made, output_signature=tf.TensorSpec([None, None, 1], tf.uint8)
    )
    images = images_from(source)
    for index, pixels in enumerate(made):
        expected = np.broadcast_to(pixels, [*pixels.shape[:2], 3])
        np.testing.assert_array_equal(images.read(index), expected)


@pytest.mark.parametrize(
    "pixels, message",
    [
        (np.zeros([2, 4, 4, 3], np.float32), "must be uint8 in 0-255; got float32"),
        (np.zeros([2, 4, 4, 2], np.uint8), r"1, 3 or 4\]; got \[2, 4, 4, 2\]"),
        (np.zeros([0, 4, 4, 3], np.uint8), r"got \[0, 4, 4, 3\]"),
    ],
)
def test_arrays_that_are_no_images_are_refused(pixels, message):
    with pytest.raises(UsageError, match=message):
        as_dataset(pixels)


def test_gray_arrays_become_colour_and_sets_stay_as_they_are():
    images = images_from(np.full([3, 4, 5], 7, np.uint8), [0, 1, 1])
    assert images.images.shape == (3, 4, 5, 3) and images.labels.tolist() == [0, 1, 1]
    assert images_from(images) is images
    dataset = load_dataset("shapes")
    assert as_dataset(dataset) is dataset
    with pytest.raises(UsageError, match="3 images, but 2 labels"):
        images_from(np.zeros([3, 4, 5], np.uint8), [0, 1])
    one_hot = np.zeros([3, 4, 5, 3], np.uint8), np.eye(3, 4)
    for batched in (True, False):
        source = tf.data.Dataset.from_tensor_slices(one_hot)
        with pytest.raises(UsageError, match="a label is one integer"):
            images_from(source.batch(2) if batched else source)
