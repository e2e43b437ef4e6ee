"""A run: from a data set and settings to an encoder in a work directory."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from ressl_keras import devices
from ressl_keras.config import Config
from ressl_keras.data.checking import naming_unreadable
from ressl_keras.data.datasets import Dataset, as_dataset
from ressl_keras.data.pipeline import InputTimer, files_of_steps, training_batches
from ressl_keras.encoders.building import build_encoder
from ressl_keras.encoders.export import save_all
from ressl_keras.errors import UsageError
from ressl_keras.evaluation.verdict import start_of
from ressl_keras.files import read_json
from ressl_keras.method.objectives import uses
from ressl_keras.method.ressl import ReSSL
from ressl_keras.run_folder import RunFolder
from ressl_keras.training import checkpoints, segments
from ressl_keras.training.backbones import keep_network, own_network
from ressl_keras.training.build import (
    Plan,
    build_alone,
    build_model,
    build_monitored_encoder,
    decoder_of,
    make_plan,
    network_size,
)
from ressl_keras.training.callbacks import (
    CollapseMonitor,
    KNNMonitor,
    LazyCallbacks,
    MetricsTable,
    ResumedEpoch,
    StopOnNaN,
    Throughput,
)
from ressl_keras.training.cautions import cautions
from ressl_keras.training.exporting import facts, keep_initial
from ressl_keras.training.history import History
from ressl_keras.training.initial import load_source, preprocessing_of, start_from
from ressl_keras.training.memory import check_memory
from ressl_keras.training.precision import choose_precision
from ressl_keras.training.preview import preview
from ressl_keras.training.progress import Progress, overview
from ressl_keras.training.skipped import SkippedImages, SkippedList
from ressl_keras.training.tensorboard import Dashboard, Profiler, StepScalars


def pretrain(
    dataset: Dataset | np.ndarray | tf.data.Dataset,
    workdir: str | os.PathLike,
    config: Config = Config(),  # noqa: B008, it is immutable
    *,
    strategy: tf.distribute.Strategy | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    backbone: keras.Model | None = None,
    teacher_view: keras.layers.Layer | None = None,
    student_view: keras.layers.Layer | Sequence[keras.layers.Layer] | None = None,
    objective: Callable | None = None,
    verbose: bool = True,
    log: Callable[[str], object] = print,
) -> str:
    """Pretrains an encoder, or resumes an interrupted run with the same settings.

    Args:
        dataset: `Dataset`; or the images themselves, as `images_from` takes them.
        workdir: folder of the run's files; made if absent.
        config: the settings.
        strategy: `tf.distribute.Strategy`; None takes the current one.
        callbacks: further Keras callbacks, run on the chief after this run's own.
        backbone: functional model from images to features, maps or tokens, in place
            of the one that the settings name. The run folder keeps a copy.
        teacher_view: `View` in place of the one that the settings describe. Where the
            images differ in size, a view gets crops and makes the rest.
        student_view: the same for the student, or a list of several.
        objective: function or instance in place of the method's, see
            `method.objectives.Objective`.
        verbose: whether to show the progress.
        log: called with a line of text.

    Returns:
        Path of the encoder's file. Of several workers only the chief writes it.

    Raises:
        UsageError: if something that was asked for is impossible; before any training.
        checkpoints.Stopped: if a signal asked the run to stop; its state is saved.

    Example:

    >>> dataset = load_dataset("folder", "my_images")
    >>> pretrain(dataset, "runs/mine", Config(image_size=64, epochs=100))
    'runs/mine/encoder.keras'
    """
    strategy = strategy or tf.distribute.get_strategy()
    folder = RunFolder(workdir)
    dataset = as_dataset(dataset, config.channels)
    config = _as_read(config, dataset)
    if backbone is not None:
        config = dataclasses.replace(config, backbone=os.path.basename(folder.network))
    plan = make_plan(config, dataset.pretrain, strategy.num_replicas_in_sync)
    check_memory(config, plan.image_size, devices.place(strategy)[1])
    folder.prepare()
    chief = devices.is_chief(strategy)
    with folder.locked() if chief else contextlib.nullcontext():
        config = folder.resumed(config) or config
        run = _Run(dataset, config, folder, plan, (teacher_view, student_view), log)
        run.prepare(strategy, backbone, objective)
        step = run.first_step
        if step >= plan.total_steps and chief and folder.is_exported():
            log(f"The run is finished, at step {step}; nothing is left to train.")
            return folder.encoder
        run.train(strategy, verbose, callbacks)
        return run.export() if chief else folder.encoder


@dataclasses.dataclass
class _Run:
    """What the parts of a run share."""

    dataset: object
    config: Config
    folder: RunFolder
    plan: Plan
    own_views: tuple
    log: object
    # Made by `prepare`, the last with the callbacks.
    model: ReSSL | None = None
    encoder: keras.Model | None = None
    first_step: int = 0
    saving: checkpoints.Checkpoints | None = None
    history: History | None = None

    def prepare(self, strategy, backbone=None, objective=None):
        """Settles the settings, builds the model, restores the newest checkpoint."""
        load = functools.cache(load_source)  # two look into it
        folder, plan = self.folder, self.plan
        size = network_size(self.config, plan.image_size)
        find_network = functools.partial(
            own_network, self.config.backbone, folder, size, backbone, plan.channels
        )
        self.config = _decided(
            self.config, plan, find_network, strategy, self.log, load
        )
        config = self.config
        keras.utils.set_random_seed(config.seed)
        with strategy.scope():
            network = find_network()
            compiled = _worth_compiling(strategy.num_replicas_in_sync)
            self.model = build_model(
                config, plan, compiled, self.own_views, network, objective
            )
            self.encoder = build_monitored_encoder(self.model, config, plan)
        if devices.is_chief(strategy):
            folder.remove_leftovers()
            folder.write_config(config)
            if network is not None and ":" not in config.backbone:
                keep_network(network, folder)
        self.first_step = _restore(self.model, folder, strategy)
        if not self.first_step:
            if config.init:
                start_from(self.model, config, self.log, load)
            if devices.is_chief(strategy):
                keep_initial(self.model.backbone, folder, plan.image_size)

    def train(self, strategy, verbose, callbacks):
        """Trains from the first step to the last."""
        plan, config = self.plan, self.config
        parts = segments.split(self.first_step, plan.total_steps, plan.steps_per_epoch)
        together = segments.steps_per_execution(
            config.steps_per_execution, parts, plan.steps_per_epoch
        )
        self.model.steps_per_execution = together
        self.log(overview(self.dataset, self.model, config, plan))
        if parts and together < config.steps_per_execution:
            self.log(
                f"Steps per call of the graph: {together}, the largest number up to "
                f"{config.steps_per_execution} that divides the parts of this run."
            )
        for caution in cautions(config, plan, self.dataset.pretrain):
            self.log(caution)
        if self.first_step:
            self.log(f"Resuming at step {self.first_step} of {plan.total_steps}.")
            self.warn_of_other_images()
        # Several devices fetch ahead of the steps; their wait would mean little.
        alone = strategy.num_replicas_in_sync == 1
        timer = InputTimer() if alone and InputTimer.possible() else None
        with self.naming_unreadable(strategy):
            callbacks = self.callbacks(strategy, timer, verbose, callbacks)
            try:
                with self.history or contextlib.nullcontext():
                    self.fit(parts, timer, callbacks, strategy)
            finally:
                if self.saving:
                    self.saving.close()

    def warn_of_other_images(self):
        """Says if the data set has grown or shrunk since the run began."""
        before = read_json(self.folder.history).get("images")
        count = len(self.dataset.pretrain)
        if before not in (None, count):
            self.log(
                f"Warning: there are {count:,} images to learn from, and {before:,} "
                "when the run was last trained. From here on their order is another, "
                "and an epoch may have another number of steps."
            )

    def fit(self, parts, timer, callbacks, strategy):
        """Trains from segment to segment."""
        steps_per_epoch = self.plan.steps_per_epoch
        self.model.stop_training = False
        for first, last in parts:
            if self.model.stop_training:  # a callback asked for it
                break
            steps = min(steps_per_epoch, last - first)
            epoch = first // steps_per_epoch
            devices.fit(
                self.model,
                functools.partial(self.batches, timer, first, last),
                strategy=strategy,
                initial_epoch=epoch,
                epochs=epoch + (last - first) // steps,
                steps_per_epoch=steps,
                callbacks=LazyCallbacks(
                    callbacks,
                    model=self.model,
                    epochs=epoch + (last - first) // steps,
                    steps=steps,
                    verbose=0,
                ),
            )

    def naming_unreadable(self, strategy):
        """A context in which a vanished folder is named and the state is saved."""
        config, images = self.config, self.dataset.pretrain

        def likely():
            step = int(self.model.step.numpy())
            steps = step, step + self.model.steps_per_execution
            return files_of_steps(images, config.batch_size, config.seed, *steps)

        before = functools.partial(self.save_in_between, strategy)
        return naming_unreadable(self.dataset.files, likely=likely, before=before)

    def save_in_between(self, strategy):
        """Saves the state before an error; returns a sentence about it."""
        # On several machines a save needs all workers.
        alone = not devices.several_workers(strategy)
        step = self.saving.save_and_release() if alone and self.saving else 0
        return f"Step {step} is saved." if step else ""

    def batches(self, timer, first, last, worker, workers):
        """Batches of some steps, for one worker."""
        config = self.config
        batches = training_batches(
            self.dataset.pretrain,
            config.batch_size,
            config.seed,
            first,
            last,
            self.plan.image_size,
            worker,
            workers,
            config.crops,
            config.view_augmentations(),
        )
        return timer.watch(batches) if timer else batches

    def callbacks(self, strategy, timer, verbose, others):
        """The callbacks of `fit`; on workers other than the chief none that writes."""
        config, plan, folder = self.config, self.plan, self.folder
        chief, used = devices.is_chief(strategy), uses(self.model.objective)
        skipped = SkippedImages(
            self.dataset,
            config.max_unreadable,
            SkippedList(folder.skipped, keep=bool(self.first_step)) if chief else None,
            self.log,
            functools.partial(self.save_in_between, strategy),
        )
        found = [StopOnNaN(), Throughput(config.batch_size, timer)]
        if self.first_step % plan.steps_per_epoch:
            found.append(ResumedEpoch(self.model.metrics))
        if not chief:
            return [*found, skipped]
        self.saving = checkpoints.Checkpoints(
            folder.checkpoints,
            config.checkpoint_every,
            config.keep_checkpoints,
            plan.steps_per_epoch,
            config.checkpoint_minutes,
        )
        monitors = self._monitors()
        counts = [each.counts for each in monitors if isinstance(each, KNNMonitor)]
        self.history = History(
            folder,
            self.first_step,
            plan,
            config.batch_size,
            *counts,
            images=len(self.dataset.pretrain),
        )
        return [
            *found,
            CollapseMonitor(
                config.batch_size,
                relational="teacher" in used,
                warn=self.log,
            ),
            *monitors,
            skipped,
            MetricsTable(folder),
            self.history,
            StepScalars(folder.tensorboard, config.log_every, config.to_flags()),
            *(
                [Profiler(folder.tensorboard, *config.profile)]
                if config.profile
                else []
            ),
            *([Progress(plan.total_steps, plan.steps_per_epoch)] if verbose else []),
            *others,
            self.saving,
        ]

    def _monitors(self):
        """Callbacks that evaluate the encoder every few epochs."""
        dataset, folder = self.dataset, self.folder
        due = self.config.knn_every, self.plan.last_epoch
        monitors = []
        if dataset.labelled and self.config.knn_every:
            monitors.append(KNNMonitor(self.encoder, dataset.train, dataset.test, *due))
            if not self.first_step:
                self._measure_start(monitors[0])
        if not self.first_step or not folder.has_views():
            preview(dataset, folder.path, self.config, own_views=self.own_views)
        shown = dataset.test if dataset.labelled else dataset.pretrain
        monitors.append(
            Dashboard(
                folder.tensorboard,
                self.encoder,
                shown,
                dataset.class_names,
                folder.views,
                *due,
            )
        )
        return monitors

    def _measure_start(self, monitor):
        """The kNN accuracy that later ones are compared with: a line and a row."""
        untrained = monitor.measure()
        bank, queries = monitor.counts
        self.log(
            f"kNN of the {start_of(self.config)} encoder: {untrained:.2f} % of "
            f"{queries:,} test images, among {bank:,} labelled ones"
        )
        MetricsTable(self.folder).write(0, 0, {"knn_top1": untrained})

    def export(self):
        """Writes the encoder's files; returns the path of the first."""
        size = self.plan.image_size
        return save_all(
            build_encoder(self.model.backbone, size=size, any_size=True),
            self.folder.path,
            size,
            facts(
                self.config,
                self.dataset.name,
                int(self.model.step.numpy()),
                self.folder.last_metric("knn_top1"),
            ),
            log=self.log,
            decoder=decoder_of(self.config),
        )


def _as_read(config, dataset):
    """The settings with those that the data set's files were decoded with."""
    config = dataclasses.replace(config, channels=dataset.pretrain.channels)
    if dataset.decoder is None:
        return config
    return dataclasses.replace(config, **dataclasses.asdict(dataset.decoder))


def _decided(config, plan, find_network, strategy, log, load):
    """The settings without `auto`, the same on all workers."""
    chosen = {}
    if config.init:
        chosen["init_preprocessing"] = preprocessing_of(config, load)
    if config.precision == "auto":

        def build(precision):
            settings = dataclasses.replace(config, **chosen, precision=precision)
            return build_alone(settings, plan, find_network())

        bfloat16 = choose_precision(build, plan.image_size, log) == "mixed_bfloat16"
        votes = devices.gather(strategy, int(bfloat16))
        chosen["precision"] = "mixed_bfloat16" if all(votes) else "float32"
    return dataclasses.replace(config, **chosen)


def _worth_compiling(replicas):
    """Whether XLA helps the step.

    On a CPU it is no faster, and compiling takes longer; on several devices it fails
    (it cannot reach the other devices' variables).
    """
    return replicas == 1 and bool(tf.config.list_physical_devices("GPU"))


def _restore(model, folder, strategy):
    """Step to resume from: that of the newest checkpoint, the same on all workers."""
    step = checkpoints.restore(model, folder.checkpoints)
    steps = devices.gather(strategy, step)
    if len(steps) > 1:
        raise UsageError(
            f"The workers would resume from different steps, {steps}; --workdir must "
            "be one folder that all of them see."
        )
    return step
