"""The report: its numbers, its sections, and how a browser shows it."""

import base64
import hashlib
import html.parser
import io
import json
import os
import pathlib
import re
import shutil
import urllib.parse

import keras
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from ressl_keras.config import Config
from ressl_keras.data import packing, shapes
from ressl_keras.data.datasets import Dataset, load_dataset
from ressl_keras.data.images import ArrayImages
from ressl_keras.evaluation import judgement, protocols, report, report_images
from ressl_keras.evaluation.protocols import Predictions
from ressl_keras.files import write_json
from ressl_keras.training.preview import preview

HOSTILE = '<img src=x onerror=alert(1)> & "é" $x_2$ \udcff'
SHOWN = '<img src=x onerror=alert(1)> & "é" $x_2$ ?'
LABELLED = {"verdict", "facts", "results", "health", "neighbours", "map", "classes"}
LABELLED |= {"again"}
METRICS = """epoch,step,loss,knn_top1,teacher_entropy,student_entropy,waiting,novel
0,0,,31.5,,,,
1,10,5.5,,3.0,6.0,0.05,1
2,20,4.25,,2.5,5.5,0.06,
3,30,nan,45.5,2.25,5.25,0.0625,2
"""


HISTORY = {
    "total_steps": 30,
    "steps_per_epoch": 10,
    "batch_size": 8,
    "knn_images": [300, 100],
    "parts": [
        {
            "started": "2026-03-01T23:30:00+00:00",
            "ended": "2026-03-02T00:30:00+00:00",
            "first_step": 0,
            "last_step": 20,
            "seconds": 3600.0,
            "devices": "2 x <GPU>",
        },
        {
            "started": "2026-03-03T12:00:00+00:00",
            "ended": "2026-03-03T12:15:00+00:00",
            "first_step": 15,
            "last_step": 30,
            "seconds": 900.0,
            "devices": "CPU",
        },
    ],
}


class Page(html.parser.HTMLParser):
    """What of a page the tests ask for.

    Attributes:
        sections: dict from id to the text of a section.
        rows: dict from id to the rows of its table, lists of cells.
        images: sources of all images.
        scripts: texts of the script elements that a browser runs.
        data: texts of the others.
        handlers: number of attributes that would run a script.
        labels: `aria-label` of all figures.
    """

    def __init__(self, path):
        super().__init__()
        self.sections, self.rows, self.images, self.labels = {}, {}, [], []
        self.scripts, self.data, self.handlers = [], [], 0
        self._section, self._cell, self._script = None, False, None
        self.source = pathlib.Path(path).read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.handlers += any(name.startswith("on") for name in attributes)
        if tag == "script":
            self._script = self.data if "type" in attributes else self.scripts
            self._script.append("")
        if tag == "section":
            self._section = attributes["id"]
            self.sections[self._section], self.rows[self._section] = "", []
        if tag == "img":
            self.images.append(attributes["src"])
        if tag == "svg":
            self.labels.append(attributes["aria-label"])
        if tag == "tr":
            self.rows[self._section].append([])
        if tag in ("td", "th"):
            self._cell = True
            self.rows[self._section][-1].append("")

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = None
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, text):
        if self._script is not None:
            self._script[-1] += text
            return
        if self._section:
            self.sections[self._section] += text
        if self._cell:
            self.rows[self._section][-1][-1] += text.strip()


def file_name(index):
    return f"{HOSTILE}/</script>{index}.jpg"


def small_dataset(labelled=True, size=8):
    train = ArrayImages(*shapes.render(300, seed=0, size=size), file_name)
    test = ArrayImages(*shapes.render(100, seed=1, size=size), file_name)
    if not labelled:
        return Dataset(HOSTILE, ArrayImages(train.images))
    names = [HOSTILE, *shapes.CLASS_NAMES[1:]]
    return Dataset(HOSTILE, train, train, test, names)


def small_encoder(size=8):
    keras.utils.set_random_seed(1)  # another seed than the untrained encoder's
    return keras.Sequential(
        [keras.Input([size, size, 3]), keras.layers.Flatten(), keras.layers.Dense(12)]
    )


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A run's folder with hostile names everywhere, evaluated: page and predictions."""
    run = tmp_path_factory.mktemp("run") / "<b>&run"
    run.mkdir()
    dataset, encoder = small_dataset(), small_encoder()
    preview(dataset, str(run), Config(), count=3)
    (run / "metrics.csv").write_text(METRICS)
    (run / "flags.txt").write_text(
        "--seed=7\n--embedding_dim=64\n--data_dir=<i>\n--info_nce_epochs=1.5\n"
    )
    write_json(str(run / "history.json"), HISTORY)
    write_json(
        str(run / "encoder.json"),
        {"method": "ressl", "steps": 30, "versions": {"keras": "9.8.7"}},
    )
    predictions = Predictions()
    results = protocols.evaluate(
        encoder,
        dataset,
        ["knn", "linear", "finetune"],
        label_fraction=0.5,
        finetune_epochs=1,
        predictions=predictions,
        log=lambda line: None,
    )
    write_json(str(run / "evaluation.json"), results)
    path = report.write(
        str(run / "report.html"),
        run=str(run),
        encoder=encoder,
        dataset=dataset,
        results=results,
        predictions=predictions,
        command="python train.py --workdir='<b>&run'",
    )
    return path, predictions


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("unlabelled") / "report.html")
    return report.write(
        path, encoder=small_encoder(), dataset=small_dataset(labelled=False)
    )


def test_the_figures_are_those_of_the_evaluation(labelled):
    path, _ = labelled
    with open(os.path.join(os.path.dirname(path), "evaluation.json")) as file:
        results = json.load(file)
    _, *rows = Page(path).rows["results"]
    assert len(rows) == 3
    for row, values in zip(rows, results.values()):
        assert row[0].endswith("50 % of the labels")
        names = ("top1", "untrained_top1", "top5", "untrained_top5")
        assert [float(row[i]) for i in (1, 2, 4, 5)] == [values[n] for n in names]
        gain = values["top1"] - values["untrained_top1"]
        assert float(row[3]) == pytest.approx(gain, abs=0.006)


@pytest.mark.parametrize(
    "facts, words",
    [
        ({}, ""),
        ({"label_fraction": 0.01}, ", 1 % of the labels"),
        ({"labels_per_class": 1200}, ", 1,200 labels of every class"),
        ({"labels_per_class": 1}, ", 1 label of every class"),
        ({"label_list": f"{HOSTILE}.txt", "labels": 3}, f", 3 labels of {SHOWN}.txt"),
    ],
)
def test_the_labels_that_were_used_stand_beside_the_figures(facts, words, tmp_path):
    results = {"linear": {"top1": 50.0, **facts}}
    path = report.write(str(tmp_path / "report.html"), results=results)
    assert Page(path).rows["results"][1][0] == f"linear classifier{words}"


def test_classes_are_not_counted_again_with_other_labels(tmp_path, monkeypatch):
    """A report that is drawn again would take all labels where few were used."""
    monkeypatch.setattr(report_images, "look", lambda *_: {})  # the map takes seconds
    dataset, encoder = small_dataset(), small_encoder()
    encoder.save(tmp_path / "encoder.keras")
    for facts in ({}, {"label_list": "few.txt", "labels": 9}, {"labels_per_class": 3}):
        results = {"knn": {"top1": 50.0, **facts}}
        write_json(str(tmp_path / "evaluation.json"), results)
        path = judgement.report_again(str(tmp_path), None, dataset, log=list)
        assert ("classes" in Page(path).sections) == (not facts)


def test_the_classes_accuracies_are_counted_right(labelled):
    path, predictions = labelled
    _, *rows = Page(path).rows["classes"]
    assert len(rows) == 10
    for label, row in enumerate(rows):
        said = predictions.knn_classes[predictions.test.labels == label]
        assert int(row[1]) == len(said)
        assert float(row[3]) == pytest.approx(100 * (said == label).mean(), abs=0.051)
        wrong = np.bincount(said[said != label], minlength=10)
        assert row[4].endswith(f"({wrong.max()})")
    page = Page(path)
    knn = float(page.rows["results"][1][1])
    assert f"Confusion matrix of 10 classes; {knn:.2f} %" in str(page.labels)


def test_neighbours_come_with_their_similarities(labelled):
    path, predictions = labelled

    def unit(rows):
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    cosines = unit(predictions.test_features) @ unit(predictions.train_features).T
    first = int(np.flatnonzero(predictions.test.labels == 0)[0])
    best = np.argsort(-cosines[first])[:5]
    text = Page(path).sections["neighbours"]
    told = re.findall(r"(0\.\d\d)\s+([✓✗])", text)[:5]
    assert told == [
        (f"{cosines[first, i]:.2f}", "✓" if predictions.train.labels[i] == 0 else "✗")
        for i in best
    ]


def test_without_labels_there_is_still_something_to_see(unlabelled):
    page = Page(unlabelled)
    shown = {"verdict", "facts", "health", "neighbours", "map", "again"}
    assert set(page.sections) == shown
    assert "✓" not in page.sections["neighbours"]
    # Eight queries, five neighbours of each, the map and its thumbnails.
    assert len(page.images) == 8 * 6 + 2
    query, nearest = page.images[:2]
    assert query != nearest, "a query found itself"


@pytest.mark.long
def test_sections_without_data_are_left_out(labelled, tmp_path):
    path, _ = labelled
    assert set(Page(path).sections) == LABELLED | {"curves", "views", "files"}
    dataset, predictions = small_dataset(), Predictions()
    results = protocols.evaluate(
        small_encoder(), dataset, predictions=predictions, log=lambda line: None
    )
    judged = {"dataset": dataset, "results": results, "predictions": predictions}
    alone = report.write(
        str(tmp_path / "alone.html"), encoder=small_encoder(), **judged
    )
    assert set(Page(alone).sections) == LABELLED
    files = report.write(str(tmp_path / "files.html"), run=os.path.dirname(path))
    expected = {"verdict", "facts", "curves", "views", "files", "again"}
    assert set(Page(files).sections) == expected


def test_every_column_of_the_metrics_is_drawn(labelled):
    page = Page(labelled[0])
    curves = [label for label in page.labels if "over steps" in label]
    assert len(curves) == 5
    assert (
        "kNN accuracy over steps: knn top1 from 31.5 to 45.5 %, at step 30." in curves
    )
    assert (
        "Loss over steps: loss from 5.5 to nan nats, at step 30. "
        "Relation from here at step 15." in curves
    )
    assert "Waiting for data over steps: waiting from 5 to 6.25 %, at step 30." in (
        curves
    )
    told = page.sections["curves"]
    assert "InfoNCE until step 15" in told
    assert "Of 100 test images, among 300 labelled ones. The dashed line" in told
    assert "novel over steps: novel from 1 to 2, at step 30." in curves
    entropies = next(label for label in curves if "Entropy" in label)
    assert "teacher entropy from 3 to 2.25 nats; student entropy" in entropies


def test_what_was_run_and_how_to_repeat_it_is_told(labelled):
    page = Page(labelled[0])
    again = page.sections["again"]
    command = again[again.index("python") : again.index("All flags")]
    assert command.strip() == "python train.py \\\n    '--workdir=<b>&run'"
    assert "--data_dir=<i>" in page.sections["again"]
    assert "9.8.7" in page.sections["again"]
    for fact in ("ressl", "12", "8 by 8 pixels", "100 to test with, 10 classes", SHOWN):
        assert fact in page.sections["facts"]
    with Image.open(os.path.join(os.path.dirname(labelled[0]), "views.png")) as views:
        shown = Image.open(io.BytesIO(base64.b64decode(page.images[-1].split(",")[1])))
        assert shown.size == views.size


def test_when_on_what_and_how_long_it_trained_is_told(labelled):
    """Parts add up; an epoch is ten of the 35 steps that were trained."""
    words = " ".join(Page(labelled[0]).sections["facts"].split())
    assert "started2026-03-01 23:30 UTC finished2026-03-03 12:15 UTC" in words
    assert "training time1 h 15 min in 2 parts" in words
    assert "trained on2 x <GPU>, then CPU" in words
    assert "time of an epoch21 min" in words
    cut = {**HISTORY, "total_steps": 40}
    assert "stopped at step 30 of 40" in report.facts_of_time(cut)
    assert report.facts_of_time({}) == {}


def test_the_verdict_comes_first_and_has_the_numbers(labelled):
    page = Page(labelled[0])
    assert next(iter(page.sections)) == "verdict"
    told = " ".join(page.sections["verdict"].split())
    knn = page.rows["results"][1]
    assert f"kNN is right for {knn[1]} % of 100 test images" in told
    assert f"the untrained encoder for {knn[2]} %" in told
    assert "6.2 % of the training time" in told
    rank = page.source.split('id="rank">')[1].split("<")[0]
    assert f"use {rank} directions of at most 12" in told


def test_a_table_without_a_row_of_the_start_has_its_curves(labelled, tmp_path):
    """As earlier versions wrote it, with a loss that jumps and no history."""
    lines = METRICS.splitlines()
    (tmp_path / "metrics.csv").write_text("\n".join([lines[0], *lines[2:]]))
    (tmp_path / "flags.txt").write_text("--info_nce_epochs=2\n")
    path = report.write(str(tmp_path / "report.html"), run=str(tmp_path))
    told = Page(path).sections
    assert "InfoNCE until step 20" in told["curves"]
    assert "dashed line is the untrained" not in told["curves"]
    assert "Not measured" in told["verdict"]


def test_every_link_leads_somewhere(labelled):
    page = Page(labelled[0])
    ids = set(re.findall(r' id="([^"]*)"', page.source))
    links = re.findall(r'<a href="([^"]*)"', page.source)
    folder = os.path.dirname(labelled[0])
    for link in links:
        if link.startswith("#"):
            assert link[1:] in ids
        else:
            assert os.path.exists(os.path.join(folder, link))
    assert {"#verdict", "#map", "#classes", "metrics.csv", "history.json"} <= set(links)


def test_links_from_elsewhere_are_relative_and_quoted(labelled, tmp_path):
    run = os.path.dirname(labelled[0])
    path = report.write(str(tmp_path / "other.html"), run=run)
    (link,) = re.findall(r'<a href="([^"]*metrics.csv)"', Page(path).source)
    assert "%3Cb%3E%26run/metrics.csv" in link and ":" not in link
    assert os.path.samefile(
        tmp_path / urllib.parse.unquote(link), os.path.join(run, "metrics.csv")
    )


def test_hostile_names_stay_text_and_nothing_is_fetched(labelled, unlabelled):
    for path in (labelled[0], unlabelled):
        page = Page(path)
        assert page.handlers == 0
        # The page's own script, which its policy names by its hash, and data.
        (script,) = page.scripts
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}'\"" in page.source
        assert "innerHTML" not in script and "http" not in script
        assert all(source.startswith("data:image/") for source in page.images)
        links = re.findall(r'(?:href|src)="([^"]*)"', page.source)
        assert not any(re.match(r"(?!data:)[a-z]+:|//", link) for link in links)
        assert "url(" not in re.sub(r"url\(#", "", page.source)
    assert SHOWN[:27] in Page(labelled[0]).sections["classes"]


def test_the_maps_data_are_the_points_classes_and_files(labelled):
    path, predictions = labelled
    (text,) = Page(path).data
    assert "<" not in text and "&" not in text
    data = json.loads(text)
    assert data["labels"] == predictions.test.labels.tolist()
    shown = SHOWN.replace("?", "\ufffd")
    assert data["files"][7] in (
        f"{SHOWN}/</script>7.jpg",
        f"{shown}/</script>7.jpg",
    )
    assert [each["label"] for each in data["classes"]] == list(range(10))
    points = np.stack([data["x"], data["y"]], axis=1) / 1e4
    assert points.min() == 0 and points.max() == 1 and len(points) == 100
    # The thumbnails are in the order of the points.
    source = max(Page(path).images, key=lambda source: "webp" in source)
    assert data["cell"] == 8 and data["columns"] == 10 and source


def test_files_stand_beside_their_pictures(labelled):
    path, predictions = labelled
    first = int(np.flatnonzero(predictions.test.labels == 0)[0])
    text = Page(path).sections["neighbours"]
    assert f"/</script>{first}.jpg" in text
    assert text.count(".jpg") == 8 * 6


def test_many_classes_are_cut_to_the_best_and_the_worst(random, tmp_path):
    pixels, labels = shapes.render(240, seed=0, size=8)
    labels = np.arange(240) % 60
    images = ArrayImages(pixels, labels)
    dataset = Dataset("many", images, images, images, [f"c{i}" for i in range(60)])
    features = random.normal(size=[240, 4]).astype(np.float32)
    # Classes from 30 on are right, the others of the next class.
    predictions = Predictions(
        images, images, features, features, labels + (labels < 30)
    )
    path = report.write(
        str(tmp_path / "many.html"),
        encoder=small_encoder(),
        dataset=dataset,
        predictions=predictions,
    )
    page = Page(path)
    rows = page.rows["classes"][1:]
    assert [float(row[3]) for row in rows] == [0] * 20 + [100] * 20
    assert rows[0][4] == "c1 (4)" and rows[-1][4] == "\N{EN DASH}"
    assert "20 highest of 60 classes" in page.sections["classes"]
    assert not any("coloured points" in label for label in page.labels)
    # Without colours of their own the classes are still listed, to be picked.
    assert page.source.count('aria-pressed="false"') == 60
    assert {each["colour"] for each in json.loads(page.data[0])["classes"]} == {None}


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
@pytest.mark.long
def test_an_encoder_that_has_collapsed_or_burst_has_a_report(value, tmp_path):
    encoder = small_encoder()
    encoder.layers[-1].set_weights([np.zeros([192, 12]), np.full([12], value)])
    dataset = small_dataset(labelled=False)
    path = report.write(str(tmp_path / "x.html"), encoder=encoder, dataset=dataset)
    page = Page(path)
    if np.isnan(value):
        assert set(page.sections) == {"verdict", "facts", "broken", "again"}
        assert "Broken" in page.sections["verdict"]
    else:
        assert float(page.source.split('id="rank">')[1].split("<")[0]) <= 1
        assert 'id="spread">0.00<' in page.source
        assert {"neighbours", "map"} < set(page.sections)
        assert "is a collapse" in page.sections["verdict"]


def test_labels_without_names_are_not_used(tmp_path):
    """Those of a data set of which nothing is held out, or of --labels=none."""
    pixels, labels = shapes.render(20, seed=0, size=8)
    dataset = Dataset("one split", ArrayImages(pixels, labels))
    path = report.write(
        str(tmp_path / "x.html"), encoder=small_encoder(), dataset=dataset
    )
    page = Page(path)
    assert json.loads(page.data[0])["classes"] == []
    assert "✓" not in page.source and "✗" not in page.source


def test_chance_and_error_are_those_of_the_images_that_were_judged(tmp_path):
    """Also where the page shows another data set than the accuracies are of."""
    values = {"top1": 35.0, "untrained_top1": 50.0, "test_images": 20, "classes": 2}
    path = report.write(
        str(tmp_path / "x.html"), dataset=small_dataset(), results={"knn": values}
    )
    said = " ".join(Page(path).sections["verdict"].split())
    assert "of 20 test images" in said and "2 classes" in said


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_handful_of_images_has_a_report(count, tmp_path):
    few = Dataset("few", ArrayImages(shapes.render(count, 0, size=8)[0]))
    path = report.write(str(tmp_path / "x.html"), encoder=small_encoder(), dataset=few)
    assert len(Page(path).images) == {1: 0, 2: 2 * 2, 5: 5 * 5 + 2}[count]


@pytest.mark.long
def test_images_that_are_left_in_shards_have_a_report(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number, pixels in enumerate(shapes.render(20, seed=0, size=24)[0]):
        Image.fromarray(pixels).save(images / f"{number:02}.png")
    folder = load_dataset("folder", str(images), memory_limit=0)
    packing.pack(folder, str(images), str(tmp_path / "shards"))
    dataset = load_dataset("packed", str(tmp_path / "shards"), memory_limit=0)
    preview(dataset, str(tmp_path), Config(image_size=16), count=3)
    path = report.write(
        str(tmp_path / "report.html"),
        run=str(tmp_path),
        encoder=small_encoder(),
        dataset=dataset,
    )
    page = Page(path)
    assert "20 images" in page.sections["health"]
    assert set(page.sections) > {"neighbours", "map", "views"}


def test_a_report_that_fails_says_so_and_no_more(tmp_path, capsys):
    (tmp_path / "flags.txt").write_text("--seed=many")
    lines = []
    path = str(tmp_path / "report.html")
    report.try_to_write(path, run=str(tmp_path), log=lines.append)
    assert lines == [
        "The report could not be written, see above. All other files are complete."
    ]
    assert "--seed=many: must be an integer" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["flags.txt"]


def test_the_map_keeps_groups_together(random):
    centres = np.repeat(np.eye(4, 16), 30, axis=0)
    features = 5 * (centres + random.normal(0, 0.05, centres.shape))
    points = report_images.project(features)
    assert points.min() == 0 and points.max() == 1
    np.testing.assert_array_equal(points, report_images.project(features))
    distances = np.linalg.norm(points[:, np.newaxis] - points, axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert (distances.argmin(axis=1) // 30 == np.arange(120) // 30).all()
    assert report_images.project(features[:4]).shape == (4, 2)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Debian's chromium without a window, its network and console recorded."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("the report is looked at only where chromium and chromedriver are")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("profile")
    for argument in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        f"user-data-dir={profile}",
    ):
        options.add_argument(f"--{argument}")
    logs = {"browser": "ALL", "performance": "ALL"}
    options.set_capability("goog:loggingPrefs", logs)
    service = webdriver.ChromeService(driver)
    started = webdriver.Chrome(options, service)
    yield started
    started.quit()


# Every figure: its place on the page, and whether its picture could be read.
FIGURES = """
return [...document.querySelectorAll("main svg, main img, main canvas")]
  .filter(figure => figure.getClientRects().length)
  .map(figure => {
  const box = figure.getBoundingClientRect();
  const read = figure.tagName != "IMG" || figure.naturalWidth > 0;
  return [box.left, box.right, box.width, box.height, read];
});
"""
COLOURS = """
const ground = getComputedStyle(document.body).backgroundColor;
const words = [...document.querySelectorAll("svg text")]
  .map(word => getComputedStyle(word).fill);
const quiet = [...document.querySelectorAll("dt, figcaption, b")]
  .map(word => getComputedStyle(word).color);
return [ground, words.concat(quiet)];
"""


def contrast(one, other):
    """Of two CSS colours, by the rule of WCAG."""

    def luminance(colour):
        values = np.array(re.findall(r"\d+", colour)[:3], float) / 255
        linear = np.where(
            values < 0.04, values / 12.92, ((values + 0.055) / 1.055) ** 2.4
        )
        return linear @ (0.2126, 0.7152, 0.0722)

    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("kind", ["labelled", "unlabelled"])
def test_a_browser_shows_every_figure(
    browser, labelled, unlabelled, kind, width, scheme
):
    path = labelled[0] if kind == "labelled" else unlabelled
    screen = {"width": width, "height": 844, "deviceScaleFactor": 1}
    screen["mobile"] = width < 500
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    address = pathlib.Path(path).as_uri()
    browser.get(address)

    assert browser.get_log("browser") == []
    messages = [
        json.loads(entry["message"])["message"]
        for entry in browser.get_log("performance")
    ]
    requests = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
        and message["params"]["documentURL"] == address
    ]
    assert requests and all(url.startswith(("file:", "data:")) for url in requests)

    page = browser.execute_script("return document.documentElement.scrollWidth")
    assert page <= width
    shown = browser.execute_script(FIGURES)
    # The script has put its canvas in the place of the still map.
    assert len(shown) >= 48 and not browser.find_element("id", "still").is_displayed()
    for left, right, wide, high, read in shown:
        assert read and left >= 0 and right <= width and min(wide, high) > 30

    ground, colours = browser.execute_script(COLOURS)
    assert (contrast(ground, "rgb(255, 255, 255)") > 10) == (scheme == "dark")
    assert colours and all(contrast(ground, colour) >= 4.5 for colour in set(colours))

    keep_screenshot(browser, f"report-{kind}-{width}-{scheme}")


def keep_screenshot(browser, name):
    """Writes what the whole page looks like, for people."""
    folder = pathlib.Path(os.environ.get("RESSL_ARTIFACTS", ROOT / "artifacts"))
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"captureBeyondViewport": True, "format": "png"}
    picture = browser.execute_cdp_cmd("Page.captureScreenshot", whole)
    screenshot = base64.b64decode(picture["data"])
    (folder / f"{name}.png").write_bytes(screenshot)


# Where a point of the whole map is on the screen, as map.js places it.
PLACE = """
const data = JSON.parse(document.getElementById("map-data").textContent);
const canvas = document.querySelector("canvas.map"), [i] = arguments;
canvas.scrollIntoView({block: "center"});
const box = canvas.getBoundingClientRect();
return [box.left + 40 + data.x[i] / 1e4 * (box.width - 80),
        box.top + 40 + data.y[i] / 1e4 * (box.height - 80)].map(Math.round);
"""
PIXELS = """
const canvas = document.querySelector(arguments[0]);
const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
return [...pixels.data].filter((_, i) => i % 997 < 3);
"""


@pytest.fixture
def shown_map(browser, labelled):
    """The browser at the map of the labelled report, and the map's data."""
    screen = {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get(pathlib.Path(labelled[0]).as_uri())
    return browser, json.loads(Page(labelled[0]).data[0])


def hover(browser, x, y):
    from selenium.webdriver.common.actions.action_builder import ActionBuilder

    actions = ActionBuilder(browser)
    actions.pointer_action.move_to_location(x, y)
    actions.perform()


def lonely(data):
    """A point of the map with no other near it."""
    points = np.stack([data["x"], data["y"]], axis=1)
    distances = np.abs(points[:, np.newaxis] - points).max(axis=-1)
    np.fill_diagonal(distances, 10**6)
    return int(distances.min(axis=1).argmax())


def test_hovering_shows_picture_class_and_file_as_text(shown_map):
    browser, data = shown_map
    index = lonely(data)
    tip = browser.find_element("css selector", ".tip")
    assert not tip.is_displayed()
    hover(browser, *browser.execute_script(PLACE, index))
    assert tip.is_displayed()
    name, file = (each.text for each in tip.find_elements("css selector", "div"))
    named = {each["label"]: each["name"] for each in data["classes"]}
    assert name == named[data["labels"][index]]
    assert file == " ".join(data["files"][index].split()) and "<img src=x" in file
    assert not tip.find_elements("css selector", "img, script")
    assert any(browser.execute_script(PIXELS, ".tip canvas"))
    hover(browser, 5, 5)
    assert not tip.is_displayed()
    assert browser.get_log("browser") == []


def test_the_map_zooms_moves_and_picks_classes(shown_map):
    browser, data = shown_map

    def drawn():
        return browser.execute_script(PIXELS, "canvas.map")

    def click(selector):
        element = browser.find_element("css selector", selector)
        browser.execute_script("arguments[0].click()", element)

    whole = drawn()
    click('[data-zoom="1.5"]')
    assert drawn() != whole
    # The point in the middle stays there; others leave their places.
    click('[data-zoom="0"]')
    assert drawn() == whole
    click('[data-label="3"]')
    assert drawn() != whole
    # Points of other classes are not met any more.
    other = next(i for i, label in enumerate(data["labels"]) if label != 3)
    x, y = browser.execute_script(PLACE, other)
    hover(browser, x, y)
    tip = browser.find_element("css selector", ".tip")
    names = {each["label"]: each["name"] for each in data["classes"]}
    assert not tip.is_displayed() or names[3] in tip.text
    click('[data-label="3"]')
    hover(browser, 5, 5)
    assert drawn() == whole
    click("#as-pictures")
    assert drawn() != whole


@pytest.mark.parametrize("width", [390, pytest.param(1600, marks=pytest.mark.long)])
def test_without_scripts_the_map_is_two_still_pictures(browser, labelled, width):
    screen = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(pathlib.Path(labelled[0]).as_uri())
        assert browser.find_element("id", "still").is_displayed()
        assert not browser.find_element("id", "explorer").is_displayed()
    finally:
        browser.execute_cdp_cmd(
            "Emulation.setScriptExecutionDisabled", {"value": False}
        )


@pytest.mark.long
def test_a_page_of_the_worst_images_keeps_its_bound(random, tmp_path):
    """Noise, which no format makes smaller, at a common size."""
    pixels = random.integers(0, 256, [1200, 128, 128, 3]).astype(np.uint8)
    encoder = keras.Sequential(
        [keras.Input([128, 128, 3]), keras.layers.GlobalAveragePooling2D()]
    )
    path = str(tmp_path / "noise.html")
    report.write(path, encoder=encoder, dataset=Dataset("noise", ArrayImages(pixels)))
    assert os.path.getsize(path) < 6e6


@pytest.mark.long
def test_one_class_is_a_class(tmp_path):
    pixels, _ = shapes.render(60, seed=0, size=8)
    images = ArrayImages(pixels, np.zeros(60, np.int64))
    dataset, predictions = (
        Dataset("one", images, images, images, ["all"]),
        Predictions(),
    )
    encoder = small_encoder()
    quiet = {"predictions": predictions, "log": lambda line: None}
    results = protocols.evaluate(encoder, dataset, ["knn"], **quiet)
    path = report.write(
        str(tmp_path / "one.html"),
        encoder=encoder,
        dataset=dataset,
        results=results,
        predictions=predictions,
    )
    page = Page(path)
    assert page.rows["classes"][1][:2] == ["all", "60"]
    assert "There is one class" in page.sections["verdict"]
