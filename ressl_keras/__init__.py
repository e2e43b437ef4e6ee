"""Self-supervised pretraining for Keras 3 and TensorFlow with ReSSL."""

import keras as _keras

if _keras.backend.backend() != "tensorflow":
    raise ImportError(
        "ressl_keras runs on Keras' TensorFlow backend, but Keras uses "
        f"'{_keras.backend.backend()}'. Set KERAS_BACKEND=tensorflow."
    )

from ressl_keras import backbones, losses, objectives, views
from ressl_keras.backbones import build_backbone, build_projector
from ressl_keras.encoders import encode, load_encoder
from ressl_keras.errors import UsageError
from ressl_keras.model import ReSSL
from ressl_keras.optimizers import SGD, warmup_cosine
from ressl_keras.queue import FeatureQueue

__version__ = "0.1.0"
__all__ = [
    "SGD",
    "FeatureQueue",
    "ReSSL",
    "UsageError",
    "backbones",
    "build_backbone",
    "build_projector",
    "encode",
    "load_encoder",
    "losses",
    "objectives",
    "views",
    "warmup_cosine",
]
