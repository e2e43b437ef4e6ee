"""The workaround for Keras' cache, and whether Keras still needs it."""

import keras
import tiny

from ressl_keras.training.saving_cache import keep_saving_cache


def optimizers_made(save):
    """How many optimizers come into being while something is saved."""
    made, init = [], keras.optimizers.Optimizer.__init__

    def counted(self, *arguments, **options):
        made.append(self)
        init(self, *arguments, **options)

    keras.optimizers.Optimizer.__init__ = counted
    try:
        save()
    finally:
        keras.optimizers.Optimizer.__init__ = init
    return len(made)


def test_a_save_makes_no_optimizer_again(tmp_path):
    """If the first part fails, Keras is mended and the module can go."""
    model = tiny.build_model()

    def save():
        model.save_weights(tmp_path / "m.weights.h5", overwrite=True)

    keras.utils.clear_session()
    save()
    assert optimizers_made(save) == 1
    keep_saving_cache()
    assert optimizers_made(save) == 0
