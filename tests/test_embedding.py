"""Embedding a data set into a table, against the encoder itself."""

import os

import numpy as np
import pytest
import tensorflow as tf
from options import parse
from PIL import Image

from ressl_keras import build_backbone, load_encoder, read_image
from ressl_keras.commands.embed import EmbedOptions, embed
from ressl_keras.data.datasets import Dataset
from ressl_keras.data.images import ArrayImages, Subset
from ressl_keras.embeddings import embedding, table
from ressl_keras.embeddings.listing import Source
from ressl_keras.embeddings.table import read_table
from ressl_keras.encoders.building import build_encoder
from ressl_keras.encoders.encoder import save_encoder
from ressl_keras.evaluation import features


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    backbone = build_backbone("resnet10_small", (8, 8, 3), width=4)
    facts = {"input_size": [8, 8]}
    return save_encoder(build_encoder(backbone, any_size=True), folder, facts)


@pytest.fixture
def images(tmp_path, random):
    """A folder of two classes of images that differ in size."""
    folder = tmp_path / "images"
    for i in range(12):
        path = folder / ("cats" if i % 2 else "dogs") / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, [9 + i, 12, 3]).astype(np.uint8)
        Image.fromarray(pixels).save(path)
    return folder


def run(encoder, images, output, *words):
    words = [f"--encoder={encoder}", f"--data_dir={images}", *words]
    embed(parse(EmbedOptions, *words, f"--output={output}", "--strategy=one_device"))


def expected(encoder, images, files):
    network = load_encoder(encoder)
    pixels = [read_image(images / file, 8) for file in files]
    return network(np.stack(pixels)).numpy()


@pytest.mark.long
def test_every_image_has_a_row_with_name_set_label_and_embedding(
    encoder, images, tmp_path, capsys
):
    run(encoder, images, tmp_path / "e.parquet")
    rows = read_table(str(tmp_path / "e.parquet"))
    found = sorted(str(path.relative_to(images)) for path in images.rglob("*.png"))
    assert sorted(rows.files) == found
    assert rows.sets.count("test") == 1  # every tenth is held out
    assert [file.split("/")[0] for file in rows.files] == rows.labels
    np.testing.assert_allclose(
        rows.embeddings, expected(encoder, images, rows.files), atol=1e-5
    )
    assert "12 embeddings" in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path)) == ["e.parquet", "images"]


def test_sets_may_share_names_and_images(random):
    pixels = random.integers(0, 256, [5, 8, 8, 3]).astype(np.uint8)

    def images(rows, labels=None):
        return ArrayImages(pixels[rows], labels, "{}.png".format)

    train, test = images([0, 1], [0, 1]), images([2, 3], [0, 1])
    dataset = Dataset("mine", images([0, 1, 4]), train, test, ["a", "b"])
    network = build_encoder(build_backbone("resnet10_small", (8, 8, 3), width=4))
    tables = list(embedding.embed(network, dataset, features.ONE_DEVICE))
    assert [table.files for table in tables] == [
        ["0.png", "1.png"],
        ["0.png", "1.png"],
        ["2.png"],
    ]
    assert [table.labels for table in tables] == [["a", "b"], ["a", "b"], [None]]
    found = np.concatenate([table.embeddings for table in tables])
    np.testing.assert_allclose(found, network(pixels), atol=1e-5)


def test_labelled_images_of_shards_are_left_out_by_their_place(random):
    """Test shards may repeat the names of those to learn from."""
    pixels = random.integers(0, 256, [5, 8, 8, 3]).astype(np.uint8)
    pretrain = ArrayImages(pixels[:3], np.array([0, -1, 1]), "{}.png".format)
    test = ArrayImages(pixels[3:], np.array([0, 1]), lambda index: f"{index + 1}.png")
    dataset = Dataset("packed", pretrain, Subset(pretrain, [0, 2]), test, ["a", "b"])
    network = build_encoder(build_backbone("resnet10_small", (8, 8, 3), width=4))
    tables = list(embedding.embed(network, dataset, features.ONE_DEVICE))
    assert [table.files for table in tables] == [
        ["0.png", "2.png"],
        ["1.png", "2.png"],
        ["1.png"],
    ]
    found = np.concatenate([table.embeddings for table in tables])
    order = [0, 2, 3, 4, 1]
    np.testing.assert_allclose(found, network(pixels[order]), atol=1e-5)


@pytest.fixture
def deep_images(tmp_path, random):
    """A folder of 16-bit images."""
    (tmp_path / "deep").mkdir()
    for index in range(3):
        deep = random.integers(0, 4096, [8, 8]).astype(np.uint16)
        Image.fromarray(deep).save(tmp_path / "deep" / f"{index}.png")
    return tmp_path / "deep"


def test_a_query_is_read_as_the_images_of_the_table_were(
    encoder, deep_images, tmp_path
):
    output = tmp_path / "e.parquet"
    run(encoder, deep_images, output, "--labels=none", "--value_range=0,60000")
    bank = Source.read(str(output))
    path = str(deep_images / "1.png")
    asked = Source.of_image(path, load_encoder(encoder), bank)
    row = bank.table.files.index("1.png")
    np.testing.assert_allclose(
        asked.table.embeddings[0], bank.table.embeddings[row], atol=1e-5
    )


def test_an_encoder_decides_how_images_are_read_where_no_flag_does(
    deep_images, tmp_path
):
    backbone = build_backbone("resnet10_small", (8, 8, 1), width=4)
    facts = {"input_size": [8, 8], "value_range": [0.0, 60000.0]}
    encoder = save_encoder(build_encoder(backbone, any_size=True), tmp_path, facts)
    found = []
    for words in ([], ["--value_range=0,60000", "--channels=1"], ["--value_range=0,9"]):
        run(encoder, deep_images, tmp_path / "e.parquet", "--labels=none", *words)
        found.append(read_table(str(tmp_path / "e.parquet")).embeddings)
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.allclose(found[0], found[2])


@pytest.mark.long
def test_an_update_takes_nothing_that_was_read_in_another_way(
    encoder, deep_images, tmp_path, capsys
):
    flags = "--labels=none", "--value_range=0,4095"
    embeddings = []
    for name, words in (
        ("old", flags[:1]),
        ("old", (*flags, "--update")),
        ("new", flags),
    ):
        output = tmp_path / f"{name}.parquet"
        run(encoder, deep_images, output, *words)
        embeddings.append(read_table(str(output)).embeddings)
    assert "is of other pixels; all images are embedded" in capsys.readouterr().out
    np.testing.assert_array_equal(embeddings[1], embeddings[2])
    assert not np.allclose(embeddings[0], embeddings[1])


@pytest.mark.long
def test_an_update_embeds_only_what_is_new_or_changed(
    encoder, images, tmp_path, monkeypatch, random
):
    output = tmp_path / "e.parquet"
    run(encoder, images, output, "--labels=none")
    counts, extract = [], embedding.readable_features

    def counting(network, some, resources):
        counts.append(len(some))
        return extract(network, some, resources)

    monkeypatch.setattr(embedding, "readable_features", counting)
    pixels = random.integers(0, 256, [20, 20, 3]).astype(np.uint8)
    Image.fromarray(pixels).save(images / "cats" / "01.png")
    Image.fromarray(pixels + 1).save(images / "cats" / "new.png")
    os.remove(images / "dogs" / "04.png")
    run(encoder, images, output, "--labels=none", "--update")
    rows = read_table(str(output))
    assert counts == [2]
    assert len(rows) == 12 and "dogs/04.png" not in rows.files
    np.testing.assert_allclose(
        rows.embeddings, expected(encoder, images, rows.files), atol=1e-5
    )
    run(encoder, images, output, "--labels=none", "--update")
    assert counts == [2]


@pytest.mark.long
def test_arrays_and_records_hold_the_same(encoder, images, tmp_path):
    for ending in ("parquet", "npy", "tfrecord"):
        run(encoder, images, tmp_path / f"e.{ending}")
    rows = read_table(str(tmp_path / "e.parquet"))
    np.testing.assert_array_equal(np.load(tmp_path / "e.npy"), rows.embeddings)
    lines = (tmp_path / "e.csv").read_text().splitlines()
    assert lines[1:] == [
        ",".join(row) for row in zip(rows.files, rows.sets, rows.labels)
    ]
    records = tf.data.TFRecordDataset(str(tmp_path / "e.tfrecord"))
    for row, record in zip(range(12), records, strict=True):
        found = tf.train.Example.FromString(record.numpy()).features.feature
        assert found["file"].bytes_list.value[0].decode() == rows.files[row]
        row_found = np.float32(found["embedding"].float_list.value)
        np.testing.assert_array_equal(row_found, rows.embeddings[row])


@pytest.mark.long
def test_what_was_embedded_is_kept_when_the_command_is_interrupted(
    encoder, images, tmp_path, monkeypatch
):
    output = tmp_path / "e.parquet"

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(table.WRITERS, ".parquet", interrupt_after_embedding)
        with pytest.raises(KeyboardInterrupt):
            run(encoder, images, output)
    assert not output.exists()
    monkeypatch.setattr(features, "embeddings", interrupt)
    run(encoder, images, output)
    assert len(table.read_table(str(output))) == 12


def interrupt_after_embedding(path, tables, facts):
    list(tables)
    raise KeyboardInterrupt
