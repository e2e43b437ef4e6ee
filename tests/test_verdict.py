"""The verdict of a report, on runs written by hand."""

import dataclasses
import math

import pytest

from ressl_keras.evaluation.verdict import Numbers, verdict

HEALTHY = Numbers(
    accuracies={"knn": {"top1": 62.10, "untrained_top1": 33.95}},
    test_images=2000,
    classes=10,
    knn=[(0, 33.95), (100, 60.0), (200, 61.9), (300, 62.10)],
    knn_images=2000,
    rank=64.25,
    most_rank=128,
    spread=0.72,
    teacher_entropy=2.5,
    references=4096,
    waiting=0.0012,
    steps=3000,
    images=8000,
    queue_size=4096,
)


def judged(**changes):
    """Findings by name, and the tips, of a healthy run with changes."""
    findings, tips = verdict(dataclasses.replace(HEALTHY, **changes))
    assert [finding.name for finding in findings] == ["learned", "collapsed", "input"]
    return {finding.name: finding for finding in findings}, tips


def knn(top1, untrained=33.95):
    return {"accuracies": {"knn": {"top1": top1, "untrained_top1": untrained}}}


def test_a_healthy_run_is_told_in_numbers_with_what_they_are_compared_with():
    found, (tip,) = judged()
    assert [each.answer for each in found.values()] == ["Yes", "No", "No"]
    assert {each.state for each in found.values()} == {"good"}
    # Two standard errors: 200 * sqrt((.621 * .379 + .3395 * .6605) / 2000).
    assert found["learned"].text == (
        "kNN is right for 62.10 % of 2,000 test images; the untrained encoder for "
        "33.95 % (+28.15 points; chance explains ±3.03). Guessing among 10 classes: "
        "10.00 %."
    )
    assert "64.2 directions of at most 128 (below 2" in found["collapsed"].text
    assert "0.72 of at most 1 (below 0.1" in found["collapsed"].text
    assert found["input"].text.startswith("0.1 % of the training time")
    assert "up to 10 % is fine" in found["input"].text
    assert tip.startswith("Nothing is wrong.")


@pytest.mark.parametrize(
    "top1, state, answer",
    [
        (33.95, "fair", "Not measurably"),
        (36.5, "fair", "Not measurably"),  # 2.55 points; chance explains 3.01
        (31.5, "fair", "Not measurably"),
        (38.0, "fair", "A little"),  # 4.05 of 3.03
        (41.0, "good", "Yes"),
        (28.0, "bad", "No, it got worse"),
    ],
)
def test_what_chance_explains_was_not_learned(top1, state, answer):
    found, _ = judged(**knn(top1))
    assert (found["learned"].state, found["learned"].answer) == (state, answer)


def test_on_few_images_the_same_gain_means_less():
    found, _ = judged(**knn(41.0), test_images=100)
    assert found["learned"].answer == "Not measurably"
    assert "100 test images" in found["learned"].text


def test_without_an_evaluation_the_monitor_speaks_from_its_start():
    found, _ = judged(accuracies={})
    assert found["learned"].answer == "Yes"
    assert "62.10 % of 2,000 test images" in found["learned"].text
    # Tables of earlier versions begin after the first epochs.
    found, _ = judged(accuracies={}, knn=HEALTHY.knn[1:])
    assert found["learned"].state == "unknown"


def test_a_run_from_other_weights_is_compared_with_its_start():
    found, _ = judged(start="starting")
    assert "the starting encoder for 33.95 %" in found["learned"].text


def test_without_labels_it_says_what_to_look_at():
    found, tips = judged(accuracies={}, knn=[], classes=None, test_images=None)
    assert found["learned"].answer == "Not measured"
    assert "neighbours" in found["learned"].text and not tips


@pytest.mark.parametrize(
    "rank, spread, answer",
    [
        (1.2, 0.5, "Yes"),
        (60.0, 0.04, "Yes"),
        (2.0, 0.1, "No"),
        (0.0, 0.0, "Yes"),
        (math.nan, math.nan, "Broken"),
        (None, None, "Not measured"),
    ],
)
def test_a_collapse_is_told_and_what_usually_helps(rank, spread, answer):
    found, tips = judged(rank=rank, spread=spread)
    assert found["collapsed"].answer == answer
    helps = {"Yes": "--teacher_temperature", "Broken": "lower --learning_rate"}
    assert helps.get(answer, "") in tips[0]
    assert (found["collapsed"].state == "bad") == (answer in helps)


@pytest.mark.parametrize(
    "waiting, answer", [(0.1, "No"), (0.101, "Yes"), (0.9, "Yes"), (None, None)]
)
def test_the_input_is_the_bottleneck_from_a_tenth_on(waiting, answer):
    found, tips = judged(waiting=waiting)
    assert found["input"].answer == (answer or "Not measured")
    assert any("For the input" in tip for tip in tips) == (answer == "Yes")


def test_a_relation_without_information_is_told():
    _, tips = judged(teacher_entropy=math.log(4096))
    assert "nearly uniform (8.32 of 8.32 nats)" in tips[0]
    _, tips = judged(teacher_entropy=0.01)
    assert "nearly one-hot" in tips[0]


def test_the_curve_says_whether_longer_is_better():
    rising = [(0, 34.0), (100, 40.0), (200, 50.0), (300, 60.0)]
    _, tips = judged(knn=rising)
    # Half of the run is step 150; the last one before is 100.
    assert tips[0].startswith("kNN rose by 20.00 points") and "more --epochs" in tips[0]
    fell = [(0, 34.0), (100, 60.0), (200, 66.0), (300, 60.0)]
    _, tips = judged(knn=fell)
    assert "best at step 200, 66.00 %, and fell to 60.00 %" in tips[0]
    within_noise = [(0, 34.0), (100, 60.0), (200, 61.5), (300, 60.0)]
    _, tips = judged(knn=within_noise)
    assert tips[0].startswith("Nothing is wrong.")


def test_a_curve_that_begins_late_says_nothing_of_its_first_half():
    late = [(200, 34.0), (250, 60.0), (300, 70.0)]
    _, tips = judged(knn=late)
    assert not any("kNN" in tip for tip in tips)


def test_a_queue_larger_than_the_data_set_is_named():
    _, tips = judged(images=1000)
    assert "queue of 4,096 embeddings holds some of the 1,000 images" in tips[0]


def test_few_steps_are_blamed_before_the_views():
    _, tips = judged(**knn(34.0), steps=310, knn=[])
    assert tips[0].startswith("310 steps are few")
    _, tips = judged(**knn(34.0), steps=31000, knn=[])
    assert "--augmentation" in tips[0]


def test_nothing_known_is_nothing_claimed():
    findings, tips = verdict(Numbers())
    assert {finding.state for finding in findings} == {"unknown"} and not tips
