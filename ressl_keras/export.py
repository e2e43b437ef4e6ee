"""What leaves a run: a Keras file, a SavedModel for TF Serving, other formats.

  python -m ressl_keras.export --workdir=runs/cifar10

A run writes the first two at its end; the command does it again afterwards,
from the run's last checkpoint, and has the choices: teacher, projector, unit
length, formats.
"""

import importlib.util
import os
import shutil
import tempfile

import keras
import numpy as np
import tensorflow as tf

from ressl_keras import checkpoints, data, encoders
from ressl_keras.backbones import build_networks
from ressl_keras.callbacks import METRICS_FILE, MetricsTable
from ressl_keras.errors import UsageError
from ressl_keras.model import ReSSL
from ressl_keras.optimizers import SGD, warmup_cosine

EXPORT_FOLDER = "export"
NETWORKS = ("student", "teacher")
# Format: (ending, modules it needs, how to install them).
FORMATS = {
    "onnx": ("onnx", ("tf2onnx", "onnx"), "pip install tf2onnx onnx"),
    "litert": ("tflite", (), ""),
}
_SERVING_API = "pip install --no-deps tensorflow-serving-api"


class ServedEncoder(tf.Module):
    """An encoder as the TensorFlow functions that a server calls.

    Args:
        encoder: `keras.Model` from images in 0-255 to features [batch, dim].
        size: side in pixels that encoded images are brought to.
        normalize: whether embeddings get length one.
    """

    def __init__(self, encoder, size, normalize=False):
        super().__init__(name="encoder")
        self._size, self._normalize = size, normalize
        self._forward = encoder
        self._variables = [variable.value for variable in encoder.variables]
        images_shape, self._dim = encoder.input_shape, encoder.output_shape[-1]

        def signature(shape, dtype, name):
            return [tf.TensorSpec(shape, dtype, name)]

        self.serving_default = tf.function(
            lambda images: self._embed(images),
            input_signature=signature(images_shape, tf.float32, "images"),
        )
        # A signature has one dtype; this one spares a client three quarters of the
        # bytes.
        self.serve_uint8 = tf.function(
            lambda images: self._embed(tf.cast(images, tf.float32)),
            input_signature=signature(images_shape, tf.uint8, "images"),
        )
        self.serve_bytes = tf.function(
            lambda image_bytes: self._embed(self._read(image_bytes)),
            input_signature=signature([None], tf.string, "image_bytes"),
        )

    @property
    def signatures(self):
        """The functions under the names that clients ask for."""
        return {
            "serving_default": self.serving_default,
            "serve_uint8": self.serve_uint8,
            "serve_bytes": self.serve_bytes,
        }

    def _embed(self, images):
        def forward():
            return tf.cast(self._forward(images, training=False), tf.float32)

        # oneDNN's convolution gives an empty batch the shape of its input.
        nothing = tf.zeros([0, self._dim])
        empty = tf.equal(tf.shape(images)[0], 0)
        embedding = tf.cond(empty, lambda: nothing, forward)
        if self._normalize:
            embedding = tf.math.l2_normalize(embedding, axis=-1)
        return {"embedding": embedding}

    def _read(self, image_bytes):
        """Encoded images [batch] as squares, float32 [batch, size, size, 3]."""
        count = tf.size(image_bytes, tf.int64)

        def read(place, encoded):
            return place, data.central_square(data.decode(encoded), self._size)

        # The decoder's own error would not say which image it is about, so the
        # undecodable ones are passed over and then counted. It is in parallel, too.
        images = tf.data.Dataset.from_tensor_slices(image_bytes).enumerate()
        images = images.map(read, tf.data.AUTOTUNE).ignore_errors()
        # At least one element, for an empty batch.
        blank = tf.zeros([self._size, self._size, 3])
        end = tf.data.Dataset.from_tensors((count, blank))
        places, squares = images.concatenate(end).batch(count + 1).get_single_element()
        missing = tf.sets.difference([tf.range(count)], [places[:-1]]).values
        message = tf.strings.format(
            "image_bytes at {} cannot be decoded as JPEG, PNG, GIF or BMP", missing
        )
        complete = tf.debugging.Assert(tf.size(missing) == 0, [message])
        with tf.control_dependencies([complete]):
            return tf.identity(squares[:-1])


def save_saved_model(
    encoder, size, folder, normalize=False, warmup=None, description=None
):
    """Writes the next version of a SavedModel, for TF Serving to load as it is.

    Args:
        encoder: `keras.Model` from images in 0-255 to features [batch, dim].
        size: side in pixels that encoded images are brought to.
        folder: folder of the versions; made if absent. Versions are never overwritten.
        normalize: whether embeddings get length one.
        warmup: whether to write warm-up requests; None does if it can.
        description: dict to put beside the model as `assets.extra/encoder.json`.

    Returns:
        Path of the version's folder.

    Raises:
        UsageError: if `warmup` is asked for and the package for it is missing.
    """
    if warmup is None:
        warmup = _has("tensorflow_serving")
    elif warmup and not _has("tensorflow_serving"):
        raise UsageError(f"Warm-up requests need the serving API: {_SERVING_API}")
    os.makedirs(folder, exist_ok=True)
    # A server that watches the folder passes over names that are no numbers.
    aside = tempfile.mkdtemp(prefix="writing-", dir=folder)
    try:
        served = ServedEncoder(encoder, size, normalize)
        tf.saved_model.save(served, aside, signatures=served.signatures)
        extra = os.path.join(aside, "assets.extra")
        os.makedirs(extra)
        encoders.write_json(
            os.path.join(extra, encoders.DESCRIPTION_FILE),
            {**(description or {}), "input_size": [size, size]},
        )
        if warmup:
            write_warmup(
                os.path.join(extra, "tf_serving_warmup_requests"),
                [size if side is None else side for side in encoder.input_shape[1:3]],
            )
        os.chmod(aside, 0o755)  # mkdtemp's are for their owner alone
        return _rename_to_next_version(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _has(module):
    return importlib.util.find_spec(module) is not None


def _rename_to_next_version(aside, folder):
    while True:
        versions = [int(name) for name in os.listdir(folder) if name.isdecimal()]
        path = os.path.join(folder, str(max(versions, default=0) + 1))
        try:
            os.rename(aside, path)
            return path
        except OSError:
            if not os.path.isdir(path):  # else another export took the number
                raise


def write_warmup(path, image_size, batch_sizes=(1, 8)):
    """Writes requests that TF Serving runs before it calls a model available.

    Args:
        path: file to write, `assets.extra/tf_serving_warmup_requests`.
        image_size: height and width of the images, in pixels.
        batch_sizes: sizes of the requests' batches.
    """
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    gray = np.full([*image_size, 3], 128, np.uint8)
    requests = {
        "serving_default": ("images", gray.astype(np.float32)),
        "serve_uint8": ("images", gray),
        "serve_bytes": ("image_bytes", tf.io.encode_jpeg(gray).numpy()),
    }
    with tf.io.TFRecordWriter(path) as writer:
        for signature, (name, value) in requests.items():
            for batch_size in batch_sizes:
                request = predict_pb2.PredictRequest()
                request.model_spec.name = "encoder"
                request.model_spec.signature_name = signature
                request.inputs[name].CopyFrom(
                    tf.make_tensor_proto(np.stack([value] * batch_size))
                )
                log = prediction_log_pb2.PredictionLog(
                    predict_log=prediction_log_pb2.PredictLog(request=request)
                )
                writer.write(log.SerializeToString())


def save_format(encoder, workdir, name):
    """Writes an encoder in another format.

    Args:
        encoder: functional `keras.Model` from images to features.
        workdir: folder to write into.
        name: one of `FORMATS`.

    Returns:
        Path of the file, `encoder.onnx` or `encoder.tflite`.

    Raises:
        UsageError: if the format is unknown or its library is missing.
    """
    check_formats([name])
    ending = FORMATS[name][0]
    path = os.path.join(workdir, f"encoder.{ending}")
    aside = os.path.join(workdir, f"encoder.writing.{ending}")
    images = keras.InputSpec(shape=encoder.input_shape, dtype="float32", name="images")
    encoder.export(aside, format=name, input_signature=[images], verbose=False)
    os.replace(aside, path)
    return path


def check_formats(names):
    """Sees that formats are known and their libraries installed.

    Raises:
        UsageError: if not, naming the package to install.
    """
    for name in names:
        if name not in FORMATS:
            raise UsageError(
                f"Unknown format '{name}'; known are {', '.join(FORMATS)}."
            )
        _, modules, installation = FORMATS[name]
        missing = [module for module in modules if not _has(module)]
        if missing:
            raise UsageError(f"{name} needs {', '.join(missing)}: {installation}")


def save_all(
    backbone,
    workdir,
    size,
    description,
    projector=None,
    normalize=False,
    formats=(),
    warmup=None,
    progress=print,
):
    """Writes `encoder.keras`, `encoder.json`, the next SavedModel, other formats.

    Args:
        backbone: functional `keras.Model` from normalised images to features.
        workdir: folder to write into.
        size: side of the images in pixels.
        description: dict of what there is to say about the encoder.
        projector: `keras.Model` to put behind it, or None.
        normalize: whether the SavedModel's embeddings get length one.
        formats: names out of `FORMATS`.
        warmup: whether to write warm-up requests; None does if it can.
        progress: called with a line of text about each file.

    Returns:
        Path of the encoder's file.

    Raises:
        UsageError: if a library is missing; before anything is written.
    """
    check_formats(formats)
    encoder = encoders.build_encoder(backbone, projector, size)
    described = encoders.describe(encoder, {**description, "normalized": normalize})
    saved_model = save_saved_model(
        encoders.build_encoder(backbone, projector, size, any_size=True),
        size,
        os.path.join(workdir, EXPORT_FOLDER),
        normalize,
        warmup,
        described,
    )
    path = encoders.save_encoder(encoder, workdir, description)
    written = [path, saved_model]
    written += [save_format(encoder, workdir, name) for name in formats]
    progress("Exported: " + ", ".join(written))
    return path


def export_run(
    workdir,
    network="student",
    with_projector=False,
    normalize=False,
    formats=(),
    warmup=None,
    image_size=None,
    progress=print,
):
    """Exports the encoder of a run, finished or not, from its last checkpoint.

    Args:
        workdir: the run's folder, with `flags.txt` and `checkpoints`.
        network: `student` or `teacher`.
        with_projector: whether to keep the projector behind the backbone.
        normalize: whether the SavedModel's embeddings get length one.
        formats: names out of `FORMATS`.
        warmup: whether to write warm-up requests; None does if it can.
        image_size: side of the encoder's images in pixels; None takes the run's.
        progress: called with a line of text now and then.

    Returns:
        Path of the encoder's file.

    Raises:
        UsageError: if there is no such run, or a library is missing.
    """
    if network not in NETWORKS:
        raise UsageError(f"Unknown network '{network}'; known are student and teacher.")
    check_formats(formats)
    flags = _read_flags(os.path.join(workdir, "flags.txt"))
    size = image_size or _image_size(workdir, flags)
    model = _build_model(flags, size)
    folder = os.path.join(workdir, "checkpoints")
    step = checkpoints.restore(model, folder)
    if not step:
        raise UsageError(f"{workdir} has no checkpoint to export.")
    progress(f"{network} of step {step}, from {folder}.")
    backbone, projector = getattr(model, network).layers[-2:]
    knn_top1 = MetricsTable.last(os.path.join(workdir, METRICS_FILE), "knn_top1")
    # The neighbours were those of the student's backbone.
    judged = network == "student" and not with_projector
    description = {
        "method": flags.get("method", "ressl"),
        "backbone": flags["backbone"],
        "dataset": flags["dataset"],
        "steps": step,
        "batch_size": int(flags["batch_size"]),
        "knn_top1": knn_top1 if judged else None,
        "network": network,
        "projector": with_projector,
    }
    return save_all(
        backbone,
        workdir,
        size,
        description,
        projector if with_projector else None,
        normalize,
        formats,
        warmup,
        progress,
    )


def _read_flags(path):
    """Values of a run's flags, a dict of strings."""
    if not os.path.isfile(path):
        raise UsageError(f"{os.path.dirname(path)} is not a run: it has no flags.txt.")
    with open(path) as file:
        lines = [line.strip().lstrip("-") for line in file]
    return dict(line.split("=", 1) for line in lines if "=" in line)


def _image_size(workdir, flags):
    if "image_size" in flags:
        return int(flags["image_size"])
    path = os.path.join(workdir, encoders.ENCODER_FILE)
    if os.path.isfile(path):
        return encoders.load_encoder(path).input_shape[1]
    raise UsageError(
        f"{workdir} does not tell the size of its images yet; give --image_size."
    )


def _build_model(flags, size):
    """The run's model with the weights that a checkpoint replaces."""
    sizes = ("width", "hidden_dim", "embedding_dim", "predictor_dim")
    sizes = {name: int(flags[name]) for name in sizes if name in flags}
    model = ReSSL(
        **build_networks(flags["backbone"], size, **sizes),
        queue_size=int(flags["queue_size"]),
    )
    model.compile(SGD(warmup_cosine(0.1, 2, 1)))
    model.optimizer.build(model.trainable_variables)
    return model


# What --help shows: those that matter first, and the others.
GROUPS = {
    "Run": ("workdir", ""),
    "Encoder": ("network projector normalize", "image_size"),
    "Output": ("formats", "warmup"),
}


def main(_):
    from absl import flags

    values = flags.FLAGS
    try:
        export_run(
            values.workdir,
            values.network,
            values.projector,
            values.normalize,
            values.formats,
            values.warmup,
            values.image_size,
        )
    except OSError as error:  # such as a folder that is read-only
        raise UsageError(str(error)) from error


def define_flags(values):
    """For the command only: the package reads no flags."""
    from absl import flags

    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values)
    flags.register_validator(
        "workdir",
        lambda value: value is not None,
        "give the folder of the run",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "network",
        "student",
        NETWORKS,
        "Whose encoder; the paper's is the student's.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "projector",
        False,
        "Keep the projector behind the backbone.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "normalize",
        False,
        "Let the SavedModel return embeddings of length one.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "formats",
        [],
        f"Other formats to write, any of {', '.join(FORMATS)}.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "warmup",
        None,
        "Put warm-up requests into the SavedModel. Default: where "
        "tensorflow-serving-api is installed.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "image_size",
        None,
        "Side of the encoder's images in pixels. Default: the run's.",
        lower_bound=8,
        flag_values=values,
    )


if __name__ == "__main__":
    from absl import flags

    import ressl_command

    define_flags(flags.FLAGS)
    ressl_command.run(main, GROUPS)
