"""Every command in README and docs is run, in a reduced form where it is long.

A command is what stands in a fenced block without a language. train.py's run here with
a tiny network and stand-ins for the images; commands that differ in nothing but names
run once. A command that nothing here knows fails the first test.
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
from absl import flags
from conftest import ROOT
from PIL import Image
from test_flagfiles import flagged, stand_in  # noqa: F401

import train
from ressl_keras import backbones, compare, data, export

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# What is not run here, and where it is, or why it is not.
ELSEWHERE = {
    r"pip install -r requirements(-dev)?\.txt": "CI starts with it",
    r"pip install --no-deps \"?tensorflow-serving-api": "CI starts with it",
    r"python -m pytest": "this is it",
    r"RESSL_ENCODER=\S+ python -m pytest": "hours; the file exists",
    r"python tests/killed_runs.py FOLDER": "test_checkpoints",
    r"python -m examples.finetune": "test_finetuning",
    r"python -m benchmarks\.": "test_benchmarks",
    r"python examples/serving_(rest|grpc).py": "test_serving_examples",
    r"curl |tensorflow_model_server |docker run": "no server at hand",
    r"export TF_CONFIG=": "test_distribution",
    r"export WORKERS=|srun |exec python train.py|'$": "no Slurm at hand",
}

TINY = ["--batch_size=4", "--queue_size=16", "--max_steps=2", "--knn_every=0"]
TINY += ["--strategy=one_device"]
SAME = {"--workdir", "--data_dir", "--encoder", "--flagfile", "--dataset"}
SAME |= {"--protocol=knn,linear", "--max_steps", "--noevaluate", "--knn_every"}
SAME |= {"--batch_size", "--queue_size", "--backbone", "--width", "--output"}
SAME |= {"--strategy", "--devices"}  # test_distribution has several devices
SAME |= {"--network", "--projector", "--normalize"}  # test_export has them
SAME |= {"--preprocessing"}  # test_encoders has it
# The command that a new user comes to first.
OWN_IMAGES = shlex.split(
    "--flagfile=flags/folder_cpu.flags --data_dir=my_images --workdir=runs/mine"
)


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


def documented(start):
    """The flags of the commands that start so, those of one kind once."""
    found = {}
    for _, command in commands():
        if command.startswith(start):
            words = shlex.split(command.removeprefix(start))
            # Other names and numbers make no other command of it.
            kind = {
                word if "protocol" in word else word.split("=")[0] for word in words
            }
            kind -= SAME
            found.setdefault(tuple(sorted(kind)), words)
            if words == OWN_IMAGES:
                found[()] = words
    return list(found.values())


STARTS = {
    "train": "python train.py ",
    "evaluate": "python evaluate.py ",
    "export": "python -m ressl_keras.export ",
    "compare": "python -m ressl_keras.compare ",
}


def test_every_command_is_run_somewhere():
    unknown = [
        f"{page}: {command}"
        for page, command in commands()
        if not command.startswith(tuple(STARTS.values()))
        and not any(re.match(known, command) for known in ELSEWHERE)
    ]
    assert not unknown
    assert all(documented(start) for start in STARTS.values())


def test_every_flag_in_them_exists_and_parses(monkeypatch):
    monkeypatch.chdir(ROOT)
    for name, start in STARTS.items():
        for command in {text for _, text in commands() if text.startswith(start)}:
            words = shlex.split(command)
            if name in ("train", "evaluate"):
                # Takes no time: nothing is imported before the flags are right.
                result = subprocess.run(
                    [sys.executable, *words[1:], "--only_check_args"],
                    capture_output=True,
                    text=True,
                )
                assert result.returncode == 0, f"{command}\n{result.stderr}"
            else:
                values = flags.FlagValues()
                module = {"export": export, "compare": compare}[name]
                module.define_flags(values)
                rest = values(words[2:])[1:]
                for option in rest:
                    assert option.split("=")[0][2:].removeprefix("no") in train.FLAGS
                for path in values.flag_values_dict().get("flagfiles", []):
                    assert (ROOT / path).is_file()


def test_every_page_that_is_linked_is_there():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("words", documented(STARTS["train"]), ids=" ".join)
def test_training_runs(words, flagged, random, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.chdir(ROOT)
    words = ["train.py", *words, *TINY, "--noevaluate", f"--workdir={tmp_path}"]
    flagged(words)
    # Large images take long; each recipe is tried at its size in test_flagfiles.
    crops = ["--crops=32,16"] if flagged.crops else []
    flagged([*words, "--image_size=32", *crops])
    monkeypatch.setattr(data, "load", lambda name, *_: stand_in(name, 32, random))
    monkeypatch.setattr(backbones, "build_backbone", tiny.build_backbone)
    train.run()
    made = "views.png" if "--preview" in words else "encoder.keras"
    assert (tmp_path / made).exists()


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A few images and a run on them: the folder of both."""
    folder, values = tmp_path_factory.mktemp("own"), flags.FLAGS
    random = np.random.default_rng(0)
    for place in range(40):
        label = folder / "my_images" / "ab"[place % 2]
        label.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, [20, 24, 3]).astype(np.uint8)
        Image.fromarray(pixels).save(label / f"{place}.png")
    before = values.flag_values_dict()
    assert OWN_IMAGES in documented(STARTS["train"])
    words = [*OWN_IMAGES, *TINY, "--image_size=16", "--width=4", "--hidden_dim=8"]
    words += [f"--data_dir={folder}/my_images", f"--workdir={folder}/run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        values(["train.py", *words])
        train.run()
    for name, value in before.items():
        values[name].value = value
    return folder


def test_own_images_become_an_encoder_and_a_report(own):
    results = json.loads((own / "run" / "evaluation.json").read_text())
    assert set(results) >= {"knn", "linear"}
    assert (own / "run" / "report.html").stat().st_size > 10000
    encoder = keras.models.load_model(own / "run" / "encoder.keras")
    assert encoder.input_shape == (None, 16, 16, 3)


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
        for number, words in enumerate(documented(STARTS["evaluate"]))
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


@pytest.mark.parametrize("words", documented(STARTS["export"]), ids=" ".join)
def test_exports_run(words, own, monkeypatch):
    if "onnx" in " ".join(words):
        pytest.importorskip("tf2onnx")
    values = flags.FlagValues()
    export.define_flags(values)
    values(["export", *words, f"--workdir={own}/run"])
    monkeypatch.setattr(flags, "FLAGS", values)
    versions = len(list((own / "run" / "export").iterdir()))
    export.main([])
    assert len(list((own / "run" / "export").iterdir())) == versions + 1
    for name, ending in (("onnx", "onnx"), ("litert", "tflite")):
        if name in values.formats:
            assert (own / "run" / f"encoder.{ending}").stat().st_size > 1000


def test_the_tour_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(ROOT / "examples" / "quickstart.py"))
    assert names["after"] > names["before"] + 5
    encoder = keras.models.load_model("runs/tour/encoder.keras")
    assert encoder.input_shape == (None, 32, 32, 3)
    assert Image.open("runs/tour/views.png").width > 100


def test_the_picture_of_the_method_can_be_drawn_again(tmp_path):
    main = runpy.run_path(str(ROOT / "docs" / "draw_method.py"))["main"]
    main(tmp_path / "method.png")
    drawn = Image.open(tmp_path / "method.png")
    kept = Image.open(ROOT / "docs" / "images" / "method.png")
    assert drawn.size == kept.size
    difference = np.asarray(drawn.convert("L"), int) - np.asarray(kept.convert("L"))
    assert np.mean(np.abs(difference) > 30) < 0.05
