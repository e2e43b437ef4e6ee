"""Files that vanish, are cut or have odd names, from the folder to the report."""

import os
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

from ressl_keras import UsageError
from ressl_keras.commands import train
from ressl_keras.config import Config
from ressl_keras.data import checking
from ressl_keras.data.datasets import load_dataset
from ressl_keras.encoders.encoder import load_encoder
from ressl_keras.evaluation import protocols
from ressl_keras.run_folder import RunFolder
from ressl_keras.training import checkpoints
from ressl_keras.training.pretrain import pretrain

pytestmark = pytest.mark.usefixtures("light_backbone")

SETTINGS = {
    "batch_size": 4,
    "queue_size": 8,
    "width": 4,
    "hidden_dim": 8,
    "embedding_dim": 4,
    "image_size": 8,
    "epochs": 3,
    "warmup_epochs": 0,
}
NAMES = ("cats", "dogs")
SIZES = ((9, 12), (12, 9))  # two, so that the images stay in their files


def draw(folder, names, random):
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        pixels = random.integers(0, 256, [*SIZES[i % 3 % 2], 3]).astype(np.uint8)
        Image.fromarray(pixels).save(os.path.join(os.fsencode(folder), name), "PNG")


@pytest.fixture
def images(tmp_path, random):
    """Two classes of twenty images."""
    for name in NAMES:
        draw(tmp_path / "images" / name, [b"%02d.png" % i for i in range(20)], random)
    return tmp_path / "images"


class Breaks:
    """Breaks a file once a step is done, as somebody beside the run would."""

    def __new__(cls, step, action):
        import keras

        class Callback(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                if int(self.model.step.numpy()) == step:
                    action()

        return Callback()


def cut(path):
    with open(path, "r+b") as file:
        file.truncate(60)


def run(images, workdir, callbacks=(), log=lambda line: None, **settings):
    dataset = load_dataset("folder", str(images), log=lambda line: None)
    config = Config(**{**SETTINGS, "knn_every": 0, **settings})
    pretrain(
        dataset,
        workdir,
        config,
        callbacks=callbacks,
        verbose=False,
        log=log,
    )
    return dataset


def listed(workdir):
    """Dict from path to reason of the images that a run lists."""
    lines = (workdir / "skipped.txt").read_text().splitlines()
    return {path: reason for reason, path in (line.split("\t") for line in lines)}


@pytest.mark.long
def test_images_that_break_in_training_are_replaced_and_listed(images, tmp_path):
    gone, damaged = images / "dogs" / "07.png", images / "cats" / "03.png"

    def action():
        gone.unlink()
        cut(damaged)

    lines = []
    run(images, tmp_path / "run", [Breaks(3, action)], lines.append)
    assert checkpoints.last_step(tmp_path / "run" / "checkpoints") == 27
    assert listed(tmp_path / "run") == {
        str(gone): "is not there any more",
        str(damaged): "cannot be decoded",
    }
    said = [line for line in lines if "could not be read" in line]
    assert 1 <= len(said) <= 2 and all(line.startswith("Epoch ") for line in said)


@pytest.mark.long
def test_a_folder_that_vanishes_is_named_and_the_state_saved(images, tmp_path):
    """In the second epoch; without checkpoints in between."""
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(UsageError) as caught:
        run(images, tmp_path / "run", [Breaks(3, lambda: shutil.rmtree(images))])
    message = str(caught.value)
    assert message.startswith(f"{images}/") and "is not there any more" in message
    assert "\n" not in message
    step = checkpoints.last_step(tmp_path / "run" / "checkpoints")
    assert 3 <= step <= 26 and f"Step {step} is saved." in message
    assert signal.getsignal(signal.SIGTERM) == handler


@pytest.mark.long
def test_too_many_broken_images_stop_a_run_that_can_go_on_as_if_it_had_not(
    images, tmp_path
):
    """Nearly half of them, of which only kNN reads two."""
    broken = [images / name / f"{i:02}.png" for name in NAMES for i in range(1, 19, 2)]
    for path in broken:
        cut(path)
    with pytest.raises(UsageError) as caught:
        run(images, tmp_path / "stopped")
    message = str(caught.value)
    assert "\n" not in message and "more than --max_unreadable=0.01 allows" in message
    step = checkpoints.last_step(tmp_path / "stopped" / "checkpoints")
    assert 0 < step < 9 and f"Step {step} is saved." in message
    assert set(listed(tmp_path / "stopped")) <= set(map(str, broken))
    for name in ("stopped", "whole"):
        run(images, tmp_path / name, max_unreadable=1.0, knn_every=3)
        found = listed(tmp_path / name)
        assert found == dict.fromkeys(map(str, broken), "cannot be decoded")
    for one, other in zip(*(weights(tmp_path / n) for n in ("stopped", "whole"))):
        np.testing.assert_array_equal(one, other)


def weights(folder):
    import keras

    return keras.models.load_model(folder / "encoder.keras").get_weights()


def test_other_errors_are_left_as_they_are(images):
    import tensorflow as tf

    paths = [str(path) for path in images.rglob("*.png")]
    error = tf.errors.InvalidArgumentError(None, None, "of the network")
    with (
        pytest.raises(tf.errors.InvalidArgumentError, match="of the network"),
        checking.naming_unreadable(paths),
    ):
        raise error


@pytest.fixture
def odd(tmp_path, random):
    """Classes and files whose names are no UTF-8 or hold line breaks and tabs."""
    for name in (b"caf\xe9", b"a\tb\nc"):
        folder = tmp_path / "odd" / os.fsdecode(name)
        draw(folder, [b"\xff%02d.png" % i for i in range(20)], random)
    (tmp_path / "odd" / os.fsdecode(b"caf\xe9\xe9/")).mkdir()
    broken = tmp_path / "odd" / os.fsdecode(b"caf\xe9/\xfebroken.png")
    broken.write_bytes(b"nothing")
    return tmp_path / "odd"


@pytest.mark.long
def test_names_that_are_no_utf8_go_through_the_whole_command(
    odd, tmp_path, capsys, monkeypatch
):
    # What it trains has no names in it.
    monkeypatch.setattr(protocols, "evaluate", lambda *_, **__: {})
    settings = {**SETTINGS, "epochs": 1, "knn_every": 0}
    options = train.TrainOptions(
        strategy="one_device",
        dataset="folder",
        data_dir=str(odd),
        workdir=str(tmp_path / "run"),
        check_images=True,
        **settings,
    )
    train.run(options)
    output = capsys.readouterr().out
    output.encode("utf-8")  # any terminal takes it
    assert "1 unreadable images skipped" in output
    folder = RunFolder(tmp_path / "run")
    with open(folder.skipped, "rb") as file:
        line = b"cannot be decoded\t" + os.fsencode(odd) + b"/caf\xe9/\xfebroken.png\n"
        assert file.read() == line
    with open(folder.report, encoding="utf-8") as file:
        assert "caf\\udce9" in file.read()


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 4),
    "list": lambda path: path.write_text("[1, 2]"),
    "nested": lambda path: path.write_text("[" * 100000),
    "flipped": lambda path: path.write_bytes(flipped(path.read_bytes())),
}


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


def options_of(root, workdir, epochs):
    return train.TrainOptions(
        strategy="one_device",
        dataset="folder",
        data_dir=str(root / "images"),
        workdir=str(workdir),
        evaluate=False,
        **{**SETTINGS, "epochs": epochs, "knn_every": 0},
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory, light_backbone):
    """A folder with images and a run of the command that ended."""
    root = tmp_path_factory.mktemp("finished")
    random = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        draw(root / "images" / name, [b"%02d.png" % i for i in range(20)], random)
    train.run(options_of(root, root / "run", epochs=1))
    return root


# With one epoch it is finished, with two there is one more to train.
@pytest.mark.parametrize("damage, epochs", [("empty", 1), ("flipped", 1), ("cut", 2)])
@pytest.mark.long
def test_damaged_side_files_stop_no_later_start(
    damage, epochs, finished, tmp_path, capsys
):
    folder = tmp_path / "run"
    shutil.copytree(finished / "run", folder)
    for name in ("views.png", "encoder.json", "metrics.csv", "encoder.keras"):
        DAMAGES[damage](folder / name)
    capsys.readouterr()
    train.run(options_of(finished, folder, epochs))
    output = capsys.readouterr().out
    assert "Traceback" not in output and "There is no report" not in output
    files = RunFolder(folder)
    load_encoder(files.encoder)
    assert (f"{folder}/encoder.keras is damaged" in output) == (epochs == 1)
    if epochs == 2:
        assert files.read_metrics()[-1]["epoch"] == "2" and files.has_views()
    for path in (files.views, files.metrics, files.description):
        name = os.path.basename(path)
        said = f"{path} is damaged and set aside as" in output
        assert (folder / f"damaged-{name}").exists() == said


@pytest.mark.parametrize("damage", DAMAGES)
def test_readers_of_the_folder_take_damaged_files_as_absent(
    damage, tmp_path, capsys, random
):
    files = RunFolder(tmp_path)
    files.write_metrics([{"epoch": i, "step": i, "loss": 0.5} for i in range(1, 40)])
    Image.fromarray(random.integers(0, 256, [40, 40, 3]).astype(np.uint8)).save(
        files.views
    )
    (tmp_path / "encoder.json").write_text('{"dataset": "folder /home/me/mine"}')
    assert len(files.read_metrics()) == 39 and files.has_views()
    assert files.dataset_name() == "folder mine"
    for name in ("views.png", "encoder.json", "metrics.csv"):
        DAMAGES[damage](tmp_path / name)
    assert not files.has_views()
    assert files.dataset_name() in (None, "folder mine")
    files.last_metric("loss")
    aside = [path.name for path in tmp_path.glob("damaged-*")]
    assert "damaged-views.png" in aside
    assert capsys.readouterr().out.count("is damaged and set aside as") == len(aside)
