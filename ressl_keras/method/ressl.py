"""The model: a student that learns the teacher's relations (arXiv 2107.09282)."""

import copy
import functools

import keras
import tensorflow as tf

from ressl_keras.augmentation.bundle import ViewBundle, listed
from ressl_keras.errors import UsageError
from ressl_keras.method import losses, objectives, replicas
from ressl_keras.method.accumulation import accumulate
from ressl_keras.method.networks import build_projector
from ressl_keras.method.normalization import fuse_batch_norms
from ressl_keras.method.optimizers import SGD  # noqa: F401, saved models refer to it
from ressl_keras.method.queue import FeatureQueue
from ressl_keras.seeds import reseed
from ressl_keras.weights import copy_weights

# What a step logs: `_track` has the first four, `_logs` the last.
_METRICS = ("loss", "teacher_entropy", "student_entropy", "agreement", "embedding_std")
_NO_VALIDATION = (
    "ReSSL has no validation loss: the loss depends on the queue and says nothing "
    "about the encoder. Make an encoder of images in 0-255, "
    "keras.Sequential([keras.Input(shape), ressl_keras.View([]), model.backbone]), and "
    "judge it with ressl_keras.evaluate, or in fit by the callback "
    "ressl_keras.training.callbacks.KNNMonitor."
)


def _all_or_nothing(train_step):
    """Starts a step only once its batch has been read.

    Otherwise the teacher's update and the counter, which need no images, could run
    although reading fails, and the state would not belong to any step.
    """

    @functools.wraps(train_step)
    def step(self, data):
        if not self.optimizer.built:  # XLA creates no variables after a dependency
            self.optimizer.build(self.trainable_variables)
        read = [part for part in tf.nest.flatten(data) if part is not None]
        with tf.control_dependencies(read):
            return train_step(self, data)

    return step


@keras.saving.register_keras_serializable("ressl_keras")
class ReSSL(keras.Model):
    """Relational self-supervised learning with weak augmentation.

    The teacher, an exponential moving average of the student, embeds a weakly augmented
    view of each image; the student embeds a strongly augmented view. Both are compared
    with a queue of past teacher embeddings. The target of the student's relation to the
    queue is the teacher's relation, made sharper by a lower temperature.

    `fit` takes a dataset of uint8 image batches [batch, height, width, 3]; labels
    beside them are ignored. Where the views start from different images, such as crops
    made while reading, it takes dicts `{"teacher": ..., "student": ...}`, the student's
    entry one batch or a tuple with one for each of its views.

    Called on normalised images, the model returns the student's embeddings.

    Args:
        backbone: `keras.Model` from images to features [batch, feature dim].
        projector: `keras.Model` from features to embeddings [batch, dim]; by default
            two layers, 512 to 128.
        teacher_view: layer called as `view(images, training=True, seed=, first=)`;
            None where the dataset holds the teacher's views, normalised.
        student_view: the same for the student; or a list of several, whose losses are
            averaged (multi-crop, section 4.4).
        queue_size: queue size K.
        momentum: EMA momentum m of the teacher; a number, or a schedule of the step
            such as `CosineMomentum`.
        objective: the loss and its temperatures, see `objectives`; a plain function, or
            an instance such as `Relation()`, the paper's and the default.
        references: embeddings that both are compared with: `queue`, or `batch`, the
            teacher's embeddings of the other images of the global batch.
        predictor: `keras.Model` from embeddings to embeddings [batch, dim] that only
            the student has (arXiv 2203.08717); by default none.
        shuffle_teacher: whether the teacher's batch is shuffled over the replicas of a
            distribution strategy, so that its batch-norm statistics come from other
            images than the student's.
        seed: integer seed of the views, the queue and the shuffling.
        accumulate_steps: parts of a replica's batch that the student learns from one
            after the other, which takes less memory. A step is still one update with
            one mean gradient, and the teacher and the queue see the whole batch. The
            student's batch-norm statistics are those of a part, and an objective that
            compares the embeddings of a batch with each other gets a part's. Batch
            norms with statistics over several replicas cannot be in parts.

    Raises:
        UsageError: if the momentum is outside [0, 1], the queue has no rows,
            `references` is unknown, or `accumulate_steps` is not positive.
        TypeError: if `objective` is not callable or has no temperatures.

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
        accumulate_steps=1,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if references not in ("queue", "batch"):
            raise UsageError(f"references is queue or batch; got '{references}'.")
        if not callable(momentum) and not 0 <= momentum <= 1:
            raise UsageError(f"momentum must lie in [0, 1]; got {momentum}.")
        if accumulate_steps < 1:
            raise UsageError(
                f"accumulate_steps must be 1 or more; got {accumulate_steps}."
            )
        self.queue_size = queue_size
        self.momentum = momentum if callable(momentum) else float(momentum)
        self.objective = objectives.as_objective(objective or objectives.Relation())
        objectives.check_objective(self.objective)
        self.references = references
        self.shuffle_teacher = shuffle_teacher
        self.seed = seed
        self.accumulate_steps = accumulate_steps

        self.backbone = backbone
        self.projector = projector or build_projector(
            backbone.output_shape[-1], hidden_dim=512, output_dim=128
        )
        self.predictor = predictor
        self.views = ViewBundle(teacher_view, listed(student_view), seed)
        self._build_encoders()
        dim = self.projector.output_shape[-1]
        self.queue = FeatureQueue(queue_size, dim, seed=seed)
        # Not the optimizer's iterations: loss scaling leaves those of skipped updates
        # out. Each replica counts for itself, as in `FeatureQueue`.
        self.step = keras.Variable(
            0,
            dtype="int64",
            trainable=False,
            synchronization="on_read",
            aggregation="only_first_replica",
            name="step",
        )
        self.trackers = [keras.metrics.Mean(name=name) for name in _METRICS]
        self.build((None, *backbone.input_shape[1:]))

    def build(self, input_shape):
        """Is called at the end of the construction; Keras notes the shape."""
        self.built = True

    def _build_encoders(self):
        """The student, and the teacher as a copy that no gradient reaches."""
        self.student = keras.Sequential(
            [keras.Input(self.backbone.input_shape[1:]), self.backbone, self.projector],
            name="student",
        )
        self.teacher = keras.models.clone_model(self.student)
        self.teacher.name = "teacher"
        copy_weights(self.student, self.teacher)
        # Same weights, for the training step only: `student` and `teacher` keep Keras'
        # layers, and files hold no others. Keras saves a shared layer under the first
        # attribute in alphabetical order, so these names come after those.
        self.training_student = fuse_batch_norms(self.student)
        self.training_teacher = fuse_batch_norms(self.teacher)
        self._pairs = list(zip(self.teacher.weights, self.student.weights))
        # Not `teacher.trainable = False`: that would put its batch norms into
        # inference mode, and the method uses the statistics of its own batches.
        for variable in self.teacher.weights:
            variable.trainable = False

    @property
    def trainable_variables(self):
        # `model.trainable = True` would set those of the teacher, too.
        teachers = {id(variable) for variable in self.teacher.variables}
        return [v for v in super().trainable_variables if id(v) not in teachers]

    @property
    def trainable_weights(self):
        return self.trainable_variables

    def call(self, images, training=False):
        """The student's unit embeddings [batch, dim] of normalised images."""
        return _unit(self.student(images, training=training))

    def fit(self, *args, validation_data=None, validation_split=0.0, **kwargs):
        """Trains as `keras.Model.fit` does, without validation.

        Raises:
            NotImplementedError: if validation is asked for.
        """
        if validation_data is not None or validation_split:
            raise NotImplementedError(_NO_VALIDATION)
        return super().fit(*args, **kwargs)

    def evaluate(self, *args, **kwargs):
        """Is not implemented: the loss without labels judges no encoder.

        Raises:
            NotImplementedError: always, with what to use.
        """
        raise NotImplementedError(_NO_VALIDATION)

    @_all_or_nothing
    def train_step(self, data):
        """One step of the method (section 3.3, algorithm 1)."""
        weak, *strong = self.views(data, self.step.value)  # [b, h, w, 3]
        reseed(self._networks(), lambda: self.views.network_seed(self.step.value))
        self._update_teacher()  # EMA with momentum m
        z_t = self._embed_teacher(weak)  # [b, D]
        global_z_t = replicas.gather(z_t)  # [global b, D]
        queue = self._references(global_z_t)  # [K, D]
        exchanged = [self._embed_teacher(strong[0])] if self._asks("symmetric") else []

        def learn(rows, weak, strong, exchanged, z_t):  # of the batch or a part of it
            with tf.GradientTape() as tape:
                p_t = self._teacher_relation(z_t, queue, rows)
                if self._asks("both_branches"):
                    z_t, p_t = self._second_branch(weak, queue, rows)
                z_s = self._embed_student(strong)  # one [b, D] for each crop
                p_s = [self._student_relation(z, queue, rows) for z in z_s]
                loss = self._loss(p_s, p_t, z_s, z_t)  # [b], mean over crops
                if exchanged:
                    other_way = strong[0], weak, *exchanged
                    loss = (loss + self._second_loss(*other_way, queue, rows)) / 2
            self._track(loss, p_s[0], p_t)
            return self._gradients(tape, loss), z_s[0]

        batch = replicas.indices(tf.shape(z_t)[0]), weak, strong, exchanged, z_t
        gradients, z_s = accumulate(
            learn, batch, self.accumulate_steps, self.trainable_variables
        )
        logs = self._logs(z_s)
        reached = [gradient for gradient in gradients if gradient is not None]
        self._enqueue(global_z_t, after=[*reached, *logs.values()])
        return {**logs, "learning_rate": self._minimize(gradients)}

    def _networks(self):
        """All that may draw numbers in a step."""
        drawing = self.student, self.teacher, self.predictor
        return [network for network in drawing if network is not None]

    def _asks(self, extra):
        return getattr(self.objective, extra, False)

    def _second_branch(self, images, references, rows):
        """The student in the place of the teacher, with a gradient."""
        (embeddings,) = self._embed_student([images])
        return embeddings, self._teacher_relation(embeddings, references, rows)

    def _second_loss(self, teachers, students, z_t, references, rows):
        """The loss of a second pass, with the views exchanged; [b]."""
        p_t = self._teacher_relation(z_t, references, rows)
        if self._asks("both_branches"):
            z_t, p_t = self._second_branch(teachers, references, rows)
        z_s = self._embed_student([students])
        p_s = self._student_relation(z_s[0], references, rows)
        return self._loss([p_s], p_t, z_s, z_t)

    def _update_teacher(self):
        momentum = self.momentum
        if callable(momentum):
            momentum = momentum(self.step.value)
        for teacher, student in self._pairs:
            if not student.trainable:  # a statistic, or frozen
                continue
            average = momentum * teacher + (1 - momentum) * student
            # Each replica writes its own copy; all compute the same number.
            tf.raw_ops.AssignVariableOp(resource=teacher.value.handle, value=average)

    def _embed_teacher(self, images):
        """The teacher's unit embeddings [b, D], of a shuffled batch if asked for."""

        def embed(images):
            return _unit(self.training_teacher(images, training=True))

        if not self.shuffle_teacher or replicas.count() == 1:
            return embed(images)
        return replicas.shuffled(
            embed, images, self.views.shuffle_seed(self.step.value)
        )

    def _embed_student(self, crops):
        """The student's unit embeddings of each crop; one pass for each size."""
        embeddings = [None] * len(crops)
        for size in dict.fromkeys(crop.shape[1:3] for crop in crops):
            same = [i for i, crop in enumerate(crops) if crop.shape[1:3] == size]
            images = tf.concat([crops[i] for i in same], axis=0)
            embedded = self.training_student(images, training=True)
            if self.predictor is not None:
                embedded = self.predictor(embedded, training=True)
            for i, part in zip(same, tf.split(_unit(embedded), len(same))):
                embeddings[i] = part
        return embeddings

    def _references(self, global_teacher):
        """The embeddings that this step's are compared with, [K, D]."""
        if self.references == "batch":
            return global_teacher
        if not self.jit_compile:
            self.queue.share()
        return self.queue.features

    def _teacher_relation(self, embeddings, references, rows):
        temperature = self.objective.teacher_temperature
        return self._relation(embeddings, references, temperature, rows)

    def _student_relation(self, embeddings, references, rows):
        temperature = self.objective.student_temperature
        return self._relation(embeddings, references, temperature, rows)

    def _relation(self, embeddings, references, temperature, rows):
        """The relation of embeddings [b, D] to the references [K, D].

        With the batch as references, an image is not a reference of itself: `rows` [b]
        are the indices of the embeddings' images in the global batch.
        """
        own = None
        if self.references == "batch":
            total = tf.shape(references)[0]
            own = tf.one_hot(rows, total, on_value=True, off_value=False)
        return losses.relate(embeddings, references, temperature, excluded=own)

    def _loss(self, relations, target, students, teacher):
        """The objective of each crop, averaged; [b]."""
        crop_losses = [
            objectives.evaluate(
                self.objective,
                student=relation,  # over [b, K]
                teacher=target,
                positive=tf.reduce_sum(student * teacher, axis=-1),  # [b]
                step=self.step.value,
                student_embeddings=student,  # [b, D]
                teacher_embeddings=teacher,
            )
            for student, relation in zip(students, relations)
        ]
        return tf.add_n(crop_losses) / len(crop_losses)

    def _gradients(self, tape, loss):
        """Gradients of the mean loss over the global batch, or a part's share of it."""
        # The optimizer sums gradients over replicas. In half precision it scales them.
        examples = tf.size(loss) * self.accumulate_steps * replicas.count()
        scale = self.optimizer.scale_loss(1 / tf.cast(examples, loss.dtype))
        weights = tf.fill(tf.shape(loss), scale)
        variables = self.trainable_variables
        gradients = tape.gradient(loss, variables, output_gradients=weights)
        if all(gradient is None for gradient in gradients):
            raise UsageError(
                "No gradient of the objective reaches the student. Compute the loss "
                "from student.logits, student.log_partition, positive or "
                "student_embeddings; student.probabilities has no gradient."
            )
        return gradients

    def _enqueue(self, global_teacher, after):
        """Replaces the oldest rows, once nothing reads the queue as it was."""
        with tf.control_dependencies(after):
            self.queue.enqueue(global_teacher)

    def _minimize(self, gradients):
        """Updates the student; returns the learning rate of this step."""
        inner = getattr(self.optimizer, "inner_optimizer", None)
        if inner is not None:
            gradients = replicas.finite_on_all(gradients)
            following = inner.iterations.value + 1
        learning_rate = self.optimizer.learning_rate
        self.optimizer.apply(gradients, self.trainable_variables)
        if inner is not None:
            # Loss scaling skips updates; the schedule goes on all the same.
            inner.iterations.assign(following)
        self.step.value.assign_add(1)
        return learning_rate

    def _track(self, loss, relation, target):
        same = tf.argmax(relation.logits, -1) == tf.argmax(target.logits, -1)
        values = (
            loss,
            losses.entropy(target),
            losses.entropy(relation),
            tf.cast(same, tf.float32),
        )
        for tracker, value in zip(self.trackers, values):
            tracker.update_state(value)

    def _logs(self, student):
        std = tf.fill(tf.shape(student)[:1], replicas.mean_std(student))
        self.trackers[-1].update_state(std)
        return {tracker.name: tracker.result() for tracker in self.trackers}

    @property
    def metrics(self):
        return self.trackers

    def save_own_variables(self, store):
        """Keeps the step, and the metrics of an unfinished epoch."""
        store["step"] = self.step.numpy()
        for tracker in self.trackers:
            for variable in tracker.variables:
                copies = self.distribute_strategy.experimental_local_results(
                    variable.value
                )
                name = f"{tracker.name}_{variable.name}"
                store[name] = sum(copy.numpy() for copy in copies)

    def load_own_variables(self, store):
        if "step" in store:  # 0.1.0 did not save it
            self.step.assign(store["step"][()])
        for tracker in self.trackers:
            for variable in tracker.variables:
                variable.assign(store[f"{tracker.name}_{variable.name}"][()])

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "backbone": serialize(self.backbone),
            "projector": serialize(self.projector),
            "teacher_view": serialize(self.views.teacher),
            "student_view": [serialize(view) for view in self.views.students],
            "queue_size": self.queue_size,
            "momentum": serialize(self.momentum)
            if callable(self.momentum)
            else self.momentum,
            "objective": objectives.serialize_objective(self.objective),
            "references": self.references,
            "predictor": serialize(self.predictor),
            "shuffle_teacher": self.shuffle_teacher,
            "seed": self.seed,
            "accumulate_steps": self.accumulate_steps,
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

        config = copy.deepcopy(config)  # Keras takes parts out of it
        parts = ("backbone", "projector", "teacher_view", "student_view")
        for part in (*parts, "predictor", "momentum"):
            config[part] = deserialize(config.get(part))
        if isinstance(config.get("objective"), dict):
            config["objective"] = objectives.deserialize_objective(
                config["objective"], custom_objects
            )
        return cls(**config)


def _unit(embeddings):
    """Rows of length one, in float32 at least."""
    embeddings = tf.cast(embeddings, tf.float32)
    return tf.math.l2_normalize(embeddings, axis=-1)
