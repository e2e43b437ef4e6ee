"""What the model says to requests from Python that it cannot meet."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from ressl_keras import InfoNCE, UsageError


class Alignment:
    """An objective that can be trained with, but not saved."""

    student_temperature = teacher_temperature = 0.1

    def __call__(self, student, teacher, positive, step):
        return 1 - positive


class Unregistered(Alignment):
    """It can be saved, but Keras does not know its name."""

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls()


class Picky(Unregistered):
    def __init__(self, needed):
        self.needed = needed

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def batches():
    images = tf.zeros([8, 8, 8, 3], tf.uint8)
    return tf.data.Dataset.from_tensors(images)


@pytest.mark.long
def test_a_summary_counts_each_weight_once_from_the_start():
    model, lines = tiny.build_model(), []
    model.summary(print_fn=lines.append)
    assert "teacher" in "\n".join(lines)
    # conv 108; batch norm 16; dense 4 x 16 + 16 and 16 x 6 + 6; twice; queue 20 x 6
    # and pointer; step. The metrics are variables of their own.
    networks = 2 * (108 + 16 + 80 + 102)
    assert model.count_params() == networks + 20 * 6 + 1 + 1
    model.fit(batches(), shuffle=False, verbose=0)
    model.summary(print_fn=lines.append)


@pytest.mark.parametrize(
    "asked",
    [
        lambda model: model.fit(batches(), validation_data=batches()),
        lambda model: model.fit(np.zeros([8, 8, 8, 3]), validation_split=0.5),
        lambda model: model.evaluate(batches()),
    ],
    ids=["data", "split", "evaluate"],
)
def test_validation_is_refused_before_any_step(asked):
    model = tiny.build_model()
    with pytest.raises(NotImplementedError, match=r"no validation loss.*KNNMonitor"):
        asked(model)
    assert model.step.numpy() == 0


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (0.1, "is float, which has no student_temperature"),
        ("ressl", "is str, which has no"),
    ],
    ids=["number", "name"],
)
def test_what_is_no_objective_is_refused(objective, message):
    with pytest.raises(TypeError, match=message):
        tiny.build_model(objective=objective)


@pytest.mark.long
def test_an_objective_without_a_configuration_trains_and_saves_weights(tmp_path):
    model = tiny.build_model(objective=Alignment())
    model.fit(batches(), shuffle=False, verbose=0)
    model.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(TypeError, match=r"no get_config and no from_config.*backbone"):
        model.save(tmp_path / "m.keras")


@pytest.mark.parametrize("objective", [Unregistered(), Picky(1)], ids=["name", "call"])
def test_an_objective_that_cannot_be_made_again_is_named(objective, tmp_path):
    name = type(objective).__name__
    path = tmp_path / "m.keras"
    tiny.build_model(objective=objective).save(path)
    custom = {name: Picky} if name == "Picky" else None
    with pytest.raises(UsageError, match=f"objective {name} cannot be made") as caught:
        keras.models.load_model(path, custom_objects=custom)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_custom_objects_name_an_objective(tmp_path):
    path = tmp_path / "m.keras"
    tiny.build_model(objective=Unregistered()).save(path)
    loaded = keras.models.load_model(
        path, custom_objects={"Unregistered": Unregistered}
    )
    assert isinstance(loaded.objective, Unregistered)
    tiny.build_model(objective=InfoNCE(0.3)).save(path)
    assert keras.models.load_model(path).objective.temperature == 0.3
