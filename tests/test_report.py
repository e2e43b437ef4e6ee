"""The report: its numbers, its sections, and how a browser shows it."""

import base64
import html.parser
import io
import json
import os
import pathlib
import re
import shutil

import keras
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from ressl_keras.config import Config
from ressl_keras.data import packing, shapes
from ressl_keras.data.datasets import Dataset, load_dataset
from ressl_keras.data.images import ArrayImages
from ressl_keras.evaluation import protocols, report, report_images
from ressl_keras.evaluation.protocols import Predictions
from ressl_keras.run_folder import write_json
from ressl_keras.training.preview import preview

HOSTILE = '<img src=x onerror=alert(1)> & "é" $x_2$ \udcff'
SHOWN = '<img src=x onerror=alert(1)> & "é" $x_2$ ?'
LABELLED = {"facts", "results", "health", "neighbours", "map", "classes", "again"}
METRICS = """epoch,step,loss,knn_top1,teacher_entropy,student_entropy,waiting,novel
1,10,5.5,,3.0,6.0,0.05,1
2,20,4.25,,2.5,5.5,0.06,
3,30,nan,45.5,2.25,5.25,0.0625,2
"""


class Page(html.parser.HTMLParser):
    """What of a page the tests ask for.

    Attributes:
        sections: dict from id to the text of a section.
        rows: dict from id to the rows of its table, lists of cells.
        images: sources of all images.
        scripts: number of script elements and of attributes that would run one.
        labels: `aria-label` of all figures.
    """

    def __init__(self, path):
        super().__init__()
        self.sections, self.rows, self.images, self.labels = {}, {}, [], []
        self.scripts, self._section, self._cell = 0, None, False
        self.source = pathlib.Path(path).read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.scripts += tag == "script" or any(a.startswith("on") for a in attributes)
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
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, text):
        if self._section:
            self.sections[self._section] += text
        if self._cell:
            self.rows[self._section][-1][-1] += text.strip()


def small_dataset(labelled=True, size=8):
    train = ArrayImages(*shapes.render(300, seed=0, size=size))
    test = ArrayImages(*shapes.render(100, seed=1, size=size))
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
    (run / "flags.txt").write_text("--seed=7\n--embedding_dim=64\n--data_dir=<i>\n")
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
    assert set(page.sections) == {"facts", "health", "neighbours", "map", "again"}
    assert "✓" not in page.sections["neighbours"]
    # Eight queries, five neighbours of each, and the map.
    assert len(page.images) == 8 * 6 + 1
    query, nearest = page.images[:2]
    assert query != nearest, "a query found itself"


def test_sections_without_data_are_left_out(labelled, tmp_path):
    path, _ = labelled
    assert set(Page(path).sections) == LABELLED | {"curves", "views"}
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
    assert set(Page(files).sections) == {"facts", "curves", "views", "again"}


def test_every_column_of_the_metrics_is_drawn(labelled):
    page = Page(labelled[0])
    curves = [label for label in page.labels if "over steps" in label]
    assert len(curves) == 5
    assert (
        "kNN accuracy over steps: knn top1 from 45.5 to 45.5 %, at step 30." in curves
    )
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


def test_hostile_names_stay_text_and_nothing_is_fetched(labelled, unlabelled):
    for path in (labelled[0], unlabelled):
        page = Page(path)
        assert page.scripts == 0
        assert all(source.startswith("data:image/") for source in page.images)
        links = re.findall(r'(?:href|src)="([^"]*)"', page.source)
        assert all(link.startswith(("data:", "#")) for link in links)
        assert "url(" not in re.sub(r"url\(#", "", page.source)
    assert SHOWN[:27] in Page(labelled[0]).sections["classes"]


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


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
def test_an_encoder_that_has_collapsed_or_burst_has_a_report(value, tmp_path):
    encoder = small_encoder()
    encoder.layers[-1].set_weights([np.zeros([192, 12]), np.full([12], value)])
    dataset = small_dataset(labelled=False)
    path = report.write(str(tmp_path / "x.html"), encoder=encoder, dataset=dataset)
    page = Page(path)
    if np.isnan(value):
        assert set(page.sections) == {"facts", "broken", "again"}
    else:
        assert float(page.source.split('id="rank">')[1].split("<")[0]) <= 1
        assert 'id="spread">0.00<' in page.source
        assert {"neighbours", "map"} < set(page.sections)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_handful_of_images_has_a_report(count, tmp_path):
    few = Dataset("few", ArrayImages(shapes.render(count, 0, size=8)[0]))
    path = report.write(str(tmp_path / "x.html"), encoder=small_encoder(), dataset=few)
    assert len(Page(path).images) == {1: 0, 2: 2 * 2, 5: 5 * 5 + 1}[count]


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
return [...document.querySelectorAll("main svg, main img")].map(figure => {
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
    assert len(shown) >= 49
    for left, right, wide, high, read in shown:
        assert read and left >= 0 and right <= width and min(wide, high) > 30

    ground, colours = browser.execute_script(COLOURS)
    assert (contrast(ground, "rgb(255, 255, 255)") > 10) == (scheme == "dark")
    assert colours and all(contrast(ground, colour) >= 4.5 for colour in set(colours))

    folder = pathlib.Path(os.environ.get("RESSL_ARTIFACTS", ROOT / "artifacts"))
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"captureBeyondViewport": True, "format": "png"}
    picture = browser.execute_cdp_cmd("Page.captureScreenshot", whole)
    screenshot = base64.b64decode(picture["data"])
    (folder / f"report-{kind}-{width}-{scheme}.png").write_bytes(screenshot)
