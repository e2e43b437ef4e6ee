"""Several devices and several processes against one.

In processes of their own, since TensorFlow takes one strategy's devices for good. The
table of docs/distributed.md:
python -m pytest -n 0 -s -m "slow or not slow" tests/test_distribution.py
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT
from small_run import arrays

from ressl_keras import UsageError, devices
from ressl_keras.config import Config
from ressl_keras.data import shapes
from ressl_keras.data.datasets import Dataset
from ressl_keras.data.images import ArrayImages
from ressl_keras.method import replicas
from ressl_keras.run_folder import RunFolder
from ressl_keras.training.pretrain import pretrain

PROGRAM = pathlib.Path(__file__).parent / "workers.py"


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def start(command, workers=0):
    """Starts one process, or one for each worker of a cluster on this machine."""
    if not workers:
        return [subprocess.Popen(command)]
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(workers)]}
    processes = []
    for index in range(workers):
        task = {"cluster": cluster, "task": {"type": "worker", "index": index}}
        environment = {
            **os.environ,
            "TF_CONFIG": json.dumps(task),
            "WORKER": str(index),
            "CUDA_VISIBLE_DEVICES": "",
        }
        processes.append(
            subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


def run(folder, strategy="one_device", devices=0, workers=0, stop=20):
    command = [sys.executable, PROGRAM, folder, strategy, str(devices), str(stop)]
    for process in start(command, workers):
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    return arrays(folder)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """The folder of a run on one device, and what it leaves."""
    folder = tmp_path_factory.mktemp("single")
    return folder, run(folder)


def metrics(folder):
    """The one row of the table."""
    (row,) = RunFolder(folder).read_metrics()
    return row


@pytest.mark.long
@pytest.mark.parametrize(
    "kind, options",
    [
        ("2 devices", {"strategy": "mirrored", "devices": 2}),
        ("2 processes", {"strategy": "multi_worker", "workers": 2}),
        pytest.param(
            "4 devices", {"strategy": "mirrored", "devices": 4}, marks=pytest.mark.slow
        ),
        pytest.param(
            "3 processes", {"strategy": "auto", "workers": 3}, marks=pytest.mark.slow
        ),
    ],
)
def test_spread_out_a_run_learns_what_it_learns_on_one_device(
    kind, options, single, tmp_path
):
    """Losses, weights and queue after twenty steps; the queue's copies bit by bit."""
    folder, single = single
    spread = run(tmp_path, **options)
    assert set(spread) == set(single)
    largest = {"loss": 0.0, "weights": 0.0, "queue": 0.0}
    for name, array in single.items():
        if name.endswith(("_total", "_count")):
            continue  # metrics: of several processes the chief keeps its own share
        part = "queue" if "queue" in name else "weights"
        difference = float(np.abs(spread[name] - array).max())
        largest[part] = max(largest[part], difference)
    for name in ("loss", "teacher_entropy", "embedding_std"):
        difference = abs(float(metrics(tmp_path)[name]) - float(metrics(folder)[name]))
        largest["loss"] = max(largest["loss"], difference)
    copies = [np.load(path) for path in sorted(tmp_path.glob("queue-*.npy"))]
    copies = np.concatenate(copies)
    print(f"{kind}: {len(copies)} copies of the queue, largest differences {largest}")
    assert len(copies) == (options.get("workers") or options["devices"])
    for copy in copies[1:]:
        np.testing.assert_array_equal(copy, copies[0])
    assert max(largest.values()) <= 1e-5


@pytest.mark.long
def test_a_run_goes_on_with_another_number_of_replicas(single, tmp_path):
    """Ten steps on two devices, then ten on one: as twenty on one."""
    folder, single = single
    run(tmp_path, "mirrored", 2, stop=10)
    resumed = run(tmp_path)
    for name, array in single.items():
        np.testing.assert_allclose(
            resumed[name], array, rtol=1e-5, atol=1e-5, err_msg=name
        )
    for name in ("loss", "teacher_entropy", "embedding_std"):
        one, other = metrics(tmp_path)[name], metrics(folder)[name]
        assert abs(float(one) - float(other)) <= 1e-5


@pytest.mark.slow
def test_a_lost_worker_stops_the_others_with_a_clear_line(tmp_path):
    """Within two minutes; started again, the run goes on from the last checkpoint."""
    command = [
        sys.executable,
        ROOT / "train.py",
        f"--workdir={tmp_path}",
        "--dataset=shapes",
        "--backbone=resnet10_small",
        "--width=4",
        "--batch_size=64",
        "--queue_size=128",
        "--checkpoint_every=5",
        "--knn_every=0",
        "--noevaluate",
    ]
    chief, other = start([*command, "--epochs=1000"], workers=2)
    while not list(tmp_path.glob("checkpoints/step-*")):
        assert chief.poll() is None, chief.communicate()
        time.sleep(0.5)
    other.send_signal(signal.SIGKILL)
    lost = time.monotonic()
    _, errors = chief.communicate(timeout=120)
    other.communicate()
    print(f"the chief stopped {time.monotonic() - lost:.0f} s after the loss")
    assert chief.returncode == 1
    lines = [line for line in errors.split("\n") if line.startswith("train.py: error")]
    assert len(lines) == 1 and "Another worker was lost" in lines[0]
    assert "Traceback" not in errors
    steps = max(path.name for path in tmp_path.glob("checkpoints/step-*"))[5:14]
    again = subprocess.run(
        [*command, "--epochs=1000", f"--max_steps={int(steps) + 2}"],
        capture_output=True,
        text=True,
    )
    assert f"Resuming at step {int(steps)} of" in again.stdout, again.stderr


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "{}",
        '{"cluster": {}}',
        '{"cluster": 3}',
        "[1]",
        '{"cluster": {"worker": ["a:1", "b:1"]}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker"}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": "0"}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}}',
        '{"cluster": {"worker": [1, 2]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1"], "chief": ["b:1"]}, "task": '
        '{"type": "worker", "index": 0}}',
    ],
)
@pytest.mark.long
def test_a_malformed_tf_config_is_one_clear_line(text, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UsageError, match="TF_CONFIG is not of the form"):
        devices.make_strategy("auto")


@pytest.mark.long
def test_what_is_not_there_is_refused(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(UsageError, match="needs TF_CONFIG"):
        devices.make_strategy("multi_worker")
    with pytest.raises(UsageError, match=r"--devices=2 .* --strategy=one_device"):
        devices.make_strategy("one_device", 2)
    with pytest.raises(UsageError, match="Unknown strategy 'mirorred'"):
        devices.make_strategy("mirorred")


@pytest.mark.parametrize(
    "config, reason",
    [
        (Config(batch_size=16), "batch of 16 cannot be split over 3"),
        (Config(batch_size=15, jit_compile=True), "XLA cannot .* 3 .* --jit_compile"),
    ],
    ids=["batch", "XLA"],
)
@pytest.mark.long
def test_what_several_replicas_cannot_do_is_refused(config, reason, tmp_path):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1", "CPU:2"])
    dataset = Dataset("shapes", ArrayImages(*shapes.render(80, 0, size=8)))
    with pytest.raises(UsageError, match=reason):
        pretrain(dataset, tmp_path, config, strategy=strategy)


def on_two(function):
    """Results of a function of the replica's number on two replicas."""
    strategy = tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"],
        # No collective operations, which know one number of devices in a process.
        tf.distribute.ReductionToOneDevice(),
    )

    @tf.function
    def run():
        context = tf.distribute.get_replica_context()
        return function(context.replica_id_in_sync_group)

    return strategy.experimental_local_results(strategy.run(run))


@pytest.mark.parametrize("broken", [None, 0, 1])
def test_an_update_that_is_not_finite_on_one_replica_is_so_on_all(broken):
    """Keras' loss scaling skips it by what the first replica has."""

    def gradients(replica):
        value = tf.where(replica == (2 if broken is None else broken), np.inf, 3.0)
        first, none, second = replicas.finite_on_all([value[None], None, tf.ones([2])])
        assert none is None
        return tf.concat([first, second], 0)

    for found in on_two(gradients):
        expected = [3.0, 1.0, 1.0] if broken is None else 3 * [np.nan]
        found = np.where(np.isfinite(found), found, np.nan)
        np.testing.assert_array_equal(found, expected)


def test_parts_of_a_batch_that_differ_in_length_are_refused():
    def gathered(replica):
        some = tf.range(4) < 4 - tf.cast(replica, tf.int32)
        return replicas.gather(tf.boolean_mask(tf.ones([4, 2]), some))

    with pytest.raises(tf.errors.InvalidArgumentError, match="drop_remainder=True"):
        on_two(gathered)
