"""Every command in README and docs is run, in a reduced form where it is long.

A command is a line of a fenced block without a language. Trainings run here with a
tiny network and stand-ins for the images; commands that differ only in names run once.
A command that nothing here knows fails the first test.
"""

import json
import re
import runpy
import shlex
import subprocess
import sys

import keras
import numpy as np
import pytest
import tiny
from conftest import ROOT
from options import parse
from PIL import Image
from test_flagfiles import stand_in

from ressl_keras.cli import recipe_path
from ressl_keras.commands import check, export, pack, train
from ressl_keras.commands.check import CheckOptions
from ressl_keras.commands.compare import CompareOptions
from ressl_keras.commands.embed import EmbedOptions
from ressl_keras.commands.evaluate import EvaluateOptions
from ressl_keras.commands.export import ExportOptions
from ressl_keras.commands.pack import PackOptions
from ressl_keras.commands.predict import PredictOptions
from ressl_keras.commands.report import ReportOptions
from ressl_keras.commands.search import SearchOptions
from ressl_keras.commands.train import TrainOptions
from ressl_keras.data import datasets
from ressl_keras.training import build, pretrain

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# What is not run here, and where it is, or why it is not.
ELSEWHERE = {
    r"pip install (-r requirements(-dev)?\.txt|(-e )?'?\"?\.\[)": "CI starts with it",
    r"pip install '?ressl-keras": "not from here",
    r"(cd|mkdir) ": "no command of ours",
    r"mkdocs (serve|build)": "CI builds it",
    r"pip install --no-deps \"?tensorflow-serving-api": "CI starts with it",
    r"python -m pytest": "this is it",
    r"RESSL_ENCODER=\S+ python -m pytest": "hours; the file exists",
    r"python tests/killed_runs.py FOLDER": "test_damage",
    r"python -m examples.finetune": "test_finetuning",
    r"python -m benchmarks\.": "test_benchmarks",
    r"python examples/serving_(rest|grpc).py": "test_serving_examples",
    r"curl |tensorflow_model_server |docker (run|build)": "no server at hand",
    r"export TF_CONFIG=": "test_distribution",
    r"export WORKERS=|srun |exec (python train.py|ressl-train) |'$": "no Slurm at hand",
}

TINY = ["--batch_size=4", "--queue_size=16", "--max_steps=2", "--knn_every=0"]
TINY += ["--strategy=one_device"]
SAME = {"--workdir", "--data_dir", "--encoder", "--flagfile", "--dataset"}
SAME |= {"--protocol=knn,linear", "--max_steps", "--noevaluate", "--knn_every"}
SAME |= {"--batch_size", "--queue_size", "--backbone", "--width", "--output"}
SAME |= {"--strategy", "--devices"}  # test_distribution has several devices
SAME |= {"--network", "--projector", "--normalize"}  # test_export has them
SAME |= {"--preprocessing"}  # test_encoders has it
SAME |= {"--recipe"}
# The command that a new user comes to first.
OWN_IMAGES = shlex.split("--recipe=folder_cpu --data_dir=my_images --workdir=runs/mine")

# How the commands start, in the repository and installed.
STARTS = {
    "train": ("python train.py ", "ressl-train "),
    "evaluate": ("python evaluate.py ", "ressl-evaluate "),
    "export": ("python -m ressl_keras.commands.export ", "ressl-export "),
    "compare": ("python -m ressl_keras.commands.compare ", "ressl-compare "),
    "report": ("python -m ressl_keras.commands.report ", "ressl-report "),
    "embed": ("python -m ressl_keras.commands.embed ", "ressl-embed "),
    "search": ("python -m ressl_keras.commands.search ", "ressl-search "),
    "predict": ("python -m ressl_keras.commands.predict ", "ressl-predict "),
    "check": ("python -m ressl_keras.commands.check ", "ressl-check "),
    "pack": ("python -m ressl_keras.commands.pack ", "ressl-pack "),
}
OPTIONS = {
    "train": TrainOptions,
    "evaluate": EvaluateOptions,
    "export": ExportOptions,
    "compare": CompareOptions,
    "report": ReportOptions,
    "embed": EmbedOptions,
    "search": SearchOptions,
    "predict": PredictOptions,
    "check": CheckOptions,
    "pack": PackOptions,
}


def commands():
    """All documented commands, as (page, text)."""
    for page in PAGES:
        for language, block in re.findall(
            r"(?ms)^```(\w*)\n(.*?)^```", page.read_text()
        ):
            if language not in ("", "bash"):
                continue
            for line in block.replace("\\\n", " ").split("\n"):
                line = re.sub(r"\s#\s.*|^#.*", "", line).strip()
                for command in filter(None, line.split(" && ")):
                    yield page.name, " ".join(command.split())


def words_of(name):
    """The words behind every documented command of this name."""
    for _, command in commands():
        for start in STARTS[name]:
            if command.startswith(start):
                yield shlex.split(command.removeprefix(start))


def documented(name):
    """The same, those of one kind once."""
    found = {}
    for words in words_of(name):
        # Other names and numbers make no other command of it.
        kind = {word if "protocol" in word else word.split("=")[0] for word in words}
        kind -= SAME
        found.setdefault(tuple(sorted(kind)), words)
        if words == OWN_IMAGES:
            found[()] = words
    return list(found.values())


def test_every_command_is_run_somewhere():
    known = tuple(start for starts in STARTS.values() for start in starts)
    unknown = [
        f"{page}: {command}"
        for page, command in commands()
        if not command.startswith(known)
        and not any(re.match(elsewhere, command) for elsewhere in ELSEWHERE)
    ]
    assert not unknown
    assert all(documented(name) for name in STARTS)


@pytest.mark.parametrize("name", STARTS)
def test_every_flag_in_them_exists_and_parses(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in words_of(name):
        end = words.index("--") if "--" in words else len(words)
        if "--help" in words:
            continue
        if name == "report":  # its runs; test_report_command has them
            words = [word for word in words if word.startswith("-")]
        options = parse(OPTIONS[name], *words[:end])
        if name == "compare":
            parse(TrainOptions, *words[end + 1 :])
            for name_or_path in options.flagfiles:
                assert (ROOT / name_or_path).is_file() or recipe_path(name_or_path)


def test_every_page_that_is_linked_is_there():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("words", documented("train"), ids=" ".join)
@pytest.mark.long
def test_training_runs(words, random, monkeypatch, tmp_path):
    if "--help" in words:
        return
    monkeypatch.chdir(ROOT)
    words = [*words, *TINY, "--noevaluate", f"--workdir={tmp_path}"]
    # Large images take long; each recipe is tried at its size in test_flagfiles.
    crops = ["--crops=32,16"] if parse(TrainOptions, *words).crops else []
    options = parse(TrainOptions, *words, "--image_size=32", *crops)
    dataset = stand_in(options.dataset, 32, random)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: dataset)
    monkeypatch.setattr(build, "build_backbone", tiny.build_backbone)
    # All but the steps, which test_flagfiles takes.
    monkeypatch.setattr(pretrain._Run, "train", lambda *_: None)
    # Weights are neither at hand nor fetched; test_initial starts from some.
    monkeypatch.setattr(pretrain, "preprocessing_of", lambda *_: "own")
    monkeypatch.setattr(pretrain, "start_from", lambda *_: None)
    train.run(options)
    made = "views.png" if options.preview else "encoder.keras"
    assert (tmp_path / made).exists()


@pytest.fixture(scope="module")
def own(tmp_path_factory, light_backbone):
    """A few images and a run on them: the folder of both."""
    folder = tmp_path_factory.mktemp("own")
    random = np.random.default_rng(0)
    for place in range(40):
        label = folder / "my_images" / "ab"[place % 2]
        label.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, [20, 24, 3]).astype(np.uint8)
        Image.fromarray(pixels).save(label / f"{place}.png")
    assert OWN_IMAGES in documented("train")
    words = [*OWN_IMAGES, *TINY, "--image_size=16", "--hidden_dim=8"]
    words += [f"--data_dir={folder}/my_images", f"--workdir={folder}/run"]
    train.run(parse(TrainOptions, *words))
    return folder


@pytest.mark.long
def test_own_images_become_an_encoder_and_a_report(own):
    results = json.loads((own / "run" / "evaluation.json").read_text())
    assert set(results) >= {"knn", "linear"}
    assert (own / "run" / "report.html").stat().st_size > 10000
    encoder = keras.models.load_model(own / "run" / "encoder.keras")
    assert encoder.input_shape == (None, None, None, 3)


@pytest.mark.long
def test_evaluations_run(own):
    encoder = own / "run" / "encoder.keras"
    sent = [
        [
            *words,
            f"--encoder={encoder}",
            "--dataset=folder",
            f"--data_dir={own}/my_images",
            "--finetune_epochs=1",
            f"--output={own}/evaluation-{number}.json",
        ]
        for number, words in enumerate(documented("evaluate"))
    ]
    result = subprocess.run(
        [sys.executable, ROOT / "tests" / "documented.py"],
        input=json.dumps(sent),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    judged = {
        protocol
        for number in range(len(sent))
        for protocol in json.loads((own / f"evaluation-{number}.json").read_text())
    }
    assert judged >= {"knn", "linear", "finetune"}
    assert (own / "neighbours.png").exists()


@pytest.mark.parametrize("words", documented("check"), ids=" ".join)
@pytest.mark.long
def test_checks_run(words, own, tmp_path, capsys):
    words = [*words, f"--data_dir={own}/my_images", f"--output={tmp_path}/list.txt"]
    check.check(parse(CheckOptions, *words))
    assert "40 images, 0 unreadable." in capsys.readouterr().out
    assert (tmp_path / "list.txt").read_text() == ""


@pytest.mark.parametrize(
    "words",
    # test_export has encoders from elsewhere.
    [words for words in documented("export") if "--encoder" not in " ".join(words)],
    ids=" ".join,
)
@pytest.mark.long
def test_exports_run(words, own):
    if "onnx" in " ".join(words):
        pytest.importorskip("tf2onnx")
    words = [word for word in words if not word.startswith("--output")]
    options = parse(ExportOptions, *words, f"--workdir={own}/run")
    versions = len(list((own / "run" / "export").iterdir()))
    export.export(options)
    assert len(list((own / "run" / "export").iterdir())) == versions + 1
    for name, ending in (("onnx", "onnx"), ("litert", "tflite")):
        if name in options.formats:
            assert (own / "run" / f"encoder.{ending}").stat().st_size > 1000


@pytest.mark.parametrize("words", documented("pack"), ids=" ".join)
@pytest.mark.long
def test_packing_runs(words, own, tmp_path):
    words = [*words, f"--data_dir={own}/my_images", f"--output={tmp_path}/shards"]
    pack.pack(parse(PackOptions, *words))
    assert (tmp_path / "shards" / "packed.json").exists()


@pytest.mark.slow
def test_the_tour_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(ROOT / "examples" / "quickstart.py"))
    assert names["after"] > names["before"] + 5
    encoder = keras.models.load_model("runs/tour/encoder.keras")
    assert encoder.input_shape[-1] == 3
    assert Image.open("runs/tour/views.png").width > 100


@pytest.mark.long
def test_the_picture_of_the_method_can_be_drawn_again(tmp_path):
    main = runpy.run_path(str(ROOT / "docs" / "draw_method.py"))["main"]
    main(tmp_path / "method.png")
    drawn = Image.open(tmp_path / "method.png")
    kept = Image.open(ROOT / "docs" / "images" / "method.png")
    assert drawn.size == kept.size
    difference = np.asarray(drawn.convert("L"), int) - np.asarray(kept.convert("L"))
    assert np.mean(np.abs(difference) > 30) < 0.05
