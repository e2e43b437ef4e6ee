"""Devices: one, all of a machine, or several machines; and `fit` on them."""

import json
import os

import tensorflow as tf

from ressl_keras.errors import UsageError

STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker")


def make_strategy(name="auto", devices=0):
    """Chooses the devices; call it before TensorFlow has done anything else.

    Args:
        name: `one_device`; `mirrored`, devices of this machine; `multi_worker`, the
            machines that the environment variable TF_CONFIG names; or `auto`, several
            machines where TF_CONFIG names them, else all GPUs of this one.
        devices: how many GPUs to use, 0 for all. Without a GPU, the number
            of logical devices to split the CPU into, for trying distribution.

    Returns:
        A `tf.distribute.Strategy`.

    Raises:
        UsageError: if the name is unknown, or the devices or machines are not there.
    """
    if name not in STRATEGIES:
        raise UsageError(f"Unknown strategy '{name}'; known are {STRATEGIES}.")
    workers = worker_count()
    if name == "auto":
        name = "multi_worker" if workers > 1 else "mirrored"
    if devices and name != "mirrored":
        raise UsageError(
            f"--devices={devices} is for the devices of one machine together, not for "
            f"--strategy={name}."
        )
    if name == "multi_worker":
        if workers == 0:
            raise UsageError(
                "--strategy=multi_worker needs TF_CONFIG, an environment variable that "
                "names the machines."
            )
        return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "one_device":
        return tf.distribute.get_strategy()
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    if kind == "CPU" and devices > 1:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * devices,
        )
    there = tf.config.list_logical_devices(kind)
    if devices > len(there):
        raise UsageError(
            f"--devices={devices}, but this machine has {len(there)} {kind}."
        )
    chosen = [device.name for device in there[: devices or len(there)]]
    if len(chosen) == 1:
        # The plain strategy: no overhead, and XLA works.
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy(chosen)


def worker_count():
    """How many workers TF_CONFIG names; 0 without it.

    Raises:
        UsageError: if TF_CONFIG is no JSON with a cluster of workers and the index of
            this one.
    """
    text = os.environ.get("TF_CONFIG")
    if not text:
        return 0
    try:
        config = json.loads(text)
        (workers,), task = config["cluster"].values(), config["task"]
        fits = list(config["cluster"]) == ["worker"] and task["type"] == "worker"
        fits &= all(isinstance(address, str) and address for address in workers)
        fits &= type(task["index"]) is int and 0 <= task["index"] < len(workers)
    except (ValueError, KeyError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise UsageError(
            'TF_CONFIG is not of the form {"cluster": {"worker": ["host:port", ...]}, '
            '"task": {"type": "worker", "index": 0}}, with an index below the number '
            f"of workers: {text}"
        )
    return len(workers)


def several_workers(strategy):
    """Whether the strategy spans several processes."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def is_chief(strategy):
    """Whether this process is the one that writes files."""
    if not several_workers(strategy):
        return True
    return strategy.cluster_resolver.task_id == 0


def local_replicas(strategy):
    """How many replicas this process has."""
    return strategy.num_replicas_in_sync // max(len(_workers(strategy)), 1)


def place(strategy):
    """Number of this process among the workers, and how many there are."""
    if not several_workers(strategy):
        return 0, 1
    return strategy.cluster_resolver.task_id, len(_workers(strategy))


def _workers(strategy):
    """Addresses of the workers; empty for a strategy of one process."""
    if not several_workers(strategy):
        return []
    return strategy.cluster_resolver.cluster_spec().as_dict()["worker"]


def gather(strategy, number):
    """The different numbers of all workers, after waiting for all of them.

    Args:
        strategy: the strategy of the run.
        number: integer of this worker.

    Returns:
        Sorted list; of length one if all agree.
    """
    if not several_workers(strategy):
        return [number]

    @tf.function
    def gather_numbers():
        return strategy.gather(strategy.run(lambda: tf.constant([number])), axis=0)

    return sorted(set(gather_numbers().numpy().tolist()))


def barrier(strategy):
    """Waits for all workers."""
    gather(strategy, 0)


def fit(
    model,
    batches,
    *,
    strategy,
    initial_epoch,
    epochs,
    steps_per_epoch,
    callbacks,
):
    """`model.fit` of a run, also on several machines.

    On one machine it is `keras.Model.fit`. On several, Keras 3.15's `fit` fails: it
    averages a nest of per-replica values. There a loop calls the same `train_step` and
    the same callbacks.

    Args:
        model: compiled `keras.Model`, made in the scope of the strategy.
        batches: callable from (worker, workers) to a dataset of that worker's share
            of the global batches.
        strategy: the strategy of the run.
        initial_epoch: number of the first epoch.
        epochs: number of the epoch to end before.
        steps_per_epoch: steps of an epoch.
        callbacks: `keras.callbacks.CallbackList` of the model; on workers other than
            the chief none that writes.
    """
    if not several_workers(strategy):
        model.fit(
            batches(0, 1),
            initial_epoch=initial_epoch,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            shuffle=False,  # the batches come in their order
            callbacks=callbacks,
            verbose=0,
        )
        return
    _fit_on_workers(
        model,
        batches,
        strategy,
        range(initial_epoch, epochs),
        steps_per_epoch,
        callbacks,
    )


def _fit_on_workers(model, batches, strategy, epochs, steps_per_epoch, callbacks):
    """A training loop for several machines."""

    def share(context):
        workers = context.num_input_pipelines
        replicas = context.num_replicas_in_sync // workers
        dataset = batches(context.input_pipeline_id, workers)
        return dataset if replicas == 1 else _split_batches(dataset, replicas)

    @tf.function
    def execute(iterator):
        for _ in tf.range(together):
            strategy.run(model.train_step, args=(next(iterator),))

    together = model.steps_per_execution
    iterator = iter(strategy.distribute_datasets_from_function(share))
    model.stop_training = False
    callbacks.on_train_begin()
    for epoch in epochs:
        model.reset_metrics()
        callbacks.on_epoch_begin(epoch)
        for batch in range(0, steps_per_epoch, together):
            callbacks.on_train_batch_begin(batch)
            execute(iterator)
            # Reading a metric involves all workers: once an epoch, not every step.
            callbacks.on_train_batch_end(batch + together - 1, {})
        logs = model.get_metrics_result()
        logs["learning_rate"] = model.optimizer.learning_rate
        callbacks.on_epoch_end(epoch, logs)
        # Which a callback asks for on the chief alone.
        model.stop_training = any(gather(strategy, int(model.stop_training)))
        if model.stop_training:
            break
    callbacks.on_train_end(logs)


def _split_batches(dataset, parts):
    """Each batch of a worker in equal parts, one for each of its replicas."""
    first = tf.nest.flatten(dataset.element_spec)[0]
    return dataset.rebatch(first.shape[0] // parts)
