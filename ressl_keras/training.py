"""A run: from a data set and a work directory to an encoder."""

import contextlib
import functools
import itertools
import math
import os
import tempfile

import keras
import tensorflow as tf

from ressl_keras import (
    checkpoints,
    distribution,
    encoders,
    export,
    objectives,
    pictures,
    views,
)
from ressl_keras.backbones import build_networks
from ressl_keras.callbacks import (
    METRICS_FILE,
    ContinuedEpoch,
    KNNMonitor,
    MetricsTable,
    Signals,
    StopOnNaN,
    Throughput,
)
from ressl_keras.dashboard import Dashboard
from ressl_keras.data import StreamedImages, Waiting, training_batches
from ressl_keras.errors import UsageError
from ressl_keras.model import ReSSL
from ressl_keras.optimizers import SGD, warmup_cosine
from ressl_keras.progress import Progress, overview

TENSORBOARD_FOLDER = "tensorboard"


def pretrain(
    dataset,
    workdir,
    *,
    method="ressl",
    backbone="resnet18_small",
    width=64,
    image_size=None,
    crops=None,
    teacher_view=None,
    hidden_dim=512,
    embedding_dim=128,
    predictor_dim=0,
    references="queue",
    queue_size=4096,
    momentum=0.99,
    student_temperature=0.1,
    teacher_temperature=0.04,
    info_nce_epochs=0,
    info_nce_temperature=0.2,
    epochs=200,
    max_steps=None,
    batch_size=256,
    learning_rate=0.06,
    weight_decay=5e-4,
    warmup_epochs=5,
    knn_every=5,
    checkpoint_every=500,
    keep_checkpoints=2,
    steps_per_execution=1,
    profile=None,
    batch_norm="per_replica",
    precision="float32",
    jit_compile=None,
    seed=0,
    strategy=None,
    verbose=True,
    progress=print,
):
    """Pretrains an encoder, or goes on where an interrupted run of the same stopped.

    Args:
        dataset: `data.Dataset`.
        workdir: folder of the run's files; made if absent.
        method: `ressl` or `moco_v2`, the baseline of InfoNCE.
        backbone: name for `build_backbone`.
        width: channels of the first stage, for the small ResNets.
        image_size: side of the views in pixels; None takes the images' own, or 224
            where they have several.
        crops: sides of the student's views in pixels, whose losses are averaged
            (multi-crop); by default one of `image_size`.
        teacher_view: augmentation of the teacher's images, `weak` or `strong`; by
            default weak for ReSSL and strong for MoCo v2.
        hidden_dim: width of the projector's hidden layer.
        embedding_dim: length of the embeddings.
        predictor_dim: width of the hidden layer of a predictor that only the student
            has (arXiv 2203.08717); 0 for none.
        references: what embeddings are compared with, `queue` or, to do without one,
            the other images of the `batch`.
        queue_size: embeddings remembered.
        momentum: share of the old teacher kept at each step.
        student_temperature: temperature of the student's relation.
        teacher_temperature: temperature of the teacher's.
        info_nce_epochs: epochs of InfoNCE at the start; 0 is the original method.
        info_nce_temperature: temperature of InfoNCE.
        epochs: passes over the data set.
        max_steps: stop after so many steps, if that is sooner; the learning rate
            then decays over those.
        batch_size: images a step.
        learning_rate: peak for a batch of 256; scaled with the batch size.
        weight_decay: added to the gradient, biases and batch-norm scales aside.
        warmup_epochs: epochs of linear warm-up of the learning rate.
        knn_every: epochs between two looks at the neighbours, where there are labels;
            0 never looks.
        checkpoint_every: steps between two checkpoints.
        keep_checkpoints: checkpoints kept.
        steps_per_execution: steps run by one call of the graph; more cost less of
            Python's time, and the run looks up (for signals, checkpoints, progress)
            only after each call.
        profile: pair of the first and the last step of this process to profile for
            TensorBoard, or None.
        batch_norm: what a batch norm takes its statistics from: the images of its
            replica, `per_replica`; the same, but with the teacher's batch shuffled
            over the replicas, `shuffled`, as the reference does; or the global batch,
            `synchronized`.
        precision: Keras dtype policy of the networks: `float32`, `mixed_bfloat16` or
            `mixed_float16`. Relations, queue and loss stay in float32.
        jit_compile: whether to compile the step with XLA; None does so on one GPU.
        seed: integer seed of weights, order and views.
        strategy: `tf.distribute.Strategy` to compute with; None takes the current one.
        verbose: whether to show how far the training is.
        progress: called with a line of text now and then.

    Returns:
        Path of the encoder's file. Of several workers the chief alone writes it.

    Raises:
        UsageError: if something that was asked for is impossible; before any training.
        checkpoints.Stopped: if a signal asked the run to stop; its state is saved.
    """
    strategy = strategy or tf.distribute.get_strategy()
    chief = distribution.is_chief(strategy)
    images = dataset.pretrain
    _check_choices(
        method=(method, tuple(objectives.METHODS)),
        teacher_view=(teacher_view, ("weak", "strong", None)),
        references=(references, ("queue", "batch")),
        batch_norm=(batch_norm, ("per_replica", "shuffled", "synchronized")),
    )
    _check_sizes(len(images), batch_size, queue_size, crops, epochs, strategy)
    image_size = image_size or _own_size(images)
    steps_per_epoch = len(images) // batch_size
    total_steps = min(epochs * steps_per_epoch, max_steps or math.inf)
    prepare_workdir(workdir)

    keras.utils.set_random_seed(seed)
    with strategy.scope(), _dtype_policy(precision):
        seen_by_teacher, seen_by_student = _device_views(
            images.same_size,
            image_size,
            crops,
            teacher_view or objectives.METHODS[method],
        )
        model = ReSSL(
            **build_networks(
                backbone,
                # Crops of several sizes need a network that takes any.
                image_size if set(crops or ()) <= {image_size} else None,
                width,
                hidden_dim,
                embedding_dim,
                predictor_dim,
                synchronized=batch_norm == "synchronized",
            ),
            teacher_view=seen_by_teacher,
            student_view=seen_by_student,
            queue_size=queue_size,
            momentum=momentum,
            objective=objectives.build_objective(
                method,
                student_temperature,
                teacher_temperature,
                info_nce_temperature,
                info_nce_steps=round(info_nce_epochs * steps_per_epoch),
            ),
            references=references,
            shuffle_teacher=batch_norm == "shuffled",
            seed=seed,
        )
        peak = learning_rate * batch_size / 256
        warmup_steps = min(round(warmup_epochs * steps_per_epoch), total_steps - 1)
        model.compile(
            SGD(warmup_cosine(peak, total_steps, warmup_steps), l2=weight_decay),
            jit_compile=_worth_compiling(strategy)
            if jit_compile is None
            else jit_compile,
            steps_per_execution=steps_per_execution,
        )
        model.optimizer.build(model.trainable_variables)
        # Shares the weights in training, so it is always the encoder of the moment.
        encoder = keras.Sequential(
            [keras.Input((image_size, image_size, 3)), views.View([]), model.backbone]
        )

    folder = os.path.join(workdir, "checkpoints")
    first_step = _restore(model, folder, strategy)
    progress(
        overview(
            dataset,
            image_size,
            model,
            backbone,
            total_steps,
            steps_per_epoch,
            batch_size,
        )
    )
    if first_step:
        progress(f"Going on at step {first_step} of {total_steps}.")
    segments = _segments(first_step, total_steps, steps_per_epoch)
    _check_executions(segments, steps_per_epoch, steps_per_execution)
    # Several devices fetch ahead of the steps, and would wait without harm.
    one_device = strategy.num_replicas_in_sync == 1
    waiting = Waiting() if one_device and Waiting.possible() else None
    callbacks = [StopOnNaN(), Throughput(batch_size, waiting)]
    if first_step % steps_per_epoch:
        callbacks.append(ContinuedEpoch(model.metrics))
    if chief:
        picture = os.path.join(workdir, pictures.VIEWS_FILE)
        if not (first_step and os.path.exists(picture)):
            preview(dataset, workdir, method, image_size, crops, teacher_view, seed)
        callbacks += [
            Signals(
                batch_size,
                relational=not isinstance(model.objective, objectives.InfoNCE),
                warn=progress,
            ),
            *_looks_at(
                encoder,
                dataset,
                workdir,
                picture,
                knn_every,
                last_epoch=-(-total_steps // steps_per_epoch),
                progress=None if first_step else progress,
            ),
            MetricsTable(os.path.join(workdir, METRICS_FILE)),
            keras.callbacks.TensorBoard(
                os.path.join(workdir, TENSORBOARD_FOLDER),
                write_graph=False,
                profile_batch=profile or 0,
            ),
            *([Progress(total_steps, steps_per_epoch)] if verbose else []),
            checkpoints.Checkpoints(
                folder, checkpoint_every, keep_checkpoints, steps_per_epoch
            ),
        ]

    def batches(first, last, worker, workers):
        made = training_batches(
            images,
            batch_size,
            seed,
            first,
            last,
            image_size,
            worker,
            workers,
            crops,
        )
        return waiting.watch(made) if waiting else made

    for first, last in segments:
        steps = min(steps_per_epoch, last - first)
        epoch = first // steps_per_epoch
        distribution.fit(
            model,
            functools.partial(batches, first, last),
            strategy=strategy,
            initial_epoch=epoch,
            epochs=epoch + (last - first) // steps,
            steps_per_epoch=steps,
            callbacks=callbacks,
        )
    if not chief:
        return os.path.join(workdir, encoders.ENCODER_FILE)
    description = {
        "method": method,
        "backbone": backbone,
        "dataset": dataset.name,
        "steps": total_steps,
        "batch_size": batch_size,
        "knn_top1": MetricsTable.last(os.path.join(workdir, METRICS_FILE), "knn_top1"),
    }
    return export.save_all(
        model.backbone, workdir, image_size, description, progress=progress
    )


def _check_choices(**choices):
    for name, (value, known) in choices.items():
        if value not in known:
            known = " or ".join(filter(None, known))
            raise UsageError(f"{name} is {known}; got '{value}'.")


def _check_sizes(images, batch_size, queue_size, crops, epochs, strategy):
    replicas = strategy.num_replicas_in_sync
    if epochs < 1 or batch_size < 1:
        raise UsageError(f"Nothing to do: epochs={epochs}, batch_size={batch_size}.")
    if batch_size > images:
        raise UsageError(
            f"The batch of {batch_size} is larger than the data set of {images}; give "
            "a smaller batch_size."
        )
    if batch_size % replicas:
        raise UsageError(
            f"The batch of {batch_size} cannot be shared out to {replicas} replicas "
            "in equal parts."
        )
    if min(crops or [1]) < 1:
        raise UsageError(f"Crops need a positive size; got {crops}.")
    if queue_size < batch_size:
        raise UsageError(
            f"The queue of {queue_size} is smaller than the batch of {batch_size}."
        )


def _worth_compiling(strategy):
    """Whether XLA helps the step.

    On a CPU it is no faster, and compiling takes longer; on several devices it fails
    (it cannot reach the other devices' variables).
    """
    one_device = strategy.num_replicas_in_sync == 1
    return one_device and bool(tf.config.list_physical_devices("GPU"))


def _restore(model, folder, strategy):
    """Step to go on from: that of the newest checkpoint, the same on all workers."""
    step = checkpoints.restore(model, folder)
    steps = distribution.agree(strategy, step)
    if len(steps) > 1:
        raise UsageError(
            f"The workers would go on from different steps, {steps}; --workdir must be "
            "one folder that all of them see."
        )
    return step


def _looks_at(encoder, dataset, workdir, picture, every, last_epoch, progress):
    """Callbacks that look at the encoder every few epochs.

    With `progress` the first, the neighbours, is told of at once.
    """
    looks = []
    if dataset.labelled and every:
        looks.append(
            KNNMonitor(encoder, dataset.train, dataset.test, every, last_epoch)
        )
        if progress:
            progress(f"kNN of the untrained encoder: {looks[0].measure():.2f} %")
    shown = dataset.test if dataset.labelled else dataset.pretrain
    if not isinstance(shown, StreamedImages):
        looks.append(
            Dashboard(
                os.path.join(workdir, TENSORBOARD_FOLDER),
                encoder,
                shown,
                dataset.class_names,
                picture,
                every,
                last_epoch,
            )
        )
    return looks


def _check_executions(segments, steps_per_epoch, steps_per_execution):
    """A part of an epoch is fitted in calls of so many steps, with none left over."""
    for first, last in segments:
        steps = min(steps_per_epoch, last - first)
        if steps_per_execution < 1 or steps % steps_per_execution:
            below = range(1, min(steps, max(steps_per_execution, 1)) + 1)
            fitting = max(count for count in below if steps % count == 0)
            raise UsageError(
                f"steps_per_execution={steps_per_execution} does not divide the "
                f"{steps} steps from step {first} to the end of the epoch or run; "
                f"{fitting} does."
            )


def preview(
    dataset,
    workdir,
    method="ressl",
    image_size=None,
    crops=None,
    teacher_view=None,
    seed=0,
    count=8,
):
    """Draws `views.png`: images beside the views that the first step makes of them.

    Args:
        dataset: `data.Dataset`.
        workdir: folder to write into.
        method: as in `pretrain`, and so the rest.
        image_size: side of the views in pixels.
        crops: sides of the student's views in pixels.
        teacher_view: augmentation of the teacher's images.
        seed: the run's seed.
        count: number of images.

    Returns:
        Path of the picture.
    """
    images, size = dataset.pretrain, image_size or _own_size(dataset.pretrain)
    teacher_view = teacher_view or objectives.METHODS[method]
    teacher, students = _device_views(images.same_size, size, crops, teacher_view)
    originals, viewed = pictures.first_views(
        images, teacher, students, seed, size, crops, count
    )
    names = [teacher_view] + ["strong"] * len(students)
    path = os.path.join(workdir, pictures.VIEWS_FILE)
    pictures.save(pictures.views_grid(originals, viewed, names), path)
    return path


def _own_size(images):
    """Side of the views in pixels where none is asked for."""
    return images.size[0] if images.same_size else 224


@contextlib.contextmanager
def _dtype_policy(name):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def prepare_workdir(workdir):
    """Makes the work directory and sees that it can be written.

    Raises:
        UsageError: if it cannot.
    """
    try:
        os.makedirs(workdir, exist_ok=True)
        # With a name of its own: workers look at one folder at the same time.
        tempfile.TemporaryFile(dir=workdir, prefix=".writable-").close()
    except OSError as error:
        raise UsageError(
            f"The work directory {workdir} cannot be written: {error.strerror}."
        ) from error


def _device_views(same_size, image_size, crops, teacher_view):
    """What is left of the views after reading: all, or all but the crops."""
    moves = views.crops_and_flips(image_size, crops)
    teacher, *student = [[move] if same_size else [] for move in moves]
    if teacher_view == "strong":
        teacher += views.photometric_operations()
    return views.View(teacher), [
        views.View([*operations, *views.photometric_operations()])
        for operations in student
    ]


def _segments(first, last, steps_per_epoch):
    """Splits a range of steps into the rest of an epoch, whole epochs, and a part.

    `fit` counts the same number of steps in each epoch of a call.
    """
    whole_first = min(-(-first // steps_per_epoch) * steps_per_epoch, last)
    whole_last = max(last // steps_per_epoch * steps_per_epoch, whole_first)
    borders = [first, whole_first, whole_last, last]
    return [(a, b) for a, b in itertools.pairwise(borders) if a < b]
