"""The settings of a training run."""

import dataclasses

from ressl_keras.augmentations import NAMES, SETS, view_augmentations
from ressl_keras.errors import UsageError
from ressl_keras.image_options import ImageOptions
from ressl_keras.settings import setting

# Objectives by name, and the teacher's view of each unless another is given.
METHODS = {"ressl": "weak", "moco_v2": "strong"}
# Optimizers by name, and the defaults that follow from each.
OPTIMIZERS = {
    "sgd": {"learning_rate": 0.06, "weight_decay": 5e-4},
    "adamw": {"learning_rate": 0.001, "weight_decay": 0.05},
    "lamb": {"learning_rate": 0.001, "weight_decay": 0.05},
}
VIEWS = ("weak", "strong")
REFERENCES = ("queue", "batch")
BATCH_NORMS = ("per_replica", "shuffled", "synchronized")
# A SavedModel refuses encoded images with more pixels (192 MiB decoded) unless another
# limit is set.
MAX_PIXELS = 2**26
PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ImageOptions):
    """The settings of `pretrain`; the flags have the same names.

    Raises:
        UsageError: if a value is not allowed.

    Example:

    >>> config = Config(backbone="resnet10_small", width=16, epochs=20)
    >>> config.queue_size
    4096
    """

    image_size: int | None = setting(
        None,
        "Side of the views in pixels. Default: the size of the images if they have "
        "one and are kept in memory decoded, else 224.",
        group="Data",
        first=True,
        low=8,
        high=4096,
    )
    crops: tuple[int, ...] | None = setting(
        None,
        "Sides of the student's crops in pixels, such as 224,192,160,128,96; the loss "
        "is the mean over the crops. Default: one crop of --image_size.",
        group="Data",
        low=8,
        high=4096,
    )
    max_unreadable: float = setting(
        0.01,
        "Share of the images read so far that may be unreadable before the run stops. "
        "Each is replaced by the next readable image; ten are always allowed.",
        group="Data",
        resumable=True,
        low=0,
        high=1,
    )
    backbone: str = setting(
        "resnet18_small",
        "Encoder: resnet10_small, resnet18_small or resnet34_small for images of up "
        "to about 96 pixels, resnet10_micro for CPUs; resnet18, resnet34, resnet50, "
        "resnet101; or a keras.applications network such as MobileNetV3Small; "
        "vit_micro, vit_tiny or vit_small; or your own, NETWORK.keras or "
        "MODULE:FUNCTION.",
        group="Model",
        first=True,
    )
    width: int = setting(
        64, "Channels of the first stage of a small ResNet.", group="Model", low=1,
        high=4096,
    )  # fmt: skip
    init: str | None = setting(
        None,
        "Start from these weights: a run, an encoder, any .keras image model whose "
        "layers fit; or imagenet, for a keras.applications network.",
        group="Model",
    )
    init_preprocessing: str = setting(
        "auto",
        "What the network of --init expects to be done to images in 0-255, as "
        "keras.applications names it. own: what encoders of this package do. auto: as "
        "the file or the network says.",
        group="Model",
        choices=("auto", "own", "none", "tf", "torch", "caffe"),
    )
    patch_size: int | None = setting(
        None,
        "Side of a vision transformer's patches in pixels. Default: the largest of 4, "
        "8 and 16 that makes eight or more a side.",
        group="Model",
        low=1,
        high=256,
    )
    hidden_dim: int = setting(
        512, "Units of the projector's hidden layer.", group="Model", low=1, high=65536
    )
    embedding_dim: int = setting(
        128, "Dimension of the embeddings.", group="Model", low=1, high=65536
    )
    predictor_dim: int = setting(
        0,
        "Hidden units of the student's predictor (arXiv 2203.08717); 0: no predictor.",
        group="Model",
        low=0,
        high=65536,
    )
    batch_norm: str = setting(
        "per_replica",
        "Images that batch-norm statistics are taken over: those of one replica; the "
        "same, with the teacher's batch shuffled over the replicas; or the global "
        "batch.",
        group="Model",
        choices=BATCH_NORMS,
    )
    queue_size: int = setting(
        4096,
        "Queue size K: past teacher embeddings.",
        group="Method",
        first=True,
        low=1,
        high=2**24,
    )
    momentum: float = setting(
        0.99,
        "EMA momentum m of the teacher.",
        group="Method",
        first=True,
        low=0,
        high=1,
    )
    final_momentum: float | None = setting(
        None,
        "EMA momentum at the last step, reached along a half cosine, as in BYOL. "
        "Default: that of --momentum in all steps.",
        group="Method",
        low=0,
        high=1,
    )
    objective: str | None = setting(
        None,
        "Loss of your own in place of --method: MODULE:NAME of a function or an "
        "instance of a class.",
        group="Method",
    )
    method: str = setting(
        "ressl",
        "moco_v2 is the baseline: InfoNCE with the same queue, both views strong.",
        group="Method",
        choices=tuple(METHODS),
    )
    augmentation: str = setting(
        "photo",
        "Random operations of the views: photo; gray for radiographs and microscopy, "
        "without colour jitter of hue and saturation; or overhead, with turns and both "
        "flips. --preview shows them.",
        group="Augmentation",
        choices=tuple(SETS),
    )
    student_augmentation: tuple[str, ...] | None = setting(
        None,
        "What the student's view changes of the set, such as hue:0.05,solarize:0.2. "
        f"Parameters: {', '.join(NAMES)}.",
        group="Augmentation",
    )
    teacher_augmentation: tuple[str, ...] | None = setting(
        None,
        "The same for the teacher's view.",
        group="Augmentation",
    )
    teacher_view: str | None = setting(
        None,
        "Augmentation of the teacher's view. Default: weak for ressl, strong for "
        "moco_v2.",
        group="Augmentation",
        choices=VIEWS,
    )
    references: str = setting(
        "queue",
        "Embeddings that both encoders are compared with: the queue, or the teacher's "
        "embeddings of the other images in the batch.",
        group="Method",
        choices=REFERENCES,
    )
    student_temperature: float = setting(
        0.1,
        "Temperature of the student's softmax over the references.",
        group="Method",
        above=0,
        high=1000,
    )
    teacher_temperature: float = setting(
        0.04,
        "Temperature of the teacher's softmax; a lower one sharpens the target.",
        group="Method",
        above=0,
        high=1000,
    )
    info_nce_epochs: float = setting(
        0.0,
        "Epochs of InfoNCE before the relational loss (arXiv 2203.08717); they help "
        "short runs. 0 is the original method.",
        group="Method",
        low=0,
        high=1000000,
    )
    info_nce_temperature: float = setting(
        0.2,
        "Temperature of InfoNCE, also for moco_v2.",
        group="Method",
        above=0,
        high=1000,
    )
    epochs: int = setting(
        200,
        "Passes over the data set.",
        group="Training",
        first=True,
        resumable=True,
        low=1,
        high=1000000,
    )
    min_steps_per_epoch: int = setting(
        1,
        "Fewest steps of an epoch: an epoch of a small data set is as many passes as "
        "they need.",
        group="Training",
        low=1,
        high=1000000,
    )
    batch_size: int = setting(
        256,
        "Images per step, over all devices.",
        group="Training",
        first=True,
        low=1,
        high=1000000,
    )
    optimizer: str = setting(
        "sgd",
        "Optimizer; adamw is the usual one of vision transformers.",
        group="Training",
        choices=tuple(OPTIMIZERS),
    )
    sgd_momentum: float = setting(
        0.9, "Momentum of sgd.", group="Training", low=0, high=0.9999
    )
    adam_betas: tuple[float, ...] = setting(
        (0.9, 0.999),
        "Decay rates of the two averages of adamw and lamb.",
        group="Training",
        length=2,
        low=0,
        high=0.999999,
    )
    gradient_clip: float = setting(
        0.0,
        "Largest norm of the gradients of all weights together; 0: any.",
        group="Training",
        low=0,
        high=1000000,
    )
    learning_rate: float | None = setting(
        None,
        "Peak learning rate at batch size 256; scaled linearly with the batch size. "
        "Default: 0.06 for sgd, 0.001 for adamw and lamb.",
        group="Training",
        first=True,
        low=0,
        high=1000,
    )
    warmup_epochs: float = setting(
        5.0,
        "Epochs of linear learning-rate warm-up.",
        group="Training",
        low=0,
        high=1000000,
    )
    max_steps: int | None = setting(
        None,
        "Train this many steps where the epochs have more. The schedules of learning "
        "rate and momentum end there, too.",
        group="Training",
        resumable=True,
        low=1,
        high=10**9,
    )
    weight_decay: float | None = setting(
        None,
        "Weight decay of all weights but biases and scales of norms; for sgd L2, added "
        "to the gradient. Default: 0.0005 for sgd, 0.05 for adamw and lamb.",
        group="Training",
        low=0,
        high=10,
    )
    seed: int = setting(
        0,
        "Seed of weights, data order and augmentation.",
        group="Training",
        low=0,
        high=2**31 - 1,
    )
    precision: str = setting(
        "float32",
        "Dtype policy of the networks. auto: mixed_bfloat16 where the hardware "
        "computes it fast, else float32. Relations, queue and loss stay in float32.",
        group="Devices",
        first=True,
        choices=PRECISIONS,
    )
    jit_compile: bool | None = setting(
        None,
        "Compile the training step with XLA. Default: on a single GPU only.",
        group="Devices",
    )
    accumulate_steps: int = setting(
        1,
        "Parts of each replica's batch that the student learns from one after the "
        "other, to take less memory; one update a step all the same. Batch-norm "
        "statistics are those of a part.",
        group="Devices",
        low=1,
        high=4096,
    )
    steps_per_execution: int = setting(
        0,
        "Most steps per call of the compiled graph; more reduce Python overhead. The "
        "largest number up to it that divides the steps of an epoch is taken. 0: up "
        "to 16 on a GPU, 1 on a CPU.",
        group="Devices",
        resumable=True,
        low=0,
        high=100000,
    )
    knn_every: int = setting(
        5,
        "Epochs between kNN evaluations; 0: none.",
        group="Output",
        resumable=True,
        low=0,
        high=1000000,
    )
    log_every: int = setting(
        50,
        "Steps between points of TensorBoard's curves; 0: one per epoch.",
        group="Output",
        resumable=True,
        low=0,
        high=10**9,
    )
    checkpoint_every: int = setting(
        500,
        "Steps between checkpoints; 0: none by steps.",
        group="Output",
        resumable=True,
        low=0,
        high=10**9,
    )
    checkpoint_minutes: float = setting(
        0.0,
        "Minutes between checkpoints; 0: none by time. A run also saves at its end, "
        "and when it is told to stop.",
        group="Output",
        resumable=True,
        low=0,
        high=1000000,
    )
    keep_checkpoints: int = setting(
        2, "Checkpoints to keep.", group="Output", resumable=True, low=1, high=1000
    )
    profile: tuple[int, ...] | None = setting(
        None,
        "First and last step to profile for TensorBoard, such as 20,30, counted from "
        "where this process begins.",
        group="Output",
        resumable=True,
        low=1,
        high=10**9,
        length=2,
    )

    def __post_init__(self):
        super().__post_init__()
        if self.profile and self.profile[0] > self.profile[1]:
            first, last = self.profile
            raise UsageError(
                f"profile must be two ascending steps; got {first},{last}."
            )
        if self.queue_size < self.batch_size:
            raise UsageError(
                f"The queue of {self.queue_size} is smaller than the batch of "
                f"{self.batch_size}."
            )
        if self.references == "batch" and self.batch_size < 2:
            raise UsageError(
                "references=batch needs a batch_size of at least 2: an image is not a "
                "reference of itself."
            )
        self.check_parts()
        if self.accumulate_steps > 1 and self.batch_norm == "synchronized":
            raise UsageError(
                "batch_norm=synchronized takes statistics of the global batch, "
                "accumulate_steps those of a part; choose one of them."
            )
        for name, default in OPTIMIZERS[self.optimizer].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        self.view_augmentations()

    def check_parts(self, replicas=1):
        """Checks that `accumulate_steps` splits the batch of a replica.

        Args:
            replicas: number of replicas that share a batch.

        Raises:
            UsageError: if the parts would not be equal.
        """
        if self.batch_size // replicas % self.accumulate_steps:
            shared = f" over {replicas} replicas" if replicas > 1 else ""
            raise UsageError(
                f"accumulate_steps={self.accumulate_steps} does not divide the batch "
                f"of {self.batch_size}{shared} into equal parts."
            )

    @property
    def named_teacher_view(self):
        """The teacher's view: the one that is set, or the method's default."""
        return self.teacher_view or METHODS[self.method]

    def view_augmentations(self):
        """The teacher's and the student's `Augmentation`."""
        return view_augmentations(
            self.augmentation,
            self.named_teacher_view,
            self.student_augmentation,
            self.teacher_augmentation,
        )
