"""The method: a student that learns the teacher's relations (arXiv 2107.09282)."""

import keras
import tensorflow as tf

from ressl_keras import losses, objectives
from ressl_keras.backbones import build_projector
from ressl_keras.errors import UsageError
from ressl_keras.queue import FeatureQueue
from ressl_keras.views import fold

# Number of the shuffling among the draws of a step, far from those of the views.
_SHUFFLE = 1 << 16


@keras.saving.register_keras_serializable("ressl_keras")
class ReSSL(keras.Model):
    """Relational self-supervised learning with weak augmentation.

    The teacher, a running average of the student, embeds a weakly augmented view of
    each image; the student embeds a strongly augmented one. Both are compared with a
    queue of past teacher embeddings, and the student learns to have the teacher's
    relation to the queue.

    Train it with `fit` on a dataset of uint8 image batches [batch, height, width, 3]
    (labels beside them are ignored), or of dicts `{"teacher": ..., "student": ...}`
    where the views start from different images, such as crops made while reading; the
    student's are then one batch, or a tuple of one for each of its views.
    Called on normalised images, it returns the student's embeddings.

    Args:
        backbone: `keras.Model` from images to features [batch, feature dim].
        projector: `keras.Model` from features to embeddings [batch, dim]; by default
            a two-layer head, 512 to 128.
        teacher_view: layer called as `view(images, training=True, seed=, first=)`;
            None where the dataset brings the teacher's views, normalised.
        student_view: the same for the student; or a list of several, whose losses are
            averaged (multi-crop, section 4.4).
        queue_size: embeddings remembered, K in the paper.
        momentum: share of the old teacher kept at each step, m in the paper.
        objective: the method and its temperatures, as in `objectives`; by default
            `Relation()`, the paper's.
        references: what both are compared with: `queue`, or `batch`, the teacher's
            embeddings of the other images of the global batch.
        predictor: `keras.Model` from embeddings to embeddings [batch, dim] that the
            student has and the teacher has not (arXiv 2203.08717); by default none.
        shuffle_teacher: whether the teacher's batch is shuffled over the replicas of
            a distribution strategy, so that its batch norms see other company than the
            student's.
        seed: integer seed of the views, the queue and the shuffling.

    Raises:
        UsageError: if the momentum is outside [0, 1], the queue has no rows, or
            `references` is unknown.

    Example:

    >>> backbone = build_backbone("resnet18_small", (32, 32, 3))
    >>> model = ReSSL(backbone, None, weak_view(32), strong_view(32))
    >>> model.compile(SGD(learning_rate=0.06, l2=5e-4))
    >>> model.fit(images.batch(256, drop_remainder=True), epochs=200)
    >>> model.backbone.save("backbone.keras")
    """

    def __init__(
        self,
        backbone,
        projector=None,
        teacher_view=None,
        student_view=None,
        queue_size=4096,
        momentum=0.99,
        objective=None,
        references="queue",
        predictor=None,
        shuffle_teacher=False,
        seed=0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if references not in ("queue", "batch"):
            raise UsageError(f"references is queue or batch; got '{references}'.")
        if not 0 <= momentum <= 1:
            raise UsageError(f"momentum must lie in [0, 1]; got {momentum}.")
        self.queue_size = queue_size
        self.momentum = momentum
        self.objective = objective or objectives.Relation()
        self.references = references
        self.shuffle_teacher = shuffle_teacher
        self.seed = seed

        self.backbone = backbone
        self.projector = projector or build_projector(
            backbone.output_shape[-1], hidden_dim=512, output_dim=128
        )
        self.predictor = predictor
        self.teacher_view, self.student_view = teacher_view, student_view
        self.student = keras.Sequential(
            [keras.Input(backbone.input_shape[1:]), self.backbone, self.projector],
            name="student",
        )
        self.teacher = keras.models.clone_model(self.student)
        self.teacher.name = "teacher"
        self.teacher.set_weights(self.student.get_weights())
        self._averaged = [
            (theirs, ours)
            for theirs, ours in zip(self.teacher.weights, self.student.weights)
            if ours.trainable
        ]
        # Not `teacher.trainable = False`: that would put its batch norms into
        # inference mode, and the method wants their statistics from its own batches.
        for variable, _ in self._averaged:
            variable.trainable = False

        dim = self.projector.output_shape[-1]
        self.queue = FeatureQueue(queue_size, dim, seed=seed)
        self.trackers = [
            keras.metrics.Mean(name=name)
            for name in (
                "loss",
                "teacher_entropy",
                "student_entropy",
                "agreement",
                "embedding_std",
            )
        ]
        self.built = True

    def call(self, images, training=False):
        """The student's unit embeddings [batch, dim] of normalised images."""
        return _unit(self.student(images, training=training))

    def train_step(self, data):
        teacher_images, *student_images = self._views(data)
        learning_rate = self.optimizer.learning_rate

        with tf.GradientTape() as tape:
            students = self._embed_crops(student_images)  # [b, D], one for each crop
            with tape.stop_recording():
                self._update_teacher()
                teacher = self._embed_teacher(teacher_images)  # [b, D]
                everyone = _gather_replicas(teacher)  # [global b, D]
                references = self._references(everyone)  # [K, D]
                target = self._relate(
                    teacher, references, self.objective.teacher_temperature
                )
            relations = [
                self._relate(student, references, self.objective.student_temperature)
                for student in students
            ]
            crop_losses = [
                self.objective(
                    relation,  # over [b, K]
                    target,
                    positive=tf.reduce_sum(student * teacher, axis=-1),  # [b]
                    step=self.optimizer.iterations,
                )
                for student, relation in zip(students, relations)
            ]
            loss = tf.add_n(crop_losses) / len(crop_losses)  # [b]
            # The optimizer sums gradients over replicas; the loss is their mean.
            replicas = self.distribute_strategy.num_replicas_in_sync
            scaled = self.optimizer.scale_loss(tf.reduce_mean(loss) / replicas)

        variables = self.trainable_variables
        gradients = tape.gradient(scaled, variables)
        logs = self._logs(loss, students[0], relations[0], target)
        # Once nothing reads the queue as it was, its rows can be written in place.
        with tf.control_dependencies([*gradients, *logs.values()]):
            self.queue.enqueue(everyone)
        self.optimizer.apply(gradients, variables)
        return {**logs, "learning_rate": learning_rate}

    def _views(self, data):
        """The teacher's view of a batch, then the student's, one or several.

        The draws depend on seed, step and place only.
        """
        images = keras.utils.unpack_x_y_sample_weight(data)[0]
        if not isinstance(images, dict):
            images = {"teacher": images, "student": images}
        student_views = _listed(self.student_view)
        student_images = _listed(images["student"])
        if len(student_images) == 1:
            student_images *= len(student_views)
        context = tf.distribute.get_replica_context()
        views = []
        for index, (view, batch) in enumerate(
            zip(
                [self.teacher_view, *student_views],
                [images["teacher"], *student_images],
                strict=True,
            )
        ):
            if view is not None:
                first = 0
                if context.num_replicas_in_sync > 1:
                    first = context.replica_id_in_sync_group * tf.shape(batch)[0]
                seed = self._draw(fold(index))
                batch = view(batch, training=True, seed=seed, first=first)
            views.append(batch)
        return views

    def _draw(self, number):
        """Seed [2] of one of the step's draws."""
        step = tf.cast(self.optimizer.iterations, tf.int32)
        return tf.random.experimental.stateless_fold_in(
            tf.stack([self.seed, step]), number
        )

    def _embed_crops(self, crops):
        """The student's unit embeddings of each crop; one pass for each size."""
        embeddings = [None] * len(crops)
        for size in dict.fromkeys(crop.shape[1:3] for crop in crops):
            places = [i for i, crop in enumerate(crops) if crop.shape[1:3] == size]
            images = tf.concat([crops[i] for i in places], axis=0)
            embedded = self.student(images, training=True)
            if self.predictor is not None:
                embedded = self.predictor(embedded, training=True)
            for i, part in zip(places, tf.split(_unit(embedded), len(places))):
                embeddings[i] = part
        return embeddings

    def _embed_teacher(self, images):
        """The teacher's unit embeddings, of a shuffled batch where this is asked for.

        As in the reference: the images of all replicas are dealt out anew for the pass
        and their embeddings brought back, so that a batch norm of the teacher takes its
        statistics over other images than the student's.
        """
        context = tf.distribute.get_replica_context()
        if not self.shuffle_teacher or context.num_replicas_in_sync == 1:
            return _unit(self.teacher(images, training=True))
        count = tf.shape(images)[0]
        own = context.replica_id_in_sync_group * count + tf.range(count)
        lots = tf.random.stateless_uniform(
            [count * context.num_replicas_in_sync], self._draw(_SHUFFLE), alg="philox"
        )
        order = tf.argsort(lots)  # the same on every replica
        dealt = tf.gather(_gather_replicas(images), tf.gather(order, own))
        dealt = tf.ensure_shape(dealt, images.shape)
        embedded = _gather_replicas(_unit(self.teacher(dealt, training=True)))
        places = tf.gather(tf.argsort(order), own)
        return tf.ensure_shape(
            tf.gather(embedded, places), [images.shape[0], embedded.shape[-1]]
        )

    def _references(self, everyone):
        """What this step's embeddings are compared with, [K, D]."""
        if self.references == "batch":
            return everyone
        if not self.jit_compile:
            self.queue.share()
        return self.queue.features

    def _relate(self, embeddings, references, temperature):
        """The relation of embeddings [b, D] to the references [K, D].

        With the batch as the references an image is none of its own.
        """
        own = None
        if self.references == "batch":
            context = tf.distribute.get_replica_context()
            count, total = tf.shape(embeddings)[0], tf.shape(references)[0]
            first = context.replica_id_in_sync_group * count
            places = first + tf.range(count)
            own = tf.one_hot(places, total, on_value=True, off_value=False)
        return losses.relate(embeddings, references, temperature, excluded=own)

    def _update_teacher(self):
        for teacher, student in self._averaged:
            average = self.momentum * teacher + (1 - self.momentum) * student
            # Each replica writes its own copy; all compute the same number.
            tf.raw_ops.AssignVariableOp(resource=teacher.value.handle, value=average)

    def _logs(self, loss, student, relation, target):
        same = tf.argmax(relation.logits, -1) == tf.argmax(target.logits, -1)
        values = (
            loss,
            losses.entropy(target),
            losses.entropy(relation),
            tf.cast(same, tf.float32),
            tf.fill(tf.shape(loss), _global_std(student)),
        )
        for tracker, value in zip(self.trackers, values):
            tracker.update_state(value)
        return {tracker.name: tracker.result() for tracker in self.trackers}

    @property
    def metrics(self):
        return self.trackers

    def save_own_variables(self, store):
        """Keeps the metrics of an unfinished epoch, which Keras leaves out."""
        super().save_own_variables(store)
        for tracker in self.trackers:
            for variable in tracker.variables:
                copies = self.distribute_strategy.experimental_local_results(
                    variable.value
                )
                name = f"{tracker.name}_{variable.name}"
                store[name] = sum(copy.numpy() for copy in copies)

    def load_own_variables(self, store):
        for tracker in self.trackers:
            for variable in tracker.variables:
                variable.assign(store[f"{tracker.name}_{variable.name}"][()])

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "backbone": serialize(self.backbone),
            "projector": serialize(self.projector),
            "teacher_view": serialize(self.teacher_view),
            "student_view": [serialize(view) for view in self.student_view]
            if isinstance(self.student_view, (list, tuple))
            else serialize(self.student_view),
            "queue_size": self.queue_size,
            "momentum": self.momentum,
            "objective": serialize(self.objective),
            "references": self.references,
            "predictor": serialize(self.predictor),
            "shuffle_teacher": self.shuffle_teacher,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        def deserialize(part):
            if isinstance(part, list):
                return [deserialize(element) for element in part]
            if not isinstance(part, dict):
                return part
            return keras.saving.deserialize_keras_object(
                part, custom_objects=custom_objects
            )

        parts = ("backbone", "projector", "teacher_view", "student_view")
        for part in (*parts, "objective", "predictor"):
            config[part] = deserialize(config.get(part))
        return cls(**config)


def _listed(one_or_several):
    several = isinstance(one_or_several, (list, tuple))
    return list(one_or_several) if several else [one_or_several]


def _unit(embeddings):
    """Rows of length one, in float32 at least."""
    embeddings = tf.cast(embeddings, tf.float32)
    return tf.math.l2_normalize(embeddings, axis=-1)


def _gather_replicas(embeddings):
    """The global batch, in replica order, on every replica."""
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return embeddings
    batch, *rest = embeddings.shape
    gathered = context.all_gather(embeddings, axis=0)  # loses the static shape
    total = batch and batch * context.num_replicas_in_sync
    return tf.ensure_shape(gathered, [total, *rest])


def _global_std(embeddings):
    """Standard deviation over the global batch, averaged over the dimensions."""
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return tf.reduce_mean(tf.math.reduce_std(embeddings, axis=0))
    moments = tf.stack(
        [tf.reduce_mean(embeddings, axis=0), tf.reduce_mean(embeddings**2, axis=0)]
    )
    mean, square = tf.unstack(context.all_reduce(tf.distribute.ReduceOp.MEAN, moments))
    return tf.reduce_mean(tf.sqrt(tf.maximum(square - mean**2, 0)))
