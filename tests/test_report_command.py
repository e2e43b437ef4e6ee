"""ressl-report: a run's report again, and runs side by side."""

import json
import re

import numpy as np
import pytest
from options import parse
from PIL import Image
from test_report import Page

from ressl_keras import UsageError
from ressl_keras.commands import report, train
from ressl_keras.commands.report import ReportOptions
from ressl_keras.evaluation import comparison, protocols
from ressl_keras.files import write_json
from ressl_keras.run_folder import RunFolder

TINY = ["--batch_size=8", "--queue_size=16", "--hidden_dim=8", "--embedding_dim=4"]
TINY += ["--warmup_epochs=0", "--image_size=16", "--epochs=2", "--knn_every=1"]
TINY += ["--strategy=one_device", "--info_nce_epochs=1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, light_backbone):
    """The folder of images in three classes, with a broken one, and of a run."""
    folder = tmp_path_factory.mktemp("command")
    random = np.random.default_rng(0)
    for i in range(60):
        place = folder / "images" / "abc"[i % 3]
        place.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 80, [20, 20 + i % 2, 3]) + 80 * (i % 3)
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"<b>{i}.png")
    (folder / "images" / "a" / "broken.png").write_text("no image")
    words = ["--dataset=folder", f"--data_dir={folder}/images"]
    words += [f"--workdir={folder}/run", *TINY]
    train.run(parse(train.TrainOptions, *words))
    return folder


def draw(*words):
    flags = [word for word in words if word.startswith("-")]
    runs = [word for word in words if not word.startswith("-")]
    report.report(parse(ReportOptions, *flags), runs)


def without_moment(path):
    """The text of a page's sections but those that tell of the moment."""
    page = Page(path)
    # The run's own report was drawn before the command was known to this one.
    return {k: v for k, v in page.sections.items() if k not in ("again", "files")}


@pytest.mark.long
def test_a_report_is_drawn_again_as_it_was(trained, monkeypatch, capsys):
    folder = RunFolder(trained / "run")
    before, evaluation = without_moment(folder.report), folder.evaluation
    assert {"verdict", "curves", "neighbours", "map", "classes"} < set(before)
    with open(evaluation) as file:
        results = file.read()

    def forbidden(*arguments, **options):
        raise AssertionError("evaluated anew")

    monkeypatch.setattr(protocols, "evaluate", forbidden)
    draw(str(trained / "run"))
    assert f"Written to {folder.report}." in capsys.readouterr().out
    assert without_moment(folder.report) == before
    with open(evaluation) as file:
        assert file.read() == results


@pytest.mark.long
def test_the_names_of_a_folders_files_are_below_it(trained):
    page = Page(trained / "run" / "report.html")
    files = json.loads(page.data[0])["files"]
    assert sorted(set(files)) == sorted(files) and len(files) == 6
    assert all(re.fullmatch(r"[abc]/<b>\d+\.png", file) for file in files)
    assert all(str(trained) not in text for text in page.data)
    assert "a/<b>" in page.sections["neighbours"]


@pytest.mark.long
def test_images_that_moved_are_found_or_left_out(trained, tmp_path):
    (trained / "images").rename(tmp_path / "moved")
    run, page = str(trained / "run"), f"--output={tmp_path}/page.html"
    try:
        with pytest.raises(UsageError, match="There is no folder"):
            draw(run, page)
        draw(run, page, "--noimages")
        assert "map" not in Page(tmp_path / "page.html").sections
        assert "results" in Page(tmp_path / "page.html").sections
        draw(run, page, f"--data_dir={tmp_path}/moved")
        assert "map" in Page(tmp_path / "page.html").sections
    finally:
        (tmp_path / "moved").rename(trained / "images")


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="Give the folder of a run"):
        draw()
    with pytest.raises(UsageError, match=r"is not a run: it has no flags\.txt"):
        draw(str(tmp_path))
    (tmp_path / "flags.txt").write_text("--seed=1\n")
    with pytest.raises(UsageError, match="give an HTML file"):
        draw(str(tmp_path), f"--output={tmp_path}")


def test_a_run_from_python_has_a_report_without_images(tmp_path, capsys):
    (tmp_path / "flags.txt").write_text("--seed=1\n")
    (tmp_path / "metrics.csv").write_text("epoch,step,loss,knn_top1\n1,5,2.5,\n")
    draw(str(tmp_path))
    assert "does not say which images" in capsys.readouterr().out
    sections = set(Page(tmp_path / "report.html").sections)
    assert sections == {"verdict", "facts", "curves", "files", "again"}


def make_run(folder, flags, gain):
    folder.mkdir(parents=True)
    (folder / "flags.txt").write_text("".join(f"--{flag}\n" for flag in flags))
    lines = ["epoch,step,loss,knn_top1,novel", "0,0,,10.0,"]
    lines += [f"{e},{5 * e},{4 - e},{10 + gain * e},1" for e in (1, 2)]
    (folder / "metrics.csv").write_text("\n".join(lines))
    values = {"top1": 30.0 + gain, "untrained_top1": 5.0}
    write_json(str(folder / "evaluation.json"), {"knn": values})


@pytest.fixture
def two(tmp_path):
    make_run(tmp_path / "one<b>", ["seed=1", "width=16", "workdir=x"], 1)
    make_run(tmp_path / "two", ["seed=1", "width=32", "workdir=y"], 2)
    return [str(tmp_path / "one<b>"), str(tmp_path / "two")]


def test_runs_stand_side_by_side(two, tmp_path, capsys):
    draw(*two, f"--output={tmp_path}/both.html")
    page = Page(tmp_path / "both.html")
    assert page.rows["results"] == [
        list(comparison.HEADER),
        ["one<b>", "1", "10", "12.00", "31.00", "5.00", "\N{EN DASH}"],
        ["two", "1", "10", "14.00", "32.00", "5.00", "\N{EN DASH}"],
    ]
    # The folder of a run is no setting; what agrees is left out.
    assert page.rows["settings"] == [
        ["setting", "one<b>", "two"],
        ["width", "16", "32"],
    ]
    assert page.labels[0] == (
        "kNN accuracy over steps: one<b> from 10 to 12 %; two from 10 to 14 %, at "
        "step 10."
    )
    assert any(label.startswith("Loss over steps: one<b>") for label in page.labels)
    assert page.handlers == 0 and "<b>" not in page.source.replace("<body>", "")
    assert "| two | 1 | 10 | 14.00 | 32.00 | 5.00 |" in capsys.readouterr().out


def test_the_start_of_a_run_is_no_result_of_it(two):
    table = RunFolder(two[1]).metrics
    with open(table) as file:
        lines = file.read().split("\n")
    with open(table, "w") as file:
        file.write("\n".join(lines[:2]))
    (row,) = comparison.summary([comparison.read_run(two[1], "two")])
    assert row == ["two", "1", "", "", "32.00", "5.00", ""]


def test_runs_of_one_name_are_told_by_their_paths(two, tmp_path):
    make_run(tmp_path / "other" / "two", ["seed=1"], 3)
    runs = [two[1], str(tmp_path / "other" / "two")]
    assert comparison.names(runs) == runs
    assert comparison.names(two) == ["one<b>", "two"]


def test_a_setting_that_a_run_does_not_name_is_a_dash():
    found = comparison.differing({"a": {"x": "1", "y": "2"}, "b": {"x": "1"}})
    assert found == {"y": ["2", "-"]}
