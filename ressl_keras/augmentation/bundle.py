"""The views of a training step: how they are built, seeded, packed and unpacked.

View 0 is the teacher's, views 1, 2, ... are the student's. Where images differ in size
only crops can be batched; the geometric part of every view is then made while reading
and the photometric part in the training step. The two parts draw from different seeds.
"""

import tensorflow as tf

from ressl_keras.augmentation import layers
from ressl_keras.augmentation.statistics import statistics
from ressl_keras.augmentation.views import crop_scale
from ressl_keras.augmentations import view_augmentations
from ressl_keras.errors import UsageError

# Numbers of other draws of a step, far from those of the views.
_SHUFFLE, _NETWORKS = 1 << 16, 1 << 17


class ViewBundle:
    """The teacher's view and the student's views.

    Args:
        teacher: layer called as `view(images, training=True, seed=, first=)`, or None
            where the dataset holds the teacher's views already.
        students: list of the same for the student.
        seed: integer seed.

    Call arguments:
        data: a batch as `fit` passes it: uint8 images [batch, height, width, 3], or a
            dict made by `pack`; labels beside either are ignored.
        step: integer tensor. The draws are a function of (seed, step, index in the
            global batch) alone.

    Returns:
        List of normalised images [batch, size, size, 3], the teacher's first.
    """

    def __init__(self, teacher, students, seed=0):
        self.teacher, self.students, self.seed = teacher, list(students), seed

    def __call__(self, data, step):
        if isinstance(data, tuple):
            data = data[0]
        views = [self.teacher, *self.students]
        batches = unpack(data, len(self.students))
        if len(batches) != len(views):
            raise UsageError(
                f"The student has {len(self.students)} views, but the batch holds "
                f"images for {len(batches) - 1}."
            )
        return [
            self._view(number, view, batch, step)
            for number, (view, batch) in enumerate(zip(views, batches))
        ]

    def _view(self, number, view, batch, step):
        if view is None:
            if batch.dtype == tf.uint8:
                raise UsageError(
                    "ReSSL was built without views, so it takes views that are made "
                    "and normalised; got uint8 images. Give teacher_view and "
                    "student_view, such as weak_view(32) and strong_view(32)."
                )
            return batch
        first = first_index(tf.shape(batch)[0])
        seed = draw_seed(self.seed, tf.cast(step, tf.int32), _fold(number))
        return view(batch, training=True, seed=seed, first=first)

    def shuffle_seed(self, step):
        """Seed [2] of the order in which a step shuffles the teacher's batch."""
        return draw_seed(self.seed, tf.cast(step, tf.int32), _SHUFFLE)

    def network_seed(self, step):
        """Seed [2] of what this replica's networks draw in a step, such as dropout."""
        seed = draw_seed(self.seed, tf.cast(step, tf.int32), _NETWORKS)
        replica = tf.cast(first_index(1), tf.int32)
        return tf.random.experimental.stateless_fold_in(seed, replica)


class GeometricViews:
    """The geometric part of all views, for images of different sizes.

    Args:
        image_size: side of the teacher's view in pixels.
        crops: sides of the student's views; by default one like the teacher's.
        seed: integer seed.
        augmentations: as in `build_views`.

    Attributes:
        operations: list of `RandomResizedCropAndFlip`, the teacher's first.
    """

    def __init__(self, image_size, crops=None, seed=0, augmentations=None):
        self.operations = crops_and_flips(image_size, crops, augmentations)
        self.seed = seed

    def draws(self, step, count, first=0):
        """Draws of all views for consecutive images of the global batch.

        Args:
            step: int64 scalar tensor.
            count: number of images.
            first: index of the first of them in the global batch.

        Returns:
            Tuple of float tensors [count, 23], one for each view.
        """
        seed = tf.constant(self.seed, tf.int64)
        return tuple(
            operation.draw(
                draw_seed(seed, step, _fold(number, while_reading=True)), count, first
            )
            for number, operation in enumerate(self.operations)
        )


def build_views(image_size, crops=None, augmentations=None, same_size=True, channels=3):
    """The views that a training step makes.

    Args:
        image_size: side of the teacher's view in pixels.
        crops: sides of the student's views; by default one like the teacher's.
        augmentations: the teacher's and the student's `Augmentation`; by default the
            weak and the strong view's.
        same_size: whether the images have one size. If not, `GeometricViews` makes the
            geometric part while reading, and only the rest is left.
        channels: of the images, 1, 3 or 4.

    Returns:
        Tuple of the teacher's `View` and a list of the student's.
    """
    weak, strong = augmentations or view_augmentations()
    geometric = crops_and_flips(image_size, crops, augmentations)
    teacher, *students = [[each] if same_size else [] for each in geometric]

    def view(operations, augmentation):
        operations = [*operations, *layers.photometric_operations(augmentation)]
        return layers.View(operations, *statistics(channels))

    return view(teacher, weak), [view(operations, strong) for operations in students]


def crops_and_flips(image_size, crops=None, augmentations=None):
    """The geometric operation of each view, the teacher's first.

    Args:
        image_size: side of the teacher's view in pixels.
        crops: sides of the student's views; by default one like the teacher's.
        augmentations: as in `build_views`.

    Returns:
        List of `RandomResizedCropAndFlip`.
    """
    teacher, student = augmentations or view_augmentations()

    def crop(size, a):
        smallest, largest = crop_scale(size, image_size, a.crop_min / a.crop_max)
        scale = round(smallest * a.crop_max, 3), largest * a.crop_max
        ratio = a.ratio_min, a.ratio_max
        return layers.RandomResizedCropAndFlip(size, scale, ratio, a.flip)

    sides = crops or [image_size]
    return [crop(image_size, teacher), *(crop(side, student) for side in sides)]


def pack(batches):
    """Batches of images for the views, as an element of a dataset.

    Args:
        batches: the teacher's images, then those of each of the student's views.

    Returns:
        Dict of `teacher`, a batch, and `student`, a batch or a tuple of several.
    """
    teacher, *students = batches
    student = students[0] if len(students) == 1 else tuple(students)
    return {"teacher": teacher, "student": student}


def unpack(data, students=1):
    """The images that each view starts from, the teacher's first.

    Args:
        data: a batch that all views start from, or the result of `pack`.
        students: number of the student's views.

    Returns:
        List of batches.
    """
    if not isinstance(data, dict):
        return [data] * (1 + students)
    own = listed(data["student"])
    return [data["teacher"], *(own * students if len(own) == 1 else own)]


def listed(one_or_several):
    """A list of what is one object or a list or tuple of several."""
    several = isinstance(one_or_several, (list, tuple))
    return list(one_or_several) if several else [one_or_several]


def first_index(batch_size):
    """Index in the global batch of this replica's first example.

    Args:
        batch_size: integer tensor, examples of this replica.
    """
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return 0
    return context.replica_id_in_sync_group * batch_size


def draw_seed(seed, step, number):
    """Seed [2] of one of the draws of a step.

    Args:
        seed: integer seed of the run.
        step: integer tensor.
        number: which of the step's draws, an integer.
    """
    return tf.random.experimental.stateless_fold_in(tf.stack([seed, step]), number)


def _fold(view, while_reading=False):
    """Number of a view's draws among those of a step."""
    return view // 2 * 4 + view % 2 + 2 * while_reading
