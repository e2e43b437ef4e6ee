"""Features of a set of images, extracted once."""

import hashlib
import os

import numpy as np

from ressl_keras.data.images import ArrayImages, Subset, spread_indices
from ressl_keras.data.packed import PackedImages
from ressl_keras.encoders.embed import encode


def extract(encoder, images, count=None, batch_size=256, cache=None):
    """Features of a set of images.

    Args:
        encoder: `keras.Model` from images in 0-255 [batch, size, size, 3] to features
            [batch, dim].
        images: any set of images.
        count: take only so many, evenly spread; None takes all.
        batch_size: images per batch.
        cache: folder that keeps features from call to call; None keeps none.

    Returns:
        Tuple of features, float32 array [count, dim], and labels, integer array
        [count], or None where the images have none.
    """
    if count is not None and count < len(images):
        images = Subset(images, spread_indices(images, count))
    if cache is None:
        features = encode(images, encoder, None, batch_size, verbose=0)
        return features, images.labels
    os.makedirs(cache, exist_ok=True)
    path = os.path.join(cache, f"features-{_fingerprint(encoder, images)}.npy")
    if not os.path.exists(path):
        encode(images, encoder, path, batch_size, verbose=0)
    return np.load(path), images.labels


def _fingerprint(encoder, images):
    """Hash of everything the features depend on: architecture, weights, images."""
    digest = hashlib.sha256(encoder.to_json().encode())
    for weight in encoder.get_weights():
        digest.update(np.ascontiguousarray(weight).tobytes())
    for part in _contents(images):
        digest.update(part)
    return digest.hexdigest()[:16]


def _contents(images):
    if isinstance(images, Subset):
        yield images.indices.numpy().tobytes()
        yield from _contents(images.images)
    elif isinstance(images, ArrayImages):
        yield images.images.numpy().tobytes()
    elif isinstance(images, PackedImages):
        yield from images.contents()
    else:
        yield repr(images.decoder).encode()
        for source in images.sources.numpy():
            yield source
            if not images.in_memory:
                status = os.stat(source)
                yield f"{status.st_size} {status.st_mtime_ns}".encode()
