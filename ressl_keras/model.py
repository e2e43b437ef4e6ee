"""The method: a student that learns the teacher's relations (arXiv 2107.09282)."""

import keras
import tensorflow as tf

from ressl_keras import losses
from ressl_keras.backbones import build_projector
from ressl_keras.errors import UsageError
from ressl_keras.queue import FeatureQueue


@keras.saving.register_keras_serializable("ressl_keras")
class ReSSL(keras.Model):
    """Relational self-supervised learning with weak augmentation.

    The teacher, a running average of the student, embeds a weakly augmented view of
    each image; the student embeds a strongly augmented one. Both are compared with a
    queue of past teacher embeddings, and the student learns to have the teacher's
    relation to the queue.

    Train it with `fit` on a dataset of uint8 image batches [batch, height, width, 3]
    (labels beside them are ignored), or of dicts `{"teacher": ..., "student": ...}`
    where the two views start from different images, such as crops made while reading.
    Called on normalised images, it returns the student's embeddings.

    Args:
        backbone: `keras.Model` from images to features [batch, feature dim].
        projector: `keras.Model` from features to embeddings [batch, dim]; by default
            a two-layer head, 512 to 128.
        teacher_view: layer called as `view(images, training=True, seed=, first=)`;
            None where the dataset brings the teacher's views, normalised.
        student_view: the same for the student.
        queue_size: embeddings remembered, K in the paper.
        momentum: share of the old teacher kept at each step, m in the paper.
        student_temperature: temperature of the student's relation.
        teacher_temperature: temperature of the teacher's; below the student's, the
            target is sharpened.
        info_nce_steps: for this many steps at the start the objective is InfoNCE over
            the same queue (arXiv 2203.08717), since relations to a queue that means
            nothing yet teach little. 0 is the original method.
        info_nce_temperature: temperature of that objective.
        seed: integer seed of the views and the queue.

    Raises:
        UsageError: if a temperature is not positive, the momentum is outside [0, 1],
            or the queue has no rows.

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
        student_temperature=0.1,
        teacher_temperature=0.04,
        info_nce_steps=0,
        info_nce_temperature=0.2,
        seed=0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        for name, temperature in (
            ("student_temperature", student_temperature),
            ("teacher_temperature", teacher_temperature),
            ("info_nce_temperature", info_nce_temperature),
        ):
            if not temperature > 0:
                raise UsageError(f"{name} must be positive; got {temperature}.")
        if not 0 <= momentum <= 1:
            raise UsageError(f"momentum must lie in [0, 1]; got {momentum}.")
        self.queue_size = queue_size
        self.momentum = momentum
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature
        self.info_nce_steps = info_nce_steps
        self.info_nce_temperature = info_nce_temperature
        self.seed = seed

        self.backbone = backbone
        self.projector = projector or build_projector(
            backbone.output_shape[-1], hidden_dim=512, output_dim=128
        )
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
        teacher_images, student_images = self._views(data)
        learning_rate = self.optimizer.learning_rate

        with tf.GradientTape() as tape:
            student = _unit(self.student(student_images, training=True))  # [b, D]
            with tape.stop_recording():
                self._update_teacher()
                teacher = _unit(self.teacher(teacher_images, training=True))  # [b, D]
            queue = self.queue.features  # [K, D]
            student_logits = losses.relation_logits(
                student, queue, self.student_temperature
            )  # [b, K]
            teacher_logits = losses.relation_logits(
                teacher, queue, self.teacher_temperature
            )  # [b, K]
            loss = self._objective(
                student, teacher, queue, student_logits, teacher_logits
            )  # [b]
            # The optimizer sums gradients over replicas; the loss is their mean.
            replicas = self.distribute_strategy.num_replicas_in_sync
            scaled = self.optimizer.scale_loss(tf.reduce_mean(loss) / replicas)

        variables = self.student.trainable_variables
        self.optimizer.apply(tape.gradient(scaled, variables), variables)
        self.queue.enqueue(_gather_replicas(teacher))
        logs = self._logs(loss, student, student_logits, teacher_logits)
        return {**logs, "learning_rate": learning_rate}

    def _views(self, data):
        """Both views of a batch; the draws depend on seed, step and place only."""
        images = keras.utils.unpack_x_y_sample_weight(data)[0]
        if not isinstance(images, dict):
            images = {"teacher": images, "student": images}
        step = tf.cast(self.optimizer.iterations, tf.int32)
        context = tf.distribute.get_replica_context()
        views = []
        for index, (name, view) in enumerate(
            [("teacher", self.teacher_view), ("student", self.student_view)]
        ):
            batch = images[name]
            if view is not None:
                seed = tf.random.experimental.stateless_fold_in(
                    tf.stack([self.seed, step]), index
                )
                first = 0
                if context.num_replicas_in_sync > 1:
                    first = context.replica_id_in_sync_group * tf.shape(batch)[0]
                batch = view(batch, training=True, seed=seed, first=first)
            views.append(batch)
        return views

    def _update_teacher(self):
        for teacher, student in self._averaged:
            average = self.momentum * teacher + (1 - self.momentum) * student
            # Each replica writes its own copy; all compute the same number.
            tf.raw_ops.AssignVariableOp(resource=teacher.value.handle, value=average)

    def _objective(self, student, teacher, queue, student_logits, teacher_logits):
        def relational():
            return losses.cross_entropy(student_logits, teacher_logits)

        def info_nce():
            return losses.info_nce_loss(
                student, teacher, queue, self.info_nce_temperature
            )

        if not self.info_nce_steps:
            return relational()
        early = self.optimizer.iterations < self.info_nce_steps
        return tf.cond(early, info_nce, relational)

    def _logs(self, loss, student, student_logits, teacher_logits):
        same = tf.argmax(student_logits, -1) == tf.argmax(teacher_logits, -1)
        values = (
            loss,
            losses.entropy(teacher_logits),
            losses.entropy(student_logits),
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
            "student_view": serialize(self.student_view),
            "queue_size": self.queue_size,
            "momentum": self.momentum,
            "student_temperature": self.student_temperature,
            "teacher_temperature": self.teacher_temperature,
            "info_nce_steps": self.info_nce_steps,
            "info_nce_temperature": self.info_nce_temperature,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        for part in ("backbone", "projector", "teacher_view", "student_view"):
            if isinstance(config.get(part), dict):
                config[part] = keras.saving.deserialize_keras_object(
                    config[part], custom_objects=custom_objects
                )
        return cls(**config)


def _unit(embeddings):
    """Rows of length one, in float32 at least."""
    embeddings = tf.cast(embeddings, tf.float32)
    return tf.math.l2_normalize(embeddings, axis=-1)


def _gather_replicas(embeddings):
    """The global batch, in replica order, on every replica."""
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return embeddings
    batch, dim = embeddings.shape
    gathered = context.all_gather(embeddings, axis=0)  # loses the static shape
    total = batch and batch * context.num_replicas_in_sync
    return tf.ensure_shape(gathered, [total, dim])


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
