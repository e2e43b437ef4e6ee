"""Search and duplicates, against NumPy and planted images."""

import csv
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from options import parse
from PIL import Image

from ressl_keras import UsageError
from ressl_keras.commands.search import SearchOptions, search
from ressl_keras.embeddings import duplicates, listing
from ressl_keras.embeddings.search import nearest_in
from ressl_keras.embeddings.table import Table, read_table, write_tables


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def table(embeddings, names=None, sets=None):
    count = len(embeddings)
    return Table(
        names or [f"{i}.png" for i in range(count)],
        sets or ["train"] * count,
        ["cat", None] * (count // 2),
        np.arange(2 * count).reshape(count, 2),
        np.asarray(embeddings, np.float32),
    )


def test_a_table_is_read_as_it_was_written_and_by_others(tmp_path, random):
    path = str(tmp_path / "some.parquet")
    first = table(random.normal(size=[6, 5]))
    second = table(random.normal(size=[4, 5]), names=list("abcd"))
    assert write_tables(path, [first, second], {"encoder": "x"}, rows=4) == 10
    read = read_table(path)
    assert read.files == first.files + second.files
    assert read.labels == first.labels + second.labels
    np.testing.assert_array_equal(read.stamps[:6], first.stamps)
    np.testing.assert_array_equal(read.embeddings[6:], second.embeddings)
    assert read.facts == {"encoder": "x"}
    # As any reader of Parquet sees it.
    column = pq.read_table(path)["embedding"].to_pylist()
    np.testing.assert_array_equal(np.float32(column)[:6], first.embeddings)


def test_what_is_no_table_is_one_line(tmp_path):
    (tmp_path / "text.parquet").write_text("nothing")
    for name, message in (("text", "no table of embeddings"), ("none", "no file")):
        with pytest.raises(UsageError, match=message):
            read_table(str(tmp_path / f"{name}.parquet"))
    with pytest.raises(UsageError, match="no images to embed"):
        write_tables(str(tmp_path / "empty.parquet"), [], {})
    assert [path.name for path in tmp_path.iterdir()] == ["text.parquet"]


@pytest.mark.parametrize("index", ["exact", "hnsw"])
def test_neighbours_are_those_of_all_similarities(index, random):
    if index == "hnsw":
        pytest.importorskip("faiss")
    queries, bank = random.normal(size=[7, 8]), random.normal(size=[300, 8])
    found, similarities = nearest_in(queries, bank, 4, index, block=3)
    expected = unit(queries) @ unit(bank).T
    order = np.argsort(-expected, axis=1)[:, :4]
    np.testing.assert_array_equal(found, order)
    np.testing.assert_allclose(
        similarities, np.take_along_axis(expected, order, 1), atol=1e-5
    )


def test_pairs_and_groups_are_those_above_the_limit(random):
    rows = random.normal(size=[40, 16])
    rows[7], rows[9] = rows[3] * 2 + 0.01, rows[3] + 0.02
    rows[30] = rows[20] + 0.01
    found = duplicates.pairs_within(rows, 0.95)
    similarities = unit(rows) @ unit(rows).T
    expected = {(i, j) for i, j in zip(*np.nonzero(similarities >= 0.95)) if i < j}
    assert {(pair.first, pair.second) for pair in found} == expected
    assert [list(g) for g in duplicates.groups(found, 40)] == [[3, 7, 9], [20, 30]]
    between = duplicates.pairs_between(rows[20:25], rows[25:], 0.95)
    assert [(pair.first, pair.second) for pair in between] == [(0, 5)]
    assert not duplicates.groups([], 40)


@pytest.fixture
def tables(tmp_path, random):
    """Images, of which two are nearly the same, and their table."""
    rows = random.normal(size=[6, 8])
    rows[4] = rows[1] + 0.01
    names = [f"a/{i}<b>.png" for i in range(6)]
    (tmp_path / "images" / "a").mkdir(parents=True)
    for name in names[:5]:
        pixels = random.integers(0, 256, [12, 9, 3]).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / name)
    sets = ["train"] * 4 + ["test"] * 2
    write_tables(str(tmp_path / "e.parquet"), [table(rows, names, sets)], {})
    return tmp_path, rows


def run(folder, *words):
    search(parse(SearchOptions, f"--embeddings={folder / 'e.parquet'}", *words))


def test_equal_rows_are_duplicates_at_a_similarity_of_one(random):
    rows = np.repeat(random.normal(size=[50, 128]).astype(np.float32), 2, axis=0)
    found = duplicates.pairs_within(rows, 1.0)
    assert sorted((p.first, p.second) for p in found) == [
        (2 * i, 2 * i + 1) for i in range(50)
    ]


def test_duplicates_are_listed_with_what_they_leak(tables, capsys):
    folder, rows = tables
    run(folder, "--duplicates", f"--output={folder / 'd.csv'}")
    said = capsys.readouterr().out
    assert "1 groups of near-duplicates, 2 of 6 images" in said
    assert "1 groups with images of more than one set" in said
    with open(folder / "d.csv") as file:
        listed = list(csv.DictReader(file))
    assert [row["file"] for row in listed] == ["a/1<b>.png", "a/4<b>.png"]
    assert [row["set"] for row in listed] == ["train", "test"]
    expected = (unit(rows) @ unit(rows).T)[1, 4]
    assert float(listed[0]["similarity"]) == pytest.approx(expected, abs=1e-4)


def test_a_page_shows_every_image_by_name_and_no_name_is_html(tables):
    folder, _ = tables
    images = f"--data_dir={folder / 'images'}"
    outputs = f"--output={folder / 'n.html'},{folder / 'n.csv'}"
    run(folder, images, "--neighbours=2", outputs)
    assert len((folder / "n.csv").read_text().splitlines()) > 6
    page = (folder / "n.html").read_text()
    assert page.count("<section>") == 6 and page.count("<figure>") == 18
    assert "a/1&lt;b&gt;.png" in page and "<b>" not in page
    assert "not readable" in page  # the sixth has no file
    assert not re.search(r"(src|href)=\"(?!data:)", page)


def test_the_table_on_the_screen_is_cut_and_says_so(tables, capsys):
    folder, _ = tables
    run(folder, "--neighbours=1", "--most=2")
    said = capsys.readouterr().out
    assert said.count("a/") == 4 and "and 4 more" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--query=a.png"], "--query and --encoder go together"),
        (["--output=a.txt"], "neither in .csv nor .html"),
        (["--output=a.html"], "needs --data_dir"),
        (["--encoder=a", "--query=b", "--duplicates"], "--query goes neither"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(words, message):
    with pytest.raises(UsageError, match=message):
        parse(SearchOptions, "--embeddings=e.parquet", *words)


def test_tables_of_different_encoders_are_not_compared(tables):
    folder, rows = tables
    write_tables(str(folder / "other.parquet"), [table(rows)], {"encoder": "y"})
    with pytest.raises(UsageError, match="different encoders"):
        run(folder, f"--against={folder / 'other.parquet'}")


def test_tables_of_images_read_differently_are_not_compared(tables):
    folder, rows = tables
    facts = {"encoder": "x", "images": {"size": 32, "exif_orientation": True}}
    turned = {**facts, "images": {"size": 32, "exif_orientation": False}}
    for name, known in (("e", facts), ("same", facts), ("turned", turned)):
        write_tables(str(folder / f"{name}.parquet"), [table(rows)], known)
    run(folder, f"--against={folder / 'same.parquet'}")
    with pytest.raises(UsageError, match="differently: exif_orientation is False and"):
        run(folder, f"--against={folder / 'turned.parquet'}")


def test_an_index_that_finds_fewer_images_names_no_others(tables, monkeypatch, capsys):
    folder, _ = tables
    found = np.tile([0, 1, -1], [6, 1]), np.tile(np.float32([0.9, 0.8, -9]), [6, 1])
    monkeypatch.setattr(listing, "nearest_in", lambda *_: found)
    run(folder, "--neighbours=2")
    said = capsys.readouterr().out
    assert said.count("a/0<b>.png") == said.count("a/1<b>.png") == 6
    assert said.count("a/5<b>.png") == 1  # as the image that was asked for
