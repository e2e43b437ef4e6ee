"""A cache that Keras forgets: the only place that touches what is private in Keras."""

from keras.src.backend.common import global_state

_KINDS = ("Layer", "Sequential", "Functional", "Metric", "Optimizer")


def keep_saving_cache():
    """Lets Keras find what it remembers from one save to the next.

    Keras 3.15 writes this cache under another name than it reads
    (`saving_lib.get_attr_skipset`), so each save makes an optimizer and loses 70 kB.
    There is no public way to it.
    """
    for kind in _KINDS:
        known = global_state.get_global_attribute(f"saving_attr_skipset_{kind}")
        if known is not None:
            global_state.set_global_attribute(f"saving_attr_skiplist_{kind}", known)
