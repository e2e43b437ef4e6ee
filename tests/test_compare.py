"""The comparison with a training script that only pretends."""

import re
import statistics

import pytest
from PIL import Image

from ressl_keras import UsageError
from ressl_keras.commands import compare

# Leaves the files of a run whose kNN is 10 a step, times the flagfile's --gain, plus
# the seed; counts its calls.
SCRIPT = """
import json, os, sys
flags = dict(a.lstrip("-").split("=", 1) for a in sys.argv[1:])
gain = float(open(flags["flagfile"]).read())
if os.path.exists(flags["flagfile"] + ".fail"):
    sys.exit(3)
folder, seed = flags["workdir"], int(flags["seed"])
os.makedirs(folder)
with open(os.path.dirname(__file__) + "/calls", "a") as file:
    file.write(folder.split(os.sep, 1)[-1][-8:] + chr(10))
with open(folder + "/metrics.csv", "w") as file:
    file.write("epoch,step,loss,knn_top1" + chr(10))
    for epoch in (1, 2):
        file.write(f"{epoch},{5 * epoch},1.0,{10 * gain * epoch + seed}" + chr(10))
with open(folder + "/evaluation.json", "w") as file:
    values = {"top1": 30 * gain + seed, "untrained_top1": 5}
    json.dump({"knn": values, "linear": values}, file)
"""


@pytest.fixture
def setting(tmp_path):
    (tmp_path / "pretend.py").write_text(SCRIPT)
    (tmp_path / "slow.flags").write_text("1.0")
    (tmp_path / "fast.flags").write_text("2.0")

    def run(seeds=3, options=("--epochs=2",), names=("slow", "fast")):
        return compare.compare(
            [str(tmp_path / f"{name}.flags") for name in names],
            seeds,
            str(tmp_path / "out"),
            options,
            str(tmp_path / "pretend.py"),
            log=lambda line: None,
        )

    def calls():
        path = tmp_path / "calls"
        return len(path.read_text().split()) if path.exists() else 0

    return tmp_path, run, calls


def test_the_table_has_mean_and_spread_over_the_seeds(setting):
    _, run, calls = setting
    with open(run()) as file:
        lines = file.read().splitlines()
    assert calls() == 6
    spread = f"{statistics.stdev([0, 1, 2]):.2f}"
    assert lines[0] == (
        "| recipe | seeds | steps | kNN, monitor | kNN | untrained | linear |"
    )
    assert lines[2:] == [
        f"| slow | 3 | 10 | 21.00 ± {spread} | 31.00 ± {spread} | 5.00 ± 0.00 | "
        f"31.00 ± {spread} |",
        f"| fast | 3 | 10 | 41.00 ± {spread} | 61.00 ± {spread} | 5.00 ± 0.00 | "
        f"61.00 ± {spread} |",
    ]


def test_the_plot_is_an_image_of_something(setting):
    folder, run, _ = setting
    run()
    colours = (
        Image.open(folder / "out" / "comparison.png").convert("RGB").getcolors(1 << 20)
    )
    assert len(colours) > 10


def test_long_names_of_lines_stay_different(setting):
    folder, run, _ = setting
    names = [f"{'a_recipe_with_a_name_' * 2}{end}" for end in ("one", "none", "other")]
    for name in names:
        (folder / f"{name}.flags").write_text("1.0")
    run(seeds=2, names=names)
    page = (folder / "out" / "comparison.html").read_text()
    drawn = re.findall(r">(a_recipe_[^<]*…[^<]*)<", page)
    assert set(drawn) == {
        "a_recipe_with_…e_one, seed 0",
        "a_recipe_with_…e_one, seed 1",
        "a_recipe_with_…_none, seed 0",
        "a_recipe_with_…_none, seed 1",
        "a_recipe_with_…other, seed 0",
        "a_recipe_with_…other, seed 1",
    }


def test_the_same_command_goes_on_where_it_stopped(setting):
    folder, run, calls = setting
    (folder / "fast.flags.fail").touch()
    with pytest.raises(UsageError, match="ended with status 3"):
        run()
    assert calls() == 1
    (folder / "fast.flags.fail").unlink()
    run()
    assert calls() == 6
    run()
    assert calls() == 6
    run(seeds=4)
    assert calls() == 8


def test_finished_runs_with_other_flags_are_not_mixed_in(setting):
    _, run, _ = setting
    run(seeds=1)
    with pytest.raises(UsageError, match="finished run of another command"):
        run(seeds=1, options=["--epochs=3"])


@pytest.mark.parametrize(
    "names, message",
    [
        (("slow", "absent"), "There is no file"),
        (("slow", "slow"), "must have different names"),
    ],
)
def test_impossible_comparisons_are_refused(setting, names, message):
    _, run, calls = setting
    with pytest.raises(UsageError, match=message):
        run(names=names)
    assert calls() == 0
