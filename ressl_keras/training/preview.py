"""The picture of a run's first views."""

import numpy as np
import tensorflow as tf

from ressl_keras.augmentation.bundle import ViewBundle
from ressl_keras.data.pipeline import (
    readable_images,
    shuffled_indices,
    training_batches,
)
from ressl_keras.evaluation import pictures
from ressl_keras.run_folder import RunFolder
from ressl_keras.training.build import Plan, choose_views


def preview(dataset, workdir, config, count=8, own_views=(None, None)):
    """Draws `views.png`: images beside the views of them in the first step.

    The views are those of a step that XLA does not compile; XLA draws other numbers of
    the same distribution.

    Args:
        dataset: `Dataset`.
        workdir: folder to write into.
        config: `Config`.
        count: number of images.
        own_views: as in `build.build_model`.

    Returns:
        Path of the picture.
    """
    images, path = dataset.pretrain, RunFolder(workdir).views
    size = config.image_size or images.common_size
    plan = Plan(size, images.same_size, images.channels)
    views = ViewBundle(*choose_views(config, plan, own_views), config.seed)
    count = min(count, len(images))
    # Order and draws of an index do not depend on the size of the batch.
    (batch,) = training_batches(
        images,
        count,
        config.seed,
        0,
        1,
        size,
        crops=config.crops,
        augmentations=config.view_augmentations(),
    )
    viewed = [
        _pixels(made, view)
        for made, view in zip(
            views(batch, tf.constant(0)), [views.teacher, *views.students]
        )
    ]
    names = [config.named_teacher_view] + ["strong"] * len(views.students)
    originals = _first_images(images, config.seed, count)
    pictures.save(pictures.views_grid(originals, viewed, names), path)
    return path


def _pixels(normalised, view):
    """Images as uint8, without the view's normalisation."""
    pixels = 255 * (np.asarray(normalised, np.float32) * view.std + view.mean)
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def _first_images(images, seed, count):
    """The first images of the first batch, as they are."""
    (indices,) = shuffled_indices(len(images), count, seed, 0, 1)
    return readable_images(images, indices)
