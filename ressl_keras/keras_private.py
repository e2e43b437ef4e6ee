"""The only place that touches what is private in Keras, where there is no public way.

`tests/test_keras_private.py` fails when Keras changes it.
"""

import io

from keras.src.backend.common import global_state

_KINDS = ("Layer", "Sequential", "Functional", "Metric", "Optimizer")


def keep_saving_cache():
    """Lets Keras find what it remembers from one save to the next.

    Keras 3.15 writes this cache under another name than it reads
    (`saving_lib.get_attr_skipset`), so each save makes an optimizer and loses 70 kB.
    """
    for kind in _KINDS:
        known = global_state.get_global_attribute(f"saving_attr_skipset_{kind}")
        if known is not None:
            global_state.set_global_attribute(f"saving_attr_skiplist_{kind}", known)


class _WeightsFile(io.BytesIO):
    """A file in memory. Keras asks the name of its file for the format."""

    def __str__(self):
        return "memory.weights.h5"


def weights_in_memory(model):
    """What `model.save_weights` writes, as a buffer of bytes in memory.

    Keras' own documentation of `save_weights` knows paths only.
    """
    file = _WeightsFile()
    model.save_weights(file)
    keep_saving_cache()
    return file.getbuffer()


def flatten_layers(layer):
    """A layer and all layers inside it, also those that are no part of a model."""
    return layer._flatten_layers()
