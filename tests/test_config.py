"""Every setting stands once: what is derived from the fields of the dataclasses."""

import dataclasses

import pytest
from options import parse

from ressl_keras import Config, UsageError, cli
from ressl_keras.commands.train import TrainOptions
from ressl_keras.run_folder import RunFolder
from ressl_keras.settings import settings_of

SETTINGS = settings_of(TrainOptions)


def another(known):
    """A value that is allowed and not the default."""
    if known.choices:
        return next(choice for choice in known.choices if choice != known.default)
    if known.type is bool:
        return not known.default
    if known.type is str:
        return ("hue:0.05", "blur:0.2") if known.listed else "other"
    value = known.type(known.low if known.low is not None else known.high)
    if known.listed:
        return (value,) * (known.length or 2)
    return value if value != known.default else known.type(known.high)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_is_a_flag_is_documented_and_survives_write_and_read(name, tmp_path):
    known = SETTINGS[name]
    beside = {
        "queue_size": {"batch_size": 1},  # no queue is smaller than the batch
        "accumulate_steps": {"batch_size": 4096},  # as many parts
    }.get(name, {})
    options = TrainOptions(**{name: another(known)}, **beside)
    folder = RunFolder(tmp_path)
    folder.write_config(options)
    assert folder.read_config(TrainOptions) == options
    flags = [known.flag(another(known)), *(f"--{k}={v}" for k, v in beside.items())]
    assert parse(TrainOptions, *flags) == options
    assert parse(TrainOptions, f"--flagfile={folder.flags}") == options
    assert known.help.endswith(".") and known.group
    assert f"{name} " in cli.help_text("", TrainOptions)


@pytest.mark.parametrize(
    "name", [name for name, known in SETTINGS.items() if known.type in (int, float)]
)
def test_every_number_has_finite_bounds(name):
    known = SETTINGS[name]
    assert known.high is not None and None in (known.low, known.above)
    lowest = known.low if known.low is not None else known.above
    for value in (float("nan"), float("inf"), known.high + 1, lowest - 1):
        with pytest.raises(UsageError, match=f"{name} must be"):
            TrainOptions(**{name: (value,) * 2 if known.listed else value})


def test_what_is_not_allowed_is_named():
    with pytest.raises(UsageError, match="accumulate_steps=3 does not divide the bat"):
        Config(batch_size=256, accumulate_steps=3)
    with pytest.raises(UsageError, match="synchronized takes statistics of the glob"):
        Config(batch_norm="synchronized", accumulate_steps=2)
    with pytest.raises(UsageError, match="queue_size must be an integer"):
        Config(queue_size=0)
    with pytest.raises(UsageError, match="must be ressl or moco_v2; got 'moco'"):
        Config(method="moco")
    with pytest.raises(UsageError, match="two ascending steps; got 5,2"):
        Config(profile=(5, 2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().epochs = 3


def test_a_run_resumes_with_the_defaults_of_settings_that_its_file_does_not_name(
    tmp_path,
):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "flags.txt").write_text(
        "--width=8\n--teacher_temperature=4e-2\n--a_flag_of_the_past=3\n--nodownload\n"
    )
    folder = RunFolder(tmp_path)
    same = TrainOptions(width=8, epochs=7)
    assert folder.resumed(same) == same
    with pytest.raises(UsageError) as refused:
        folder.resumed(TrainOptions(width=8, queue_size=512, crops=(64, 32)))
    for part in ("there --no", "no --crops", "--queue_size=4096", "--crops=64,32"):
        assert part.replace("there --no", "there no") in str(refused.value)


def test_a_folder_without_checkpoints_holds_no_run_to_resume(tmp_path):
    (tmp_path / "flags.txt").write_text("--width=8\n")
    assert RunFolder(tmp_path).resumed(TrainOptions(width=16)) is None


def test_a_path_may_start_at_the_users_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    options = TrainOptions(workdir="~/runs", data_dir="~/images", dataset="~")
    assert options.workdir == "/home/somebody/runs"
    assert options.data_dir == "/home/somebody/images"
    assert options.dataset == "~"


def test_a_damaged_settings_file_is_named(tmp_path):
    (tmp_path / "flags.txt").write_text("--width=many\n")
    with pytest.raises(UsageError, match="cannot be read: --width=many: must be"):
        RunFolder(tmp_path).read_config(Config)


def test_leftovers_of_interrupted_writes_are_removed(tmp_path):
    for name in ("writing-flags.txt", "checkpoints/writing-x.h5", "export/writing-a/b"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "export" / "1").mkdir()
    (tmp_path / "mine").touch()
    RunFolder(tmp_path).remove_leftovers()
    left = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")]
    assert sorted(left) == ["checkpoints", "export", "export/1", "mine"]
