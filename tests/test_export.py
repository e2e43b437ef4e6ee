"""The SavedModel as a server sees it, and the other formats."""

import io
import json
import os
import pathlib
import subprocess
import sys

import cpp_loader
import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from options import parse
from PIL import Image

from ressl_keras import UsageError, build_backbone
from ressl_keras.commands import export as export_command
from ressl_keras.commands.export import ExportOptions
from ressl_keras.config import Config
from ressl_keras.data import shapes
from ressl_keras.data.datasets import Dataset, load_dataset
from ressl_keras.data.images import ArrayImages
from ressl_keras.encoders import export, serving
from ressl_keras.encoders.building import build_encoder
from ressl_keras.encoders.encoder import load_encoder
from ressl_keras.training.exporting import export_encoder
from ressl_keras.training.pretrain import pretrain

SIZE = 32


def encoded(pixels, kind="PNG", mode="RGB", **options):
    """An image file's bytes, by Pillow."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def difference(first, second):
    return float(np.abs(np.asarray(first) - np.asarray(second)).max())


@pytest.fixture(scope="module")
def backbone():
    keras.utils.set_random_seed(0)
    return build_backbone("resnet10_small", (SIZE, SIZE, 3), width=4)


@pytest.fixture(scope="module")
def workdir(backbone, tmp_path_factory):
    """A work directory with an exported encoder."""
    folder = tmp_path_factory.mktemp("run")
    encoder = build_encoder(backbone, any_size=True)
    export.save_all(
        encoder, str(folder), SIZE, {"method": "ressl"}, log=lambda line: None
    )
    return folder


@pytest.fixture(scope="module")
def encoder(workdir):
    return load_encoder(str(workdir))


@pytest.fixture(scope="module")
def served(workdir):
    return tf.saved_model.load(str(workdir / "export" / "1")).signatures


@pytest.fixture(scope="module")
def images():
    return shapes.render(20, seed=2, size=SIZE)[0]


def test_all_signatures_give_the_embeddings_of_the_keras_file(served, encoder, images):
    expected = encoder(images)
    files = [encoded(image) for image in images]
    results = {
        "serving_default": {"images": images.astype(np.float32)},
        "serve_uint8": {"images": images},
        "serve_bytes": {"image_bytes": tf.constant(files)},
    }
    for name, inputs in results.items():
        embedding = served[name](**inputs)["embedding"]
        assert embedding.dtype == tf.float32
        print(f"{name}: largest difference {difference(embedding, expected):.1e}")
        assert difference(embedding, expected) <= 1e-5


@pytest.mark.long
def test_cifar10_images_have_the_same_embedding_in_memory_and_in_every_file(
    shared, served, encoder, backbone
):
    cifar = load_dataset("cifar10", str(shared("tfds")), download=False).test
    images = cifar.images[:256]
    in_memory = build_encoder(backbone)(images)
    files = [encoded(image) for image in images.numpy()]
    others = {
        "encoder.keras": encoder(images),
        "serving_default": served["serving_default"](images=tf.cast(images, "float32"))[
            "embedding"
        ],
        "serve_bytes": served["serve_bytes"](image_bytes=tf.constant(files))[
            "embedding"
        ],
    }
    for name, embedding in others.items():
        found = difference(embedding, in_memory)
        print(f"CIFAR-10, 256 images, {name}: largest difference {found:.1e}")
        assert found <= 1e-5


@pytest.mark.parametrize("size", [(32, 32), (48, 40), (90, 300)])
def test_a_jpeg_is_embedded_as_tensorflow_reads_it(size, served, encoder, random):
    coarse = random.integers(0, 256, [6, 8, 3]).astype(np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.BICUBIC))
    jpeg = encoded(pixels, "JPEG", quality=90)
    image = tf.io.decode_jpeg(jpeg, channels=3)
    if size != (SIZE, SIZE):
        scale = 37 / min(size)
        shape = [round(side * scale) for side in size]
        image = tf.image.resize(image, shape, antialias=True)
        image = tf.image.resize_with_crop_or_pad(image, SIZE, SIZE)
    expected = encoder(image[tf.newaxis])
    embedding = served["serve_bytes"](image_bytes=tf.constant([jpeg]))["embedding"]
    print(f"JPEG {size}: largest difference {difference(embedding, expected):.1e}")
    assert difference(embedding, expected) <= 1e-5


@pytest.mark.long
def test_a_process_with_tensorflow_alone_serves_the_same(
    workdir, encoder, images, tmp_path
):
    np.savez(
        tmp_path / "requests.npz",
        images=images.astype(np.float32),
        files=np.array([encoded(image) for image in images], object),
    )
    program = (
        "import sys, numpy as np, tensorflow as tf\n"
        f"served = tf.saved_model.load({str(workdir / 'export' / '1')!r}).signatures\n"
        "requests = np.load('requests.npz', allow_pickle=True)\n"
        "images = tf.constant(requests['images'])\n"
        "files = tf.constant(list(requests['files']))\n"
        "np.savez('answers.npz',\n"
        "    pixels=served['serving_default'](images=images)['embedding'],\n"
        "    files=served['serve_bytes'](image_bytes=files)['embedding'])\n"
        "assert 'ressl_keras' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
    for name, embedding in np.load(tmp_path / "answers.npz").items():
        found = difference(embedding, encoder(images))
        print(f"fresh process, {name}: largest difference {found:.1e}")
        assert found <= 1e-5


@pytest.mark.long
def test_the_loader_that_a_server_uses_answers_as_keras_does(
    workdir, encoder, images, tmp_path
):
    """TF_LoadSessionFromSavedModel, called by its C interface, without Python."""
    files = [encoded(image) for image in images]
    answers = cpp_loader.ask(workdir / "export" / "1", images, files, tmp_path)
    assert len(answers) == 3
    for (signature, _), embedding in answers.items():
        found = difference(embedding, encoder(images))
        print(f"C++ loader, {signature}: largest difference {found:.1e}")
        assert found <= 1e-5


@pytest.mark.long
def test_saved_model_cli_shows_and_runs_both_signatures(
    workdir, encoder, images, tmp_path
):
    model = workdir / "export" / "1"
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "files.npy", np.array([encoded(image) for image in images]))
    cli = pathlib.Path(sys.executable).with_name("saved_model_cli")

    def run(signature, inputs):
        where = ["--dir", model, "--tag_set", "serve", "--signature_def", signature]
        out = ["--outdir", tmp_path / signature]
        return start(cli, "run", *where, "--inputs", inputs, *out)

    def start(*command):
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    running = [
        start(cli, "show", "--dir", model, "--all"),
        run("serving_default", f"images={tmp_path}/images.npy"),
        run("serve_bytes", f"image_bytes={tmp_path}/files.npy"),
    ]
    outputs = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    for signature in ("serving_default", "serve_bytes"):
        found = difference(
            np.load(tmp_path / signature / "embedding.npy"), encoder(images)
        )
        print(f"saved_model_cli, {signature}: largest difference {found:.1e}")
        assert found <= 1e-5
    shown = outputs[0]
    assert "signature_def['serving_default']" in shown
    assert "signature_def['serve_bytes']" in shown
    assert "shape: (-1, -1, -1, 3)" in shown and "shape: (-1, 32)" in shown


@pytest.mark.parametrize("kind", ["text", "truncated", "empty"])
def test_one_corrupt_image_is_named_and_the_next_request_is_answered(
    kind, served, images
):
    jpeg = encoded(images[0], "JPEG")
    corrupt = {"text": b"no image", "truncated": jpeg[:300], "empty": b""}[kind]
    serve = served["serve_bytes"]
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        serve(image_bytes=tf.constant([jpeg, jpeg, corrupt, jpeg]))
    assert "image_bytes at [2] cannot be decoded" in str(caught.value)
    assert serve(image_bytes=tf.constant([jpeg]))["embedding"].shape == (1, 32)


def test_an_empty_batch_has_no_embeddings(served):
    nothing = {
        "serving_default": {"images": tf.zeros([0, SIZE, SIZE, 3])},
        "serve_uint8": {"images": tf.zeros([0, SIZE, SIZE, 3], tf.uint8)},
        "serve_bytes": {"image_bytes": tf.constant([], tf.string)},
    }
    for name, inputs in nothing.items():
        assert served[name](**inputs)["embedding"].shape == (0, 32)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (700, 3), (33, 31)])
def test_images_of_any_shape_are_embedded(size, served, random):
    pixels = random.integers(0, 256, [*size, 3]).astype(np.uint8)
    result = served["serve_bytes"](image_bytes=tf.constant([encoded(pixels)]))
    assert np.isfinite(result["embedding"]).all()
    result = served["serving_default"](images=pixels[np.newaxis].astype(np.float32))
    assert np.isfinite(result["embedding"]).all()


@pytest.mark.parametrize(
    "kind, mode, tolerance",
    [
        ("PNG", "L", 1e-5),
        ("PNG", "RGBA", 1e-5),
        ("PNG", "P", 1e-5),
        ("PNG", "1", 1e-5),
        # TensorFlow decodes JPEG with another, faster cosine transform.
        ("JPEG", "L", 0.02),
        ("JPEG", "CMYK", 0.02),
    ],
)
def test_other_colour_spaces_are_read_as_pillow_reads_them(
    kind, mode, tolerance, served, encoder, images
):
    image = encoded(images[3], kind, mode)
    expected = encoder(
        np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))[np.newaxis]
    )
    embedding = served["serve_bytes"](image_bytes=tf.constant([image]))["embedding"]
    print(f"{kind} {mode}: largest difference {difference(embedding, expected):.1e}")
    assert difference(embedding, expected) <= tolerance


@pytest.mark.long
def test_embeddings_have_unit_length_in_every_format_on_request(
    backbone, images, tmp_path
):
    plain = build_encoder(backbone)(images).numpy()
    expected = plain / np.linalg.norm(plain, axis=1, keepdims=True)
    encoder = build_encoder(backbone, any_size=True, normalize=True)
    export.save_all(
        encoder, tmp_path, SIZE, {}, ["litert"], lambda line: None, warmup=False
    )
    served = tf.saved_model.load(str(tmp_path / "export" / "1")).signatures
    pixels = images.astype(np.float32)
    found = {
        "keras": keras.models.load_model(tmp_path / "encoder.keras")(pixels),
        "saved_model": served["serving_default"](images=pixels)["embedding"],
        "litert": litert(tmp_path / "encoder.tflite", pixels),
    }
    for name, embedding in found.items():
        np.testing.assert_allclose(embedding, expected, atol=1e-5, err_msg=name)


@pytest.mark.long
def test_a_new_export_takes_the_next_number_and_leaves_the_others(backbone, tmp_path):
    encoder = build_encoder(backbone)
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "note").write_text("mine")
    (tmp_path / "latest").mkdir()
    first = serving.save_saved_model(encoder, SIZE, str(tmp_path), warmup=False)
    second = serving.save_saved_model(encoder, SIZE, str(tmp_path), warmup=False)
    assert [os.path.basename(path) for path in (first, second)] == ["8", "9"]
    assert sorted(os.listdir(tmp_path)) == ["7", "8", "9", "latest"]
    assert (tmp_path / "7" / "note").read_text() == "mine"


def test_a_failed_export_leaves_nothing_behind(backbone, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(tf.saved_model, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        serving.save_saved_model(build_encoder(backbone), SIZE, str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_another_export_may_take_the_number(backbone, tmp_path, monkeypatch):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_text("the other's")
    nothing, listdir = iter([[]]), os.listdir  # as it was a moment before
    monkeypatch.setattr(os, "listdir", lambda path: next(nothing, listdir(path)))
    monkeypatch.setattr(tf.saved_model, "save", lambda *args, **kwargs: None)
    made = serving.save_saved_model(build_encoder(backbone), SIZE, str(tmp_path), False)
    assert made == str(tmp_path / "2")
    assert (tmp_path / "2" / "assets.extra" / "encoder.json").exists()
    assert (tmp_path / "1" / "saved_model.pb").read_text() == "the other's"


@pytest.mark.long
def test_a_saved_model_is_an_encoder_of_the_right_size(workdir, encoder, images):
    loaded = load_encoder(str(workdir / "export" / "1"))
    assert loaded.input_shape == (None, SIZE, SIZE, 3)
    assert difference(loaded(images), encoder(images)) <= 1e-5


@pytest.mark.long
def test_warmup_requests_are_answered_by_the_model(workdir, served):
    apis = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    path = workdir / "export" / "1" / "assets.extra" / "tf_serving_warmup_requests"
    asked = []
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        request = apis.PredictionLog.FromString(record).predict_log.request
        inputs = {k: tf.make_ndarray(v) for k, v in request.inputs.items()}
        inputs = {
            k: tf.constant(v, tf.string if v.dtype == object else None)
            for k, v in inputs.items()
        }
        name = request.model_spec.signature_name
        count = len(next(iter(inputs.values())))
        assert served[name](**inputs)["embedding"].shape == (count, 32)
        asked.append(name)
    assert set(asked) == {"serving_default", "serve_uint8", "serve_bytes"}


RUNS = {
    "plain": {},
    # All that an export has to build again in one run.
    "everything": {
        "predictor_dim": 12,
        "crops": (SIZE, 24),
        "image_size": SIZE,
        "batch_norm": "synchronized",
        "precision": "mixed_float16",
        "knn_every": 1,
    },
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, light_backbone):
    """Runs of two steps, as training leaves them: dict from name to folder."""
    pixels, labels = shapes.render(32, seed=0, size=SIZE)
    images = ArrayImages(pixels, labels)
    dataset = Dataset("drawn", images, images, images, list(shapes.CLASS_NAMES))
    folders = {}
    for name, settings in RUNS.items():
        folders[name] = tmp_path_factory.mktemp("run")
        config = Config(
            hidden_dim=16,
            embedding_dim=8,
            queue_size=64,
            batch_size=16,
            epochs=1,
            warmup_epochs=0,
            **settings,
        )
        options = {"verbose": False, "log": lambda line: None}
        pretrain(dataset, folders[name], config, **options)
    return folders


@pytest.fixture
def run(runs):
    return runs["plain"]


def checkpoint(folder):
    """Arrays of the newest checkpoint of a run, by their path in the file."""
    found = {}

    def keep(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    (path,) = (folder / "checkpoints").glob("step-*")
    with h5py.File(path) as file:
        file.visititems(keep)
    return found


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("network", ["student", "teacher"])
def test_every_run_is_exported_with_the_weights_of_its_checkpoint(name, network, runs):
    path = export_encoder(str(runs[name]), network, log=lambda line: None)
    saved = checkpoint(runs[name])
    # Layers that student and backbone share are saved below the backbone.
    student = {key for key in saved if key.startswith(("backbone/", "optimizer/"))}
    keys = student if network == "student" else saved.keys() - student
    saved = [saved[key] for key in keys]
    trained = [w for w in load_encoder(path).weights if w.shape != (1, 1, 1, 3)]
    assert len(trained) == 5  # of a convolution and a batch norm
    for weight in trained:
        assert any(np.array_equal(weight, array) for array in saved), weight.path
    described = json.loads((runs[name] / "encoder.json").read_text())
    assert described["network"] == network
    assert described["steps"] == 2 and described["dataset"] == "drawn"
    assert (described["knn_top1"] is not None) == (network == "student")


def test_an_encoder_with_projector_returns_the_embeddings(run, images):
    plain = load_encoder(export_encoder(str(run), log=lambda line: None))
    path = export_encoder(str(run), with_projector=True, log=lambda line: None)
    features, embeddings = plain(images).numpy(), load_encoder(path)(images)
    arrays = list(load_encoder(path).get_weights()[-4:])
    hidden = np.maximum(features @ arrays[0] + arrays[1], 0)
    assert difference(hidden @ arrays[2] + arrays[3], embeddings) <= 1e-4
    assert embeddings.shape == (20, 8)


def test_the_command_exports_a_run(run, capsys):
    versions = len(list((run / "export").glob("*")))
    export_command.export(parse(ExportOptions, f"--workdir={run}"))
    assert "student of step 2" in capsys.readouterr().out
    assert len(list((run / "export").glob("*"))) == versions + 1


@pytest.mark.long
def test_another_network_never_replaces_an_encoder_without_a_word(run, tmp_path):
    lines = []
    export_encoder(str(run), log=lambda line: None)
    student = (run / "encoder.keras").read_bytes()
    export_encoder(str(run), "teacher", log=lines.append, output=str(tmp_path / "t"))
    assert (run / "encoder.keras").read_bytes() == student
    assert "Replaces" not in "".join(lines)
    export_encoder(str(run), "teacher", log=lines.append)
    (said,) = [line for line in lines if "Replaces" in line]
    assert "of the student by that of the teacher; --output=FOLDER" in said
    lines.clear()
    export_encoder(str(run), "teacher", log=lines.append)
    assert "Replaces" not in "".join(lines)


def test_an_encoder_from_elsewhere_is_exported(tmp_path, random):
    images = keras.Input([None, None, 3])
    maps = keras.layers.Conv2D(4, 3)(images)
    features = keras.layers.GlobalAveragePooling2D()(maps)
    keras.Model(images, features).save(tmp_path / "mine.keras")
    words = [f"--encoder={tmp_path / 'mine.keras'}", f"--output={tmp_path / 'out'}"]
    with pytest.raises(UsageError, match="give --image_size"):
        export_command.export(parse(ExportOptions, *words))
    words += ["--image_size=16", "--preprocessing=tf", "--normalize"]
    export_command.export(parse(ExportOptions, *words))
    pixels = random.integers(0, 256, [2, 16, 16, 3]).astype(np.float32)
    expected = keras.Model(images, features)(pixels / 127.5 - 1).numpy()
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    served = tf.saved_model.load(str(tmp_path / "out" / "export" / "1")).signatures
    files = tf.constant([encoded(image.astype(np.uint8)) for image in pixels])
    found = served["serve_bytes"](image_bytes=files)["embedding"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    again = load_encoder(str(tmp_path / "out"))
    assert again.image_size == 16
    np.testing.assert_allclose(again(pixels), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--workdir, the folder of a run, or --encoder"),
        (["--workdir=a", "--encoder=b.keras"], "--workdir, the folder of a run, or"),
        (["--encoder=b.keras", "--network=teacher"], "are for a run, --workdir"),
        (["--workdir=a", "--preprocessing=tf"], "is for --encoder"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(words, message):
    with pytest.raises(UsageError, match=message):
        parse(ExportOptions, *words)


def test_what_cannot_be_exported_is_one_clear_line(run, tmp_path, monkeypatch):
    folder = run
    with pytest.raises(UsageError, match="not a run"):
        export_encoder(str(tmp_path))
    (tmp_path / "flags.txt").write_text((folder / "flags.txt").read_text())
    with pytest.raises(UsageError, match="no checkpoint"):
        export_encoder(str(tmp_path))
    with pytest.raises(UsageError, match="Unknown network"):
        export_encoder(str(folder), "pupil")
    with pytest.raises(UsageError, match="Unknown format"):
        export_encoder(str(folder), formats=["caffe"])
    for module in (export, serving):
        monkeypatch.setattr(module, "has_module", lambda name: False)
    with pytest.raises(UsageError, match="pip install tf2onnx onnx"):
        export_encoder(str(folder), formats=["onnx"])
    with pytest.raises(UsageError, match="tensorflow-serving-api"):
        export_encoder(str(folder), warmup=True)


def test_onnx_computes_the_same(encoder, images, tmp_path):
    pytest.importorskip("tf2onnx")
    reference = pytest.importorskip("onnx.reference")
    path = export.save_format(encoder, str(tmp_path), "onnx", SIZE)
    answer = reference.ReferenceEvaluator(path).run(
        None, {"images": images[:4].astype(np.float32)}
    )[0]
    print(f"ONNX: largest difference {difference(answer, encoder(images[:4])):.1e}")
    assert difference(answer, encoder(images[:4])) <= 1e-4


def litert(path, images):
    """What a LiteRT file makes of images."""
    interpreter = tf.lite.Interpreter(str(path))
    (takes,), (gives,) = (
        interpreter.get_input_details(),
        interpreter.get_output_details(),
    )
    interpreter.resize_tensor_input(takes["index"], images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(takes["index"], images)
    interpreter.invoke()
    return interpreter.get_tensor(gives["index"])


@pytest.mark.long
def test_litert_computes_the_same(encoder, images, tmp_path):
    path = export.save_format(encoder, str(tmp_path), "litert", SIZE)
    answer = litert(path, images[:4].astype(np.float32))
    print(f"LiteRT: largest difference {difference(answer, encoder(images[:4])):.1e}")
    assert difference(answer, encoder(images[:4])) <= 1e-4
