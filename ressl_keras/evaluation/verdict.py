"""What a run's numbers mean: did it learn, did it collapse, what to try next."""

import dataclasses
import math

from ressl_keras.evaluation import collapse

# Above this share of the time the training waits too long for its images.
MOST_WAITING = 0.1
# A run with fewer steps has hardly begun.
_FEW_STEPS = 1000

_JUDGES = {
    "knn": "kNN",
    "linear": "The linear classifier",
    "finetune": "The fine-tuned network",
}


def start_of(config):
    """What the encoder of a run was before its training, in a word.

    Args:
        config: `Config`, or None where there is none.
    """
    return "starting" if config and config.init else "untrained"


@dataclasses.dataclass(frozen=True)
class Numbers:
    """What is known of a run; what is not known is None.

    Attributes:
        accuracies: what `protocols.evaluate` returned; may be empty.
        test_images: number of images that the accuracies are of.
        classes: number of classes.
        knn: list of (step, kNN accuracy in per cent) during the run; step 0 is the
            encoder before the training.
        knn_images: number of test images of `knn`.
        rank: effective rank of the features or embeddings.
        most_rank: the largest rank possible.
        spread: `collapse.relative_std` of them.
        teacher_entropy: of the teacher's relation, in nats, at the end.
        references: number of references of a relation.
        waiting: share of the time spent waiting for images, in 0-1.
        steps: training steps.
        images: number of images learned from.
        queue_size: size of the queue; None where the loss does not use it.
        start: what the encoder is compared with, such as `untrained`.
    """

    accuracies: dict = dataclasses.field(default_factory=dict)
    test_images: int | None = None
    classes: int | None = None
    knn: list = dataclasses.field(default_factory=list)
    knn_images: int | None = None
    rank: float | None = None
    most_rank: int | None = None
    spread: float | None = None
    teacher_entropy: float | None = None
    references: int | None = None
    waiting: float | None = None
    steps: int | None = None
    images: int | None = None
    queue_size: int | None = None
    start: str = "untrained"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One answer.

    Attributes:
        name: what was asked, such as `learned`.
        question: the question in words.
        state: `good`, `bad`, `fair` (in between) or `unknown`.
        answer: one word or two.
        text: the numbers, and what they are compared with.
    """

    name: str
    question: str
    state: str
    answer: str
    text: str


def verdict(numbers):
    """The answers to what a reader asks first.

    Args:
        numbers: `Numbers`.

    Returns:
        Tuple of three `Finding` and of a list of sentences, what to try next, the most
        urgent first.
    """
    findings = [_learned(numbers), _collapsed(numbers), _input(numbers)]
    return findings, _next(numbers, findings)


def accuracy_error(percent, count):
    """Standard error of an accuracy, in percentage points.

    Args:
        percent: the accuracy.
        count: number of images that it is of.
    """
    share = min(max(percent / 100, 0), 1)
    return 100 * math.sqrt(share * (1 - share) / count)


def _uncertainty(one, other, count):
    """Two standard errors of the difference of two accuracies, in points."""
    return 2 * math.hypot(accuracy_error(one, count), accuracy_error(other, count))


def _pair(numbers):
    """The accuracy that tells most: (judge, after, before, test images), or None."""
    for protocol, judge in _JUDGES.items():
        values = numbers.accuracies.get(protocol, {})
        if "top1" in values and "untrained_top1" in values and numbers.test_images:
            after, before = values["top1"], values["untrained_top1"]
            return judge, after, before, numbers.test_images
    if len(numbers.knn) > 1 and numbers.knn[0][0] == 0 and numbers.knn_images:
        return "kNN", numbers.knn[-1][1], numbers.knn[0][1], numbers.knn_images
    return None


def _learned(numbers):
    question, pair = "Did it learn?", _pair(numbers)
    if numbers.classes == 1:
        text = "There is one class: every answer is right."
        return Finding("learned", question, "unknown", "Not measured", text)
    if pair is None:
        text = (
            "There is no accuracy beside that of the encoder before the training. "
            "With labels ressl-evaluate measures both; without, the nearest "
            "neighbours show what was learned."
        )
        return Finding("learned", question, "unknown", "Not measured", text)
    judge, after, before, count = pair
    gain, doubt = after - before, _uncertainty(after, before, count)
    state, answer = "fair", "Not measurably"
    if gain > doubt:
        state, answer = ("good", "Yes") if gain > 2 * doubt else ("fair", "A little")
    elif gain < -doubt:
        state, answer = "bad", "No, it got worse"
    text = (
        f"{judge} is right for {after:.2f} % of {count:,} test images; the "
        f"{numbers.start} encoder for {before:.2f} % ({gain:+.2f} points; chance "
        f"explains ±{doubt:.2f})."
    )
    if numbers.classes:
        text += f" Guessing among {numbers.classes} classes: "
        text += f"{100 / numbers.classes:.2f} %."
    return Finding("learned", question, state, answer, text)


def _collapsed(numbers):
    question = "Did it collapse?"
    if numbers.rank is None or numbers.spread is None:
        text = "Neither features nor the embeddings of the run are at hand."
        return Finding("collapsed", question, "unknown", "Not measured", text)
    if not (math.isfinite(numbers.rank) and math.isfinite(numbers.spread)):
        text = "Some features are not finite numbers: the encoder is broken."
        return Finding("collapsed", question, "bad", "Broken", text)
    most = f" of at most {numbers.most_rank:,}" if numbers.most_rank else ""
    text = (
        f"The features use {numbers.rank:.1f} directions{most} (below "
        f"{collapse.LEAST_RANK} is a collapse); their spread is {numbers.spread:.2f} "
        f"of at most 1 (below {collapse.LEAST_STD} is one)."
    )
    if collapse.has_collapsed(numbers.rank, numbers.spread):
        return Finding("collapsed", question, "bad", "Yes", text)
    return Finding("collapsed", question, "good", "No", text)


def _input(numbers):
    question = "Is the input the bottleneck?"
    if numbers.waiting is None:
        text = "The time spent waiting for images was not measured."
        return Finding("input", question, "unknown", "Not measured", text)
    text = (
        f"{100 * numbers.waiting:.1f} % of the training time was spent waiting for "
        f"images; up to {100 * MOST_WAITING:.0f} % is fine."
    )
    if numbers.waiting > MOST_WAITING:
        return Finding("input", question, "bad", "Yes", text)
    return Finding("input", question, "good", "No", text)


def _next(numbers, findings):
    learned, collapsed, waiting = findings
    tips = []
    if collapsed.answer == "Broken":
        tips.append(
            "A lower --learning_rate, more --warmup_epochs, or "
            "--precision=mixed_bfloat16 in place of mixed_float16."
        )
    elif collapsed.state != "unknown":
        tips += collapse.warnings(
            numbers.rank,
            numbers.spread,
            numbers.teacher_entropy,
            numbers.references,
        )
    if waiting.state == "bad":
        tips.append(
            "For the input: more processor cores, images stored near the size that "
            "they are used at, or ressl-pack where the disk is slow at opening files."
        )
    tips += _about_the_curve(numbers)
    if numbers.queue_size and numbers.images and numbers.queue_size > numbers.images:
        tips.append(
            f"The queue of {numbers.queue_size:,} embeddings holds some of the "
            f"{numbers.images:,} images several times: a smaller --queue_size."
        )
    if learned.state in ("fair", "bad") and numbers.steps and not tips:
        if numbers.steps < _FEW_STEPS:
            tips.append(
                f"{numbers.steps:,} steps are few; a good encoder takes tens of "
                "thousands: more --epochs."
            )
        else:
            tips.append(
                "The views may be too easy or may hide the subject: look at What it "
                "saw, and at --augmentation and its parameters."
            )
    if not tips and learned.state == "good":
        tips.append(
            "Nothing is wrong. One seed says little about small differences: "
            "ressl-compare repeats a recipe with several."
        )
    return tips


def _about_the_curve(numbers):
    """Whether longer would have been better, or shorter."""
    knn, count = numbers.knn, numbers.knn_images
    if len(knn) < 3 or not count:
        return []
    last_step, last = knn[-1]
    best_step, best = max(knn, key=lambda point: point[1])
    if best - last > _uncertainty(best, last, count):
        return [
            f"kNN was best at step {best_step:,}, {best:.2f} %, and fell to "
            f"{last:.2f} %: a lower --learning_rate or fewer --epochs."
        ]
    first_half = [top1 for step, top1 in knn if step <= last_step / 2]
    if not first_half:
        return []
    rise = last - first_half[-1]
    if rise > _uncertainty(last, first_half[-1], count):
        return [
            f"kNN rose by {rise:.2f} points in the second half of the run: more "
            "--epochs are likely to help. The command with a larger number goes on "
            "from the last step."
        ]
    return []
