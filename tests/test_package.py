"""The package as others import it."""

import importlib
import inspect
import json
import pathlib
import subprocess
import sys
import tomllib

import keras
import numpy as np
import pytest
import tiny
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ressl_keras

PUBLIC = """
Config CosineMomentum Dataset FeatureQueue InfoNCE Objective ReSSL Relation SGD
UsageError View WarmUp build_backbone build_projector encode evaluate export_encoder
images_from load_dataset load_encoder losses pretrain read_image strong_view views
warmup_cosine weak_view
"""
WHOLE = {"losses", "views"}  # modules
# Each package may import those at its right, and the modules beside them.
ORDER = ["commands", "embeddings", "training", "evaluation", "encoders", "data"]
ORDER += ["augmentation"]
BELOW = {"method": {"augmentation"}, "data": {"augmentation"}, "augmentation": set()}


def python(program, **options):
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        **options,
    )


@pytest.mark.parametrize(
    "imports",
    ["import keras, ressl_keras", "import keras\nfrom ressl_keras import SGD"],
)
@pytest.mark.long
def test_keras_loads_a_saved_model_where_the_package_was_imported(imports, tmp_path):
    """In a process of its own, with the optimizer."""
    model = tiny.build_model()
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    path = str(tmp_path / "model.keras")
    done = python(f"{imports}\nprint(keras.models.load_model({path!r}).name)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == model.name


def test_every_public_name_is_there_and_documented():
    assert {*PUBLIC.split(), "__version__"} == set(ressl_keras.__all__)
    for name in PUBLIC.split():
        assert getattr(ressl_keras, name).__doc__
        assert name in dir(ressl_keras)
    with pytest.raises(AttributeError, match="no attribute 'ressl'"):
        _ = ressl_keras.ressl


def test_importing_the_package_imports_neither_tensorflow_nor_keras():
    program = (
        "import sys, ressl_keras\n"
        "ressl_keras.Config(queue_size=512)\n"
        "print([m for m in ('tensorflow', 'keras', 'absl') if m in sys.modules])\n"
    )
    assert python(program).stdout == "[]\n"


def test_the_locked_packages_are_those_that_the_package_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["cpu"], *extras["onnx"]]
    wanted += [*extras["docs"], *extras["dev"]]
    lines = (ROOT / ".ci" / "requirements.lock").read_text().splitlines()
    pinned = dict(line.split()[0].split("==") for line in lines if "==" in line)
    for requirement in map(Requirement, wanted):
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}: run .ci/lock"
    assert "\n    --hash=sha256:" in "\n".join(lines)


def test_without_tensorflow_the_extra_is_named():
    program = (
        "import importlib.util\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda n: None if n == 'tensorflow' else find(n)\n"
        "import ressl_keras\n"
    )
    result = python(program)
    assert result.returncode == 1
    assert "pip install 'ressl-keras[cpu]'" in result.stderr.splitlines()[-1]


def test_another_backend_is_refused():
    import os

    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    result = python("import ressl_keras", env=environment)
    assert "Set KERAS_BACKEND=tensorflow" in result.stderr.splitlines()[-1]


@pytest.mark.long
def test_a_saved_model_loads_after_importing_the_class_alone(tmp_path):
    model = tiny.build_model()
    images = np.zeros([2, 8, 8, 3], np.float32)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "expected.npy", model(images))
    program = (
        "from ressl_keras import ReSSL\n"
        "import keras, numpy as np\n"
        f"model = keras.models.load_model({str(tmp_path / 'model.keras')!r})\n"
        f"expected = np.load({str(tmp_path / 'expected.npy')!r})\n"
        "found = model(np.zeros([2, 8, 8, 3], np.float32))\n"
        "np.testing.assert_allclose(found, expected, atol=1e-6)\n"
    )
    result = python(program)
    assert result.returncode == 0, result.stderr


@keras.saving.register_keras_serializable("tests")
def shortfall(positive):
    return 1 - positive


def test_every_registered_object_is_made_again_from_its_configuration():
    from ressl_keras.augmentation import layers
    from ressl_keras.method import normalization, objectives, optimizers, queue

    made = [
        layers.RandomResizedCropAndFlip(8),
        layers.RandomColorJitter(),
        layers.RandomGrayscale(),
        layers.RandomGaussianBlur(),
        layers.RandomSolarize(),
        layers.RandomTurn(),
        ressl_keras.strong_view(8),
        optimizers.SGD(0.1, l2=1e-3),
        optimizers.AdamW(0.1),
        optimizers.Lamb(0.1),
        queue.FeatureQueue(8, 4),
        normalization.FusedBatchNormalization(keras.layers.BatchNormalization()),
        objectives.Relation(0.2, 0.1),
        objectives.InfoNCE(0.3),
        objectives.Objective(shortfall),
        optimizers.CosineMomentum(0.9),
        objectives.WarmUp(objectives.InfoNCE(), objectives.Relation(), 5),
        tiny.build_model(),
    ]
    for name, kind in keras.saving.get_custom_objects().items():
        if name.startswith("ressl_keras>"):
            assert any(isinstance(each, kind) for each in made), name
    for each in made:
        config = each.get_config()
        again = type(each).from_config(json.loads(json.dumps(config, default=list)))
        assert again.get_config().keys() == config.keys()


def imports(path):
    """Sub-packages of ours that a module imports, as its own text says."""
    for line in pathlib.Path(path).read_text().splitlines():
        words = line.split()
        if words[:1] == ["from"] and words[1].startswith("ressl_keras."):
            yield words[1].split(".")[1]
        if words[:2] == ["from", "ressl_keras"]:
            yield from (word.strip(",()") for word in words[3:])


@pytest.mark.parametrize("package", [*ORDER, "method"])
def test_imports_run_one_way(package):
    if package in BELOW:
        allowed = BELOW[package]
    else:
        allowed = {*ORDER[ORDER.index(package) + 1 :], "method"}
        allowed -= {"method"} if package == "encoders" else set()
    for path in (ROOT / "ressl_keras" / package).glob("*.py"):
        for other in imports(path):
            if other != package and (ROOT / "ressl_keras" / other).is_dir():
                assert other in allowed, f"{path} imports {other}"


def test_modules_at_the_top_import_no_sub_package():
    for path in (ROOT / "ressl_keras").glob("*.py"):
        found = set(imports(path))
        assert not found & {*ORDER, "method"}, path


def test_every_module_says_what_it_is():
    for path in (ROOT / "ressl_keras").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        assert importlib.import_module(name.removesuffix(".__init__")).__doc__


@pytest.mark.parametrize(
    "name", [name for name in PUBLIC.split() if name[0].islower() and name not in WHOLE]
)
def test_public_functions_have_type_hints(name):
    signature = inspect.signature(getattr(ressl_keras, name))
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            assert parameter.annotation is not inspect.Parameter.empty, parameter
