"""The settings of an evaluation, for the flags and for Python."""

import dataclasses

from ressl_keras.errors import UsageError
from ressl_keras.settings import Options, setting

PROTOCOLS = ("knn", "linear", "finetune", "neighbours")
PROBES = ("fast", "paper")
# Options that only one protocol reads.
_OF_PROBE = "probe", "probe_epochs", "probe_batch_size", "probe_learning_rate"
_OF_FINETUNE = (
    "finetune_epochs",
    "finetune_batch_size",
    "finetune_learning_rate",
    "early_stopping",
    "class_weights",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationOptions(Options):
    """What is evaluated, on which labels, and how."""

    label_fraction: float = setting(
        1.0,
        "Share of the training labels used, the same for every class: 0.01 and 0.1 in "
        "the semi-supervised protocol.",
        group="Data",
        first=True,
        above=0,
        high=1,
    )
    labels_per_class: int | None = setting(
        None, "Training labels used of every class.", group="Data", low=1, high=2**31
    )
    label_list: str | None = setting(
        None,
        "File that names the labelled training images, one a line, such as SimCLR's "
        "lists of 1 and 10 per cent of ImageNet.",
        group="Data",
        path=True,
    )
    protocol: tuple[str, ...] = setting(
        ("knn", "linear"),
        "Any of knn, linear, finetune, and neighbours, which draws a picture.",
        group="Protocol",
        first=True,
        choices=PROTOCOLS,
    )
    probe: str = setting(
        "fast",
        "Linear probe: fast, on features extracted once, in seconds; or paper, on "
        "random crops and flips for 100 epochs.",
        group="Protocol",
        first=True,
        choices=PROBES,
    )
    probe_epochs: int = setting(
        100, "Epochs of --probe=paper.", group="Protocol", low=1, high=1000000
    )
    probe_batch_size: int = setting(
        256, "Batch size of --probe=paper.", group="Protocol", low=1, high=2**20
    )
    probe_learning_rate: float = setting(
        0.3,
        "Learning rate of --probe=paper for a batch of 256, scaled with the batch.",
        group="Protocol",
        above=0,
    )
    finetune_epochs: int | None = setting(
        None,
        "Epochs of fine-tuning. Default: 10, or as many as make 1000 steps.",
        group="Protocol",
        low=1,
        high=1000000,
    )
    finetune_batch_size: int = setting(
        64, "Batch size of fine-tuning.", group="Protocol", low=1, high=2**20
    )
    finetune_learning_rate: float = setting(
        0.05,
        "Learning rate of fine-tuning for a batch of 64, scaled with the batch.",
        group="Protocol",
        above=0,
    )
    early_stopping: int | None = setting(
        None,
        "Stop fine-tuning after so many epochs without a better accuracy on a held-out "
        "tenth of the labelled training images, and take the best epoch.",
        group="Protocol",
        low=1,
        high=1000000,
    )
    class_weights: bool = setting(
        False,
        "Fine-tune with weights that make all classes count the same.",
        group="Protocol",
    )
    untrained: bool = setting(
        True,
        "Judge the same network untrained, too, which takes as long again.",
        group="Protocol",
    )
    save_classifier: bool = setting(
        False,
        "Keep what linear or finetune has learned: classifier.keras and a SavedModel "
        "that return class names and probabilities.",
        group="Output",
        first=True,
    )
    seed: int = setting(
        0,
        "Seed of the untrained encoder, the choice of labels, and all learning.",
        group="Protocol",
        low=0,
        high=2**31 - 1,
    )
    feature_cache: str | None = setting(
        None,
        "Folder that keeps extracted features for the next time.",
        group="Output",
        path=True,
    )

    def __post_init__(self):
        super().__post_init__()
        given = [
            f"--{name}"
            for name, value, default in (
                ("label_fraction", self.label_fraction, 1),
                ("labels_per_class", self.labels_per_class, None),
                ("label_list", self.label_list, None),
            )
            if value != default
        ]
        if len(given) > 1:
            raise UsageError(f"Give only one of {' and '.join(given)}.")
        learned = {"linear", "finetune"} & set(self.protocol)
        if self.save_classifier and len(learned) != 1:
            raise UsageError(
                "--save_classifier keeps one classifier: give --protocol with either "
                "linear or finetune."
            )

    def cautions(self):
        """Lines of text about options that have no effect beside the others."""
        unused = {}
        if "linear" not in self.protocol:
            unused |= dict.fromkeys(_OF_PROBE, "without --protocol=linear")
        elif self.probe != "paper":
            unused |= dict.fromkeys(_OF_PROBE[1:], "without --probe=paper")
        if "finetune" not in self.protocol:
            unused |= dict.fromkeys(_OF_FINETUNE, "without --protocol=finetune")
        return self.without_effect(unused)


def labels_used(values):
    """Which labels an evaluation learned from, in words; empty where from all.

    Args:
        values: what `evaluate` returns of a protocol, a dict.
    """
    if "label_list" in values:
        return f"{values['labels']:,} labels of {values['label_list']}"
    if "labels_per_class" in values:
        count = values["labels_per_class"]
        return f"{count:,} label{'s' if count > 1 else ''} of every class"
    if "label_fraction" in values:
        return f"{100 * values['label_fraction']:g} % of the labels"
    return ""
