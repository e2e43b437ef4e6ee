"""From settings to the model: one way for training and for export."""

import contextlib
import dataclasses
import math

import keras

from ressl_keras.augmentation import bundle
from ressl_keras.augmentation.bundle import build_views
from ressl_keras.augmentation.layers import View
from ressl_keras.augmentation.statistics import statistics
from ressl_keras.data.decoding import Decoder
from ressl_keras.errors import UsageError
from ressl_keras.method.networks import (
    build_backbone,
    build_projector,
    synchronize,
)
from ressl_keras.method.objectives import as_objective, build_objective
from ressl_keras.method.optimizers import (
    CosineMomentum,
    build_optimizer,
    warmup_cosine,
)
from ressl_keras.method.ressl import ReSSL
from ressl_keras.training import backbones, initial
from ressl_keras.training.heads import head_widths
from ressl_keras.training.own import imported


@dataclasses.dataclass(frozen=True)
class Plan:
    """What follows from the settings and the data set.

    Attributes:
        image_size: side of the views in pixels.
        same_size: whether the images have one size, so that the training step can make
            the whole of the views.
        channels: channels of the images.
        passes_per_epoch: passes over the images in an epoch.
        steps_per_epoch: steps of an epoch.
        total_steps: steps of the whole run.
    """

    image_size: int
    same_size: bool = True
    channels: int = 3
    passes_per_epoch: int = 1
    steps_per_epoch: int = 1
    total_steps: int = 1

    @property
    def last_epoch(self):
        """Number of the last epoch, from 1; it may be cut short."""
        return -(-self.total_steps // self.steps_per_epoch)


def make_plan(config, images, replicas=1):
    """The plan of a run.

    Args:
        config: `Config`.
        images: set of images to learn from.
        replicas: number of replicas that share a batch.

    Returns:
        A `Plan`.

    Raises:
        UsageError: if the sizes of data set, batch and replicas do not fit together, or
            XLA shall compile a step of several replicas.
    """
    batch_size, count = config.batch_size, len(images)
    if batch_size > count:
        raise UsageError(
            f"The batch of {batch_size} is larger than the data set of {count}; give "
            "a smaller batch_size."
        )
    if batch_size % replicas:
        raise UsageError(
            f"The batch of {batch_size} cannot be split over {replicas} replicas in "
            "equal parts."
        )
    if config.jit_compile and replicas > 1:
        raise UsageError(
            f"XLA cannot compile a step of {replicas} replicas; leave out "
            "--jit_compile, or train on one device with --strategy=one_device."
        )
    config.check_parts(replicas)
    batches = count // batch_size
    passes = -(-config.min_steps_per_epoch // batches)
    steps_per_epoch = passes * batches
    return Plan(
        image_size=config.image_size or images.common_size,
        same_size=images.same_size,
        channels=images.channels,
        passes_per_epoch=passes,
        steps_per_epoch=steps_per_epoch,
        total_steps=min(config.epochs * steps_per_epoch, config.max_steps or math.inf),
    )


def build_model(
    config,
    plan,
    jit_compile=False,
    own_views=(None, None),
    network=None,
    objective=None,
):
    """The model of a run, compiled, its optimizer built.

    Args:
        config: `Config`.
        plan: `Plan`.
        jit_compile: whether to compile the step with XLA where the settings leave it
            open.
        own_views: the teacher's view and the student's view or views, in place of
            those of the settings; None takes theirs.
        network: result of `backbones.own_network`; None builds the network that the
            settings name.
        objective: in place of the one that the settings describe, or None.

    Returns:
        A `ReSSL`.

    Raises:
        UsageError: if the backbone is unknown or does not take images of this size.
    """
    with _dtype_policy(config.precision):
        weak, strong = choose_views(config, plan, own_views)
        backbone = _backbone(config, plan, network)
        projector, predictor = head_widths(config, backbone.output_shape[-1])
        model = ReSSL(
            backbone,
            build_projector(*projector),
            weak,
            strong,
            queue_size=config.queue_size,
            momentum=_momentum(config, plan),
            objective=_objective(config, plan, objective),
            references=config.references,
            predictor=predictor and build_projector(*predictor),
            shuffle_teacher=config.batch_norm == "shuffled",
            seed=config.seed,
            accumulate_steps=config.accumulate_steps,
        )
        compile_model(model, config, plan, jit_compile)
    return model


def _momentum(config, plan):
    """A number, or a schedule where the settings name a last momentum."""
    if config.final_momentum is None:
        return config.momentum
    return CosineMomentum(config.momentum, config.final_momentum, plan.total_steps)


def _objective(config, plan, own=None):
    """The objective: given, in a module of the user's, or that of the method."""
    if own is None and config.objective:
        own = imported(config.objective, "objective")
    if own is not None:
        return as_objective(own)
    return build_objective(
        config.method,
        config.student_temperature,
        config.teacher_temperature,
        config.info_nce_temperature,
        info_nce_steps=round(config.info_nce_epochs * plan.steps_per_epoch),
    )


def network_size(config, image_size):
    """Side of the images that the network takes; None where crops have other sizes."""
    return image_size if set(config.crops or ()) <= {image_size} else None


def build_alone(config, plan, network):
    """The backbone that `build_model` would build, without the rest of the model."""
    with _dtype_policy(config.precision):
        return _backbone(config, plan, network)


def _backbone(config, plan, network):
    """The backbone, named by the settings or given."""
    size = network_size(config, plan.image_size)
    synchronized = config.batch_norm == "synchronized"
    mode = config.init_preprocessing if config.init else "own"
    if network is None:
        backbone = build_backbone(
            config.backbone,
            (size, size, plan.channels),
            config.width,
            synchronized,
            config.patch_size,
            with_preprocessing=mode == "none",
        )
    else:
        network = backbones.in_policy(network, size, plan.channels)
        backbone = synchronize(network) if synchronized else network
    if mode != "own" and plan.channels != 3:
        raise UsageError(
            f"--init_preprocessing={mode} is for images of three channels, not "
            f"{plan.channels}."
        )
    scaling = initial.scaling(mode)
    if scaling is None:
        return backbone
    images = keras.Input(backbone.input_shape[1:])
    return keras.Model(images, backbone(scaling(images)), name=backbone.name)


def compile_model(model, config, plan, jit_compile=False):
    """Compiles a model with the optimizer and schedule of a run."""
    if config.jit_compile is not None:
        jit_compile = config.jit_compile
    warmup = round(config.warmup_epochs * plan.steps_per_epoch)
    schedule = warmup_cosine(
        config.learning_rate * config.batch_size / 256,
        plan.total_steps,
        min(warmup, plan.total_steps - 1),
    )
    optimizer = build_optimizer(
        config.optimizer,
        schedule,
        config.weight_decay,
        config.sgd_momentum,
        config.adam_betas,
        config.gradient_clip,
    )
    model.compile(optimizer, jit_compile=jit_compile)
    model.optimizer.build(model.trainable_variables)


def build_monitored_encoder(model, config, plan):
    """An encoder from images in 0-255 that shares the weights in training.

    Args:
        model: result of `build_model`.
        config: `Config`.
        plan: `Plan`.

    Returns:
        A `keras.Sequential`; at any moment it is the encoder of that moment.
    """
    shape = plan.image_size, plan.image_size, plan.channels
    view = View([], *statistics(plan.channels))
    with _dtype_policy(config.precision):
        return keras.Sequential([keras.Input(shape), view, model.backbone])


def decoder_of(config):
    """How encoded images become pixels."""
    return Decoder(config.exif_orientation, config.value_range, config.channels)


def choose_views(config, plan, own_views=(None, None)):
    """The teacher's view and a list of the student's.

    Args:
        config: `Config`.
        plan: `Plan`.
        own_views: as in `build_model`.
    """
    teacher, students = build_views(
        plan.image_size,
        config.crops,
        config.view_augmentations(),
        plan.same_size,
        plan.channels,
    )
    own_teacher, own_students = own_views
    if own_students is not None:
        students = bundle.listed(own_students)
    return own_teacher or teacher, students


@contextlib.contextmanager
def _dtype_policy(name):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
