"""Help, and what is said of flags that are wrong: in this process, with real flags."""

import copy
import os
import re
import subprocess
import sys

import pytest
from absl import flags
from conftest import ROOT

import ressl_command
import train
from ressl_keras import UsageError, compare, export


@pytest.fixture
def parse(monkeypatch, tmp_path):
    """Parses train.py's flags in a folder of its own, as if nothing were given yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(flags, "FLAGS", copy.deepcopy(flags.FLAGS))
    monkeypatch.setattr(sys, "argv", ["train.py"])

    def parse(*words, takes_more=False):
        return ressl_command.parse(["train.py", *words], train.GROUPS, takes_more)

    return parse


@pytest.fixture
def refusal(parse, capsys):
    """What is said instead."""

    def refusal(*words):
        with pytest.raises(SystemExit) as end:
            parse(*words)
        assert end.value.code == 1
        return capsys.readouterr().err

    return refusal


@pytest.mark.parametrize(
    "words, message",
    [
        (["--batchsize=3"], "There is no flag --batchsize. Did you mean --batch_size?"),
        (["--noevaluat"], "There is no flag --noevaluat. Did you mean --evaluate?"),
        (["--zzz"], "There is no flag --zzz. --help lists the flags."),
        (["--epochs=many"], "--epochs=many: must be a positive integer."),
        (["--epochs", "many"], "--epochs=many: must be a positive integer."),
        (["--epochs"], "--epochs needs a value: --epochs=..."),
        (["--method=moco"], "--method=moco: value should be one of <ressl|moco_v2>."),
        (["stray"], "'stray' is no flag; flags look like --name=value."),
        (["--download", "false"], "'false' is no flag"),
        (["--", "--epochs=3"], "'--' is no flag"),
        (["--crops=64,x"], "--crops=64,x: must be integers of at least 8"),
    ],
)
def test_a_wrong_flag_gets_one_line(words, message, refusal):
    said = refusal(*words)
    assert said.startswith(f"train.py: error: {message}")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "line, message",
    [
        ("--batchsize=3", "There is no flag --batchsize. Did you mean --batch_size?"),
        ("--epochs=many", "--epochs=many: must be a positive integer."),
        ("epochs=3", "'epochs=3' is no flag; flags look like --name=value."),
        ("--teacher_temperature=0", "--teacher_temperature=0: must be positive"),
        ("--flagfile=absent", "The flagfile absent cannot be read: No such file"),
        ("--flagfile=inner.flags", "inner.flags reads itself."),
    ],
)
def test_a_wrong_line_is_named_by_file_and_number(line, message, refusal, tmp_path):
    (tmp_path / "inner.flags").write_text(f"# Comment.\n\n--seed=1\n{line}\n--width=3")
    (tmp_path / "outer.flags").write_text("--epochs=2\n--flagfile=inner.flags\n")
    place = "inner.flags, line 4: "
    for words in (["--flagfile=outer.flags"], ["--flagfile", "inner.flags"]):
        assert refusal("--seed=2", *words).startswith(
            f"train.py: error: {place}{message}"
        )


def test_what_is_right_is_parsed(parse, tmp_path):
    (tmp_path / "a.flags").write_text("# Comment.\n--epochs=2\n--nodownload\n")
    assert parse("--flagfile=a.flags", "--width", "8", "--crops=64,32") == []
    values = flags.FLAGS
    assert (values.epochs, values.width, values.download) == (2, 8, False)
    assert values.crops == ["64", "32"]
    assert parse("--seed=1", "--", "--epochs=3", takes_more=True) == ["--epochs=3"]


def test_a_run_goes_on_with_flags_that_its_file_does_not_know_yet(parse, monkeypatch):
    monkeypatch.setattr(train, "FLAGS", flags.FLAGS)
    os.makedirs("run/checkpoints")
    with open("run/flags.txt", "w") as file:
        file.write("--width=8\n--teacher_temperature=4e-2\n--a_flag_of_the_past=3\n")
    parse("--width=8", "--epochs=7")
    train.keep_flags("run/flags.txt")
    with open("run/flags.txt") as file:
        assert {"--width=8", "--epochs=7", "--queue_size=4096"} <= set(
            file.read().split("\n")
        )
    parse("--queue_size=64", "--crops=64,32")
    with pytest.raises(UsageError) as refused:
        train.keep_flags("run/flags.txt")
    for part in ("there no --crops", "--queue_size=4096", "here --crops=64,32"):
        assert part in str(refused.value)


def help_of(command):
    """What --help says; of the package's modules without a process of their own."""
    if command in (export, compare):
        values = flags.FlagValues()
        command.define_flags(values)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(flags, "FLAGS", values)
            return ressl_command.help_text(command.__doc__, command.GROUPS)
    command = [sys.executable, ROOT / command, "--batchsize=3", "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("command", ["train.py", "evaluate.py", export, compare])
def test_help_fits_a_terminal_and_has_every_flag_once(command):
    text = help_of(command)
    path = ROOT / command if isinstance(command, str) else command.__file__
    with open(path) as file:
        defined = re.findall(r'DEFINE_\w+\(\s*"(\w+)"', file.read())
    assert max(map(len, text.split("\n"))) <= 80
    assert sorted(re.findall(r"(?m)^  --(?:\[no\])?(\w+) ", text)) == sorted(defined)


def test_help_has_a_dozen_flags_first_with_their_defaults():
    first, others = help_of("train.py").split("All others:")
    assert 10 <= len(re.findall("(?m)^  --", first)) <= 13
    assert re.search(r"\nTraining\n  --epochs +Passes over.*Default: 200\.\n", first)
    assert re.search(r"\n  --warmup_epochs .*Default:\s+5\.\n", others)
    assert "Default: yes.\n  --crops" in others.replace(" " * 25, " ")
