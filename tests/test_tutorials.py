"""The notebooks in docs/tutorials are executed, with smaller numbers than they have.

As papermill does it: a cell behind the one with the tag `parameters` overwrites what
that one sets. The rest is executed as it is, in a new folder.
"""

import ast
import os
import sys
import tomllib

import nbclient
import nbformat
import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
# What the parameters are here, and what an execution leaves.
SHORT = {
    "photos_to_search": {
        "IMAGES": 200,
        "EPOCHS": 1,
        "PRETRAINED": str(ROOT / "pretrained" / "cifar10_resnet10"),
    },
    "few_labels_to_serving": {
        "IMAGES": 200,
        "EPOCHS": 1,
        "LABELS": 2,
        "FINETUNE_EPOCHS": 1,
    },
    "own_objective_and_augmentation": {"IMAGES": 200, "EPOCHS": 1},
}
LEFT = {
    "photos_to_search": ["photos.parquet", "duplicates.html"],
    "few_labels_to_serving": ["predictions.csv", "runs/labelled/classifier.keras"],
    "own_objective_and_augmentation": ["runs/own/encoder.keras", "own.keras"],
}


def read(path):
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def place_of_parameters(notebook):
    """Index of the one cell with the tag."""
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    (place,) = [i for i, found in enumerate(tags) if "parameters" in found]
    return place


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Variables of a kernel that finds this package and its commands."""
    folder = tmp_path_factory.mktemp("commands")
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for name, entry in scripts.items():
        module = entry.partition(":")[0]
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        program.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "IPYTHONDIR": str(folder / "ipython"),  # else it writes a history at home
    }


def execute(notebook, folder, environment):
    resources = {"metadata": {"path": str(folder)}}
    client = nbclient.NotebookClient(notebook, timeout=300, resources=resources)
    client.execute(env=environment)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_kept_without_outputs(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.nbformat == 4
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and not any(cell.outputs or cell.execution_count for cell in code)
    first = code[0]
    assert notebook.cells[place_of_parameters(notebook)] is first
    names = [line.targets[0].id for line in ast.parse(first.source).body]
    assert names == list(SHORT[path.stem])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, environment, tmp_path):
    notebook = read(path)
    lines = [f"{name} = {value!r}" for name, value in SHORT[path.stem].items()]
    injected = nbformat.v4.new_code_cell("\n".join(lines))
    notebook.cells.insert(place_of_parameters(notebook) + 1, injected)
    execute(notebook, tmp_path, environment)
    assert all((tmp_path / name).exists() for name in LEFT[path.stem])


@pytest.mark.parametrize(
    "source", ["1 / 0", "%%bash\nressl-embed --nonsense"], ids=["Python", "command"]
)
def test_a_cell_that_fails_fails_the_execution(source, environment, tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    with pytest.raises(nbclient.exceptions.CellExecutionError):
        execute(notebook, tmp_path, environment)
