"""Runs a SavedModel as TensorFlow Serving does, through the C++ loader, without Python.

  python tests/cpp_loader.py SAVED_MODEL INPUTS.npz NAMES.txt OUTPUTS.npz

The library in TensorFlow's wheel is called by its C interface; the Python package is
not imported. INPUTS has an array for each signature: images, or the bytes of files as
rows of uint8, with their lengths. A line of NAMES is a signature, its input, an output,
and the output's name in OUTPUTS: a matrix of floats or of byte strings.
"""

import ctypes
import importlib.util
import pathlib
import subprocess
import sys

import numpy as np

FLOAT, UINT8, STRING = 1, 4, 7  # of enum TF_DataType
TSTRING = 24  # bytes of a TF_TString
# Functions that return a pointer.
POINTERS = ("TF_NewStatus", "TF_NewSessionOptions", "TF_NewGraph", "TF_NewBuffer")
POINTERS += ("TF_LoadSessionFromSavedModel", "TF_GraphOperationByName")
POINTERS += ("TF_AllocateTensor", "TF_TensorData", "TF_StringGetDataPointer")
pointer, size = ctypes.c_void_p, ctypes.c_size_t


class Output(ctypes.Structure):
    """TF_Output: a tensor of an operation."""

    _fields_ = [("operation", pointer), ("index", ctypes.c_int)]


def library():
    """The C interface, with the types of what it returns."""
    folder = pathlib.Path(importlib.util.find_spec("tensorflow").origin).parent
    tf = ctypes.CDLL(str(folder / "libtensorflow_cc.so.2"), ctypes.RTLD_GLOBAL)
    for name in POINTERS:
        getattr(tf, name).restype = pointer
    tf.TF_Message.restype = ctypes.c_char_p
    tf.TF_Dim.restype = ctypes.c_int64
    tf.TF_StringGetSize.restype = size
    return tf


class Session:
    """A SavedModel that the C++ loader has loaded."""

    def __init__(self, path):
        self.tf = library()
        self.status, self.graph = pointer(self.tf.TF_NewStatus()), None
        self.graph = pointer(self.tf.TF_NewGraph())
        tags = (ctypes.c_char_p * 1)(b"serve")
        self.session = pointer(
            self.tf.TF_LoadSessionFromSavedModel(
                pointer(self.tf.TF_NewSessionOptions()),
                None,
                str(path).encode(),
                tags,
                1,
                self.graph,
                pointer(self.tf.TF_NewBuffer()),
                self.status,
            )
        )
        self.check()

    def check(self):
        """Raises the message of a failed call."""
        if self.tf.TF_GetCode(self.status):
            raise RuntimeError(self.tf.TF_Message(self.status).decode())

    def run(self, feed, fetch, tensor):
        """The matrix that an output has for an input, both "operation:index"."""
        result = pointer()
        self.tf.TF_SessionRun(
            self.session,
            None,
            ctypes.byref(self._output(feed)),
            (pointer * 1)(tensor),
            1,
            ctypes.byref(self._output(fetch)),
            ctypes.byref(result),
            1,
            None,
            0,
            None,
            self.status,
        )
        self.check()
        shape = [self.tf.TF_Dim(result, axis) for axis in range(2)]
        start = self.tf.TF_TensorData(result)
        if self.tf.TF_TensorType(result) == STRING:
            places = range(start, start + TSTRING * shape[0] * shape[1], TSTRING)
            return np.array([self._text(place) for place in places]).reshape(shape)
        data = ctypes.cast(pointer(start), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(data, shape).copy()

    def _text(self, place):
        """The bytes of the TF_TString at an address."""
        place = pointer(place)
        data = self.tf.TF_StringGetDataPointer(place)
        return ctypes.string_at(data, self.tf.TF_StringGetSize(place))

    def _output(self, name):
        operation, _, index = name.partition(":")
        found = self.tf.TF_GraphOperationByName(self.graph, operation.encode())
        return Output(found, int(index))

    def images(self, array, dtype):
        """A tensor of images."""
        dims = (ctypes.c_int64 * array.ndim)(*array.shape)
        tensor = self.tf.TF_AllocateTensor(dtype, dims, array.ndim, size(array.nbytes))
        target = self.tf.TF_TensorData(pointer(tensor))
        ctypes.memmove(target, np.ascontiguousarray(array).ctypes.data, array.nbytes)
        return tensor

    def strings(self, texts):
        """A tensor of byte strings."""
        dims = (ctypes.c_int64 * 1)(len(texts))
        tensor = self.tf.TF_AllocateTensor(STRING, dims, 1, size(TSTRING * len(texts)))
        start = self.tf.TF_TensorData(pointer(tensor))
        for index, text in enumerate(texts):
            place = pointer(start + TSTRING * index)
            self.tf.TF_StringInit(place)
            self.tf.TF_StringCopy(place, text, size(len(text)))
        return tensor


def main(path, inputs, names, outputs):
    """Runs each signature on its array; `names` has its input and output tensors."""
    session, given, found = Session(path), np.load(inputs), {}
    for line in pathlib.Path(names).read_text().splitlines():
        signature, feed, fetch, name = line.split()
        array = given[signature]
        if signature == "serve_bytes":
            lengths = given["lengths"]
            texts = [row[:n].tobytes() for row, n in zip(array, lengths)]
            tensor = session.strings(texts)
        else:
            dtype = UINT8 if array.dtype == np.uint8 else FLOAT
            tensor = session.images(array, dtype)
        found[name] = session.run(feed, fetch, tensor)
    assert "tensorflow" not in sys.modules
    np.savez(outputs, **found)


def ask(saved_model, images, files, folder):
    """Runs all signatures of a SavedModel in a process of their own.

    Args:
        saved_model: folder of the SavedModel.
        images: uint8 array [count, height, width, channels].
        files: list of the same images as bytes of files.
        folder: folder for what the two processes exchange.

    Returns:
        Dict from (signature, output) to its matrix.
    """
    import tensorflow as tf  # only the process that asks has it

    lengths = [len(file) for file in files]
    padded = np.zeros([len(files), max(lengths)], np.uint8)
    for row, file in zip(padded, files):
        row[: len(file)] = np.frombuffer(file, np.uint8)
    np.savez(
        folder / "inputs.npz",
        serving_default=images.astype(np.float32),
        serve_uint8=images,
        serve_bytes=padded,
        lengths=lengths,
    )
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], str(saved_model))
    lines = []
    for signature in ("serving_default", "serve_uint8", "serve_bytes"):
        definition = loaded.signature_def[signature]
        (feed,) = definition.inputs.values()
        for name, fetch in definition.outputs.items():
            lines.append(f"{signature} {feed.name} {fetch.name} {signature}/{name}")
    (folder / "names.txt").write_text("\n".join(lines))
    exchanged = [folder / name for name in ("inputs.npz", "names.txt", "outputs.npz")]
    subprocess.run([sys.executable, __file__, saved_model, *exchanged], check=True)
    with np.load(exchanged[-1]) as answers:
        return {tuple(name.split("/")): answers[name] for name in answers}


if __name__ == "__main__":
    main(*sys.argv[1:])
