"""Help, and what is said of flags that are wrong."""

import re
import subprocess
import sys

import hypothesis
import pytest
from absl import flags
from conftest import ROOT
from hypothesis import strategies as st

from ressl_keras import UsageError, cli
from ressl_keras.commands import (
    check,
    compare,
    embed,
    evaluate,
    export,
    pack,
    predict,
    report,
    search,
    train,
)
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
from ressl_keras.settings import settings_of

COMMANDS = {
    train: TrainOptions,
    evaluate: EvaluateOptions,
    export: ExportOptions,
    check: CheckOptions,
    compare: CompareOptions,
    report: ReportOptions,
    pack: PackOptions,
    embed: EmbedOptions,
    predict: PredictOptions,
    search: SearchOptions,
}


@pytest.fixture
def parse(monkeypatch, tmp_path):
    """Parses a command's flags in a folder of its own; returns options and the rest."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])

    def parse(*words, options_class=TrainOptions, **takes):
        values = flags.FlagValues()
        cli.define_flags(options_class, values)
        argv = ["train.py", *words]
        rest = cli.parse(argv, options_class, "", values=values, **takes)
        return cli.options_of(options_class, values), rest

    return parse


@pytest.fixture
def refusal(parse, capsys):
    """What is said instead."""

    def refusal(*words, **options):
        with pytest.raises(SystemExit) as end:
            parse(*words, **options)
        assert end.value.code == 1
        return capsys.readouterr().err

    return refusal


@pytest.mark.parametrize(
    "words, message",
    [
        (["--batchsize=3"], "There is no flag --batchsize. Did you mean --batch_size?"),
        (["--noevaluat"], "There is no flag --noevaluat. Did you mean --evaluate?"),
        (["--zzz"], "There is no flag --zzz. --help lists the flags."),
        (["--epochs=many"], "--epochs=many: must be an integer from 1 to 1,000,000."),
        (
            ["--epochs", "many"],
            "--epochs=many: must be an integer from 1 to 1,000,000.",
        ),
        (["--epochs"], "--epochs needs a value: --epochs=..."),
        (["--method=moco"], "--method=moco: must be ressl or moco_v2."),
        (["stray"], "'stray' is not a flag; flags have the form --name=value."),
        (["--download", "false"], "'false' is not a flag"),
        (["--", "--epochs=3"], "'--' is not a flag"),
        (["--recipe=quikstart"], "There is no recipe quikstart. Did you mean quick"),
        (["--learning_rate=nan"], "--learning_rate=nan: must be a number from 0 to"),
        (["--momentum=inf"], "--momentum=inf: must be a number from 0 to 1."),
        (["--seed=4294967296"], "--seed=4294967296: must be an integer from 0 to"),
        (["--profile=20"], "--profile=20: must be 2 integers from 1 to"),
        (
            ["--crops=64,x"],
            "--crops=64,x: must be integers from 8 to 4,096",
        ),
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
        ("--epochs=many", "--epochs=many: must be an integer from 1 to 1,000,000."),
        ("epochs=3", "'epochs=3' is not a flag; flags have the form --name=value."),
        (
            "--teacher_temperature=0",
            "--teacher_temperature=0: must be a number above",
        ),
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
    options, rest = parse("--flagfile=a.flags", "--width", "8", "--crops=64,32")
    assert rest == []
    assert (options.epochs, options.width, options.download) == (2, 8, False)
    assert options.crops == (64, 32)
    _, rest = parse("--seed=1", "--", "--epochs=3", takes_more=True)
    assert rest == ["--epochs=3"]


def test_words_without_dashes_are_arguments_where_they_are_asked_for(parse, refusal):
    words = ["one", "--output", "page.html", "two", "--noimages", "three"]
    taken = {"options_class": ReportOptions, "takes_words": True}
    options, rest = parse(*words, **taken)
    assert rest == ["one", "two", "three"]
    assert options == ReportOptions(output="page.html", images=False)
    assert "There is no flag --ouput" in refusal("one", "--ouput=x", **taken)
    assert "'one' is not a flag" in refusal("one", options_class=ReportOptions)


def test_a_flagfile_with_a_byte_order_mark_is_read(parse, tmp_path):
    (tmp_path / "a.flags").write_bytes(b"\xef\xbb\xbf--epochs=2\n")
    assert parse("--flagfile=a.flags")[0].epochs == 2


def test_a_recipe_is_found_from_any_folder(parse):
    by_name, _ = parse("--recipe=cifar100")
    by_file, _ = parse(f"--flagfile={ROOT}/flags/cifar100.flags")
    assert by_name == by_file
    assert by_name.dataset == "cifar100" and by_name.epochs == 200


def test_a_command_refuses_to_run_without_what_it_needs(refusal):
    said = refusal(options_class=PredictOptions)
    assert said.startswith("train.py: error: --classifier is needed: The classifier.")
    assert said.count("\n") == 1


@hypothesis.given(name=st.sampled_from(list(settings_of(TrainOptions))), text=st.text())
def test_any_text_is_a_value_or_one_line(name, text):
    known = settings_of(TrainOptions)[name]
    try:
        value = known.parse(text)
    except ValueError as error:
        assert str(error) == known.wanted and "\n" not in str(error)
    else:
        if value is not None:
            assert known.parse(known.format(value)) == value


def test_a_usage_error_is_one_line_and_status_1(capsys, monkeypatch):
    left = []
    monkeypatch.setattr(cli, "leave", left.append)
    monkeypatch.setattr(sys, "argv", ["/bin/train.py"])

    def fail():
        raise UsageError("Something\nis wrong.")

    cli.guard(fail)
    assert left == [1]
    assert capsys.readouterr().err == "train.py: error: Something is wrong.\n"


def test_a_file_that_cannot_be_written_is_one_line_with_its_path(
    capsys, monkeypatch, tmp_path
):
    monkeypatch.setattr(cli, "leave", lambda status: None)
    cli.guard((tmp_path / "absent" / "file").read_text)
    assert f"{tmp_path}/absent/file: No such file" in capsys.readouterr().err


@pytest.mark.parametrize("module, options_class", COMMANDS.items())
def test_help_fits_a_terminal_and_has_every_flag_once(module, options_class):
    text = cli.help_text(module.__doc__, options_class)
    assert max(map(len, text.split("\n"))) <= 80
    shown = re.findall(r"(?m)^  --(?:\[no\])?(\w+) ", text)
    assert sorted(shown) == sorted(settings_of(options_class))


def test_help_has_a_dozen_flags_first_with_their_defaults():
    text = cli.help_text(train.__doc__, TrainOptions)
    first, others = text.split("All others:")
    assert 10 <= len(re.findall("(?m)^  --", first)) <= 14
    assert re.search(r"\nTraining\n  --epochs +Passes over.*Default: 200\.\n", first)
    assert re.search(r"\n  --warmup_epochs .*Default: 5\.\n", others)
    assert "Default: yes." in others


@pytest.mark.parametrize("words", [["--help"], ["--batchsize=3"]])
def test_help_and_a_misspelt_flag_need_no_tensorflow(words):
    program = (
        "import sys\n"
        "from ressl_keras.commands import train\n"
        f"sys.argv = ['ressl-train', *{words}]\n"
        "try:\n"
        "    train.main()\n"
        "finally:\n"
        "    assert not {'tensorflow', 'keras', 'matplotlib'} & set(sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == (1 if words == ["--batchsize=3"] else 0)
    assert "Traceback" not in result.stderr
    told = result.stdout if words == ["--help"] else result.stderr
    assert "--batch_size" in told
