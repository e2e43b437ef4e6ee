"""Ctrl-C at different times: what is saved, and what is said. In this process."""

import signal
import sys

import pytest

from ressl_keras.commands import train
from ressl_keras.data import datasets, shapes
from ressl_keras.data.datasets import Dataset
from ressl_keras.data.images import ArrayImages
from ressl_keras.evaluation import protocols
from ressl_keras.training import checkpoints, progress

COMMAND = "python train.py --workdir=here"


def press(*_, **__):
    # Not os.kill: another thread may take it, and this one go on a little.
    signal.raise_signal(signal.SIGINT)


@pytest.fixture
def run(monkeypatch, tmp_path, capsys, light_backbone):
    """Trains for four steps; returns the command's output and exit status."""
    # Python leaves the signal ignored where it was started so, as in the background.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    options = train.TrainOptions(
        workdir=str(tmp_path),
        batch_size=8,
        queue_size=16,
        hidden_dim=8,
        embedding_dim=4,
        epochs=2,
        knn_every=0,
        strategy="one_device",
    )
    drawn = ArrayImages(*shapes.render(16, 0, size=8))
    dataset = Dataset("drawn", drawn, drawn, drawn, list(shapes.CLASS_NAMES))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: dataset)
    monkeypatch.setattr(protocols, "evaluate", lambda *_, **__: {})
    monkeypatch.setattr(sys, "orig_argv", ["/bin/python", *COMMAND.split()[1:]])

    def run():
        status = 0
        try:
            train.train(options)
        except SystemExit as end:
            status = end.code
        return capsys.readouterr().out, status

    yield run
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def at_step(monkeypatch):
    """Does something at the end of a step."""
    kept = progress.Progress.on_train_batch_end

    def at_step(step, action):
        def on_train_batch_end(self, batch, logs=None):
            kept(self, batch, logs)
            if self.step == step:
                action()

        monkeypatch.setattr(progress.Progress, "on_train_batch_end", on_train_batch_end)

    return at_step


def saved(folder):
    return checkpoints.last_step(folder / "checkpoints")


def test_before_the_first_step_there_is_nothing_to_save(run, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "load_dataset", press)
    output, status = run()
    assert status == 130
    assert f"No step is saved. To start again:\n  {COMMAND}\n" in output
    assert saved(tmp_path) == 0


@pytest.mark.parametrize("step", [1, 2, 4])  # in an epoch, at its end, at the end
@pytest.mark.long
def test_a_step_is_finished_and_saved(step, run, at_step, monkeypatch, tmp_path):
    at_step(step, press)
    output, status = run()
    assert status == 130
    assert f"Stopped at step {step}, which is saved. To resume:" in output
    assert f"\n  {COMMAND}\n" in output
    assert saved(tmp_path) == step
    assert not (tmp_path / "encoder.keras").exists()
    if step == 1:
        at_step(step, lambda: None)
        output, status = run()
        assert status == 0
        assert "Resuming at step 1 of 4." in output


@pytest.mark.long
def test_the_evaluation_can_be_repeated(run, monkeypatch, tmp_path):
    monkeypatch.setattr(protocols, "run", press)
    output, status = run()
    assert status == 130
    assert f"Step 4 is saved. To resume:\n  {COMMAND}\n" in output
    assert (tmp_path / "encoder.keras").exists()


def test_pressed_twice_it_stops_at_once(run, at_step, tmp_path):
    def twice():
        press()
        press()

    at_step(1, twice)
    output, status = run()
    assert status == 130
    assert "No step is saved" in output
    assert saved(tmp_path) == 0
