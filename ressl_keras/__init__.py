"""Self-supervised pretraining for Keras 3 and TensorFlow with ReSSL.

The names below are imported when they are first used, so that a command can answer
`--help` without TensorFlow.
"""

import importlib
import importlib.util
import os
import sys

from ressl_keras.version import __version__

# Public name: the module that defines it.
_MODULES = {
    "Config": "config",
    "CosineMomentum": "method.optimizers",
    "Dataset": "data.datasets",
    "FeatureQueue": "method.queue",
    "InfoNCE": "method.objectives",
    "Objective": "method.objectives",
    "ReSSL": "method.ressl",
    "Relation": "method.objectives",
    "SGD": "method.optimizers",
    "UsageError": "errors",
    "View": "augmentation.layers",
    "WarmUp": "method.objectives",
    "build_backbone": "method.networks",
    "build_projector": "method.networks",
    "encode": "encoders.embed",
    "evaluate": "evaluation.protocols",
    "export_encoder": "training.exporting",
    "images_from": "data.own",
    "load_dataset": "data.datasets",
    "load_encoder": "encoders.encoder",
    "losses": "method.losses",
    "pretrain": "training.pretrain",
    "read_image": "data.reading",
    "strong_view": "augmentation.views",
    "views": "augmentation.views",
    "warmup_cosine": "method.optimizers",
    "weak_view": "augmentation.views",
}
# Names that stand for a module itself.
_WHOLE = ("losses", "views")

__all__ = ["__version__", *sorted(_MODULES)]


def _require_tensorflow():
    """Checks that Keras runs on TensorFlow, without importing either."""
    if "tensorflow" not in sys.modules and not importlib.util.find_spec("tensorflow"):
        raise ImportError(
            "ressl_keras needs TensorFlow: pip install 'ressl-keras[cpu]', or "
            "'ressl-keras[gpu]' with a GPU."
        )
    if "keras" in sys.modules:
        backend = sys.modules["keras"].backend.backend()
    else:
        backend = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if backend != "tensorflow":
        raise ImportError(
            "ressl_keras runs on Keras' TensorFlow backend, but Keras uses "
            f"'{backend}'. Set KERAS_BACKEND=tensorflow."
        )


_require_tensorflow()


if "keras" in sys.modules:  # `keras.models.load_model` then knows the classes
    importlib.import_module(f"{__name__}.method.ressl")


def __getattr__(name):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    value = module if name in _WHOLE else getattr(module, name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
