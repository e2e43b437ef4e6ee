"""A SavedModel of an encoder, for TensorFlow Serving."""

import errno
import importlib.util
import os
import shutil
import tempfile

import numpy as np
import tensorflow as tf

from ressl_keras.config import MAX_PIXELS
from ressl_keras.data.decoding import DEFAULT, decode
from ressl_keras.data.image_headers import pixel_count
from ressl_keras.data.pipeline import center_crop
from ressl_keras.data.plain import plain
from ressl_keras.errors import TEMPORARY, UsageError, naming_disk_errors
from ressl_keras.files import replace_on_disk, write_json
from ressl_keras.run_folder import RunFolder

_SERVING_API = "pip install --no-deps tensorflow-serving-api"


class ServingModule(tf.Module):
    """An encoder or a classifier as the TensorFlow functions that a server calls.

    Args:
        encoder: `keras.Model` from images in 0-255 to features [batch, dim].
        size: side in pixels that encoded images are resized to.
        max_pixels: encoded images with more are refused, before they are decoded.
        decoder: `Decoder` of encoded images.
        class_names: list of strings where the features are probabilities of classes.
    """

    def __init__(
        self,
        encoder,
        size,
        max_pixels=MAX_PIXELS,
        decoder=DEFAULT,
        class_names=None,
    ):
        super().__init__(name="encoder")
        self._class_names = class_names and tf.constant(class_names)
        self._size = size
        self._max_pixels, self._decoder = max_pixels, decoder
        self._forward = encoder
        self._variables = [variable.value for variable in encoder.variables]
        images_shape, self._dim = encoder.input_shape, encoder.output_shape[-1]

        def signature(function, shape, dtype, name):
            spec = [tf.TensorSpec(shape, dtype, name)]
            return tf.function(function, input_signature=spec, autograph=False)

        self.serving_default = signature(
            lambda images: self._embed(images), images_shape, tf.float32, "images"
        )
        # The other two call the first, so that the encoder is traced and stored once. A
        # signature has one dtype; a client of uint8 sends a quarter of the bytes.
        self.serve_uint8 = signature(
            lambda images: self.serving_default(tf.cast(images, tf.float32)),
            images_shape,
            tf.uint8,
            "images",
        )
        self.serve_bytes = signature(
            lambda image_bytes: self.serving_default(self._read(image_bytes)),
            [None],
            tf.string,
            "image_bytes",
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
        found = tf.cond(empty, lambda: nothing, forward)
        if self._class_names is None:
            return {"embedding": found}
        # As many rows as images, which a server expects of every output.
        order = tf.argsort(found, direction="DESCENDING", stable=True)
        return {
            "classes": tf.gather(self._class_names, order),
            "probabilities": tf.gather(found, order, batch_dims=1),
        }

    def _read(self, image_bytes):
        """Encoded images [batch] as squares, float32 [batch, size, size, 3]."""
        count = tf.size(image_bytes, tf.int64)
        blank = tf.zeros([self._size, self._size, self._decoder.channels])

        def read(index, encoded):
            large = pixel_count(encoded) > self._max_pixels

            def square():
                image = decode(encoded, self._decoder, portable=True)
                return center_crop(image, self._size)

            return index, tf.cond(large, lambda: blank, square), large

        # The decoder's own error does not say which image it is about, so undecodable
        # ones are left out and then counted. Decoding is parallel here.
        images = tf.data.Dataset.from_tensor_slices(image_bytes).enumerate()
        images = images.map(plain(read), tf.data.AUTOTUNE).ignore_errors()
        # At least one element, for an empty batch.
        end = tf.data.Dataset.from_tensors((count, blank, False))
        batch = images.concatenate(end).batch(count + 1)
        indices, squares, large = batch.get_single_element()
        missing = tf.sets.difference([tf.range(count)], [indices[:-1]]).values
        decoded = _refuse(missing, "cannot be decoded as JPEG, PNG, GIF, BMP or WebP")
        too_large = tf.boolean_mask(indices, large)
        fitting = _refuse(too_large, f"have more than {self._max_pixels:,} pixels")
        with tf.control_dependencies([decoded, fitting]):
            return tf.identity(squares[:-1])


def _refuse(indices, reason):
    """An operation that fails with the indices of images if there are any."""
    message = tf.strings.format("image_bytes at {} " + reason, indices)
    return tf.debugging.Assert(tf.size(indices) == 0, [message])


def save_saved_model(
    encoder,
    size,
    folder,
    warmup=None,
    description=None,
    **serving,
):
    """Writes the next version of a SavedModel, for TF Serving to load as it is.

    Args:
        encoder: `keras.Model` from images in 0-255 to features [batch, dim].
        size: side in pixels that encoded images are resized to.
        folder: folder of the versions; made if absent. Versions are never overwritten.
        warmup: whether to write warm-up requests; None does if it can.
        description: dict to put beside the model as `assets.extra/encoder.json`.
        **serving: further arguments of `ServingModule`.

    Returns:
        Path of the version's folder.

    Raises:
        UsageError: if `warmup` is asked for and the package for it is missing.
    """
    if warmup is None:
        warmup = has_module("tensorflow_serving")
    elif warmup and not has_module("tensorflow_serving"):
        raise UsageError(f"Warm-up requests need the serving API: {_SERVING_API}")
    os.makedirs(folder, exist_ok=True)
    # A server that watches the folder ignores names that are no numbers.
    temporary = tempfile.mkdtemp(prefix=TEMPORARY, dir=folder)
    try:
        served = ServingModule(encoder, size, **serving)
        with naming_disk_errors(folder):
            tf.saved_model.save(served, temporary, signatures=served.signatures)
        extra = os.path.join(temporary, "assets.extra")
        os.makedirs(extra)
        write_json(
            RunFolder(extra).description,
            {**(description or {}), "input_size": [size, size]},
        )
        if warmup:
            write_warmup(
                os.path.join(extra, "tf_serving_warmup_requests"),
                [size if side is None else side for side in encoder.input_shape[1:3]],
                channels=encoder.input_shape[-1],
            )
        os.chmod(temporary, 0o755)  # mkdtemp's are for their owner alone
        with naming_disk_errors(folder):
            return _rename_to_next_version(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def has_module(name):
    """Whether a Python module is installed."""
    return importlib.util.find_spec(name) is not None


def _rename_to_next_version(temporary, folder):
    while True:
        versions = [int(name) for name in os.listdir(folder) if name.isdecimal()]
        path = os.path.join(folder, str(max(versions, default=0) + 1))
        try:
            replace_on_disk(temporary, path)
            return path
        except OSError as error:
            # Another export took the number.
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise


def write_warmup(path, image_size, batch_sizes=(1, 8), channels=3):
    """Writes requests that TF Serving runs before it calls a model available.

    Args:
        path: file to write, `assets.extra/tf_serving_warmup_requests`.
        image_size: height and width of the images, in pixels.
        batch_sizes: sizes of the requests' batches.
        channels: channels of the images.
    """
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    gray = np.full([*image_size, channels], 128, np.uint8)
    requests = {
        "serving_default": ("images", gray.astype(np.float32)),
        "serve_uint8": ("images", gray),
        "serve_bytes": ("image_bytes", tf.io.encode_png(gray).numpy()),
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
