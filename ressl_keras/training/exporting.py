"""Exporting the encoder of a run, finished or not, or one in a file."""

import os
from collections.abc import Callable, Sequence

from ressl_keras.config import MAX_PIXELS, Config
from ressl_keras.encoders.building import build_encoder, normalized
from ressl_keras.encoders.encoder import (
    described_in,
    is_frozen,
    load_encoder,
    write_encoder,
)
from ressl_keras.encoders.export import check_formats, save_all
from ressl_keras.errors import UsageError
from ressl_keras.files import read_json
from ressl_keras.run_folder import RunFolder
from ressl_keras.training import checkpoints
from ressl_keras.training.backbones import own_network
from ressl_keras.training.build import Plan, build_model, decoder_of, network_size

NETWORKS = ("student", "teacher")
# Facts in `encoder.json` that tell one exported network from another.
_IDENTITY = ("network", "projector", "normalized", "source")


def export_encoder(
    workdir: str | os.PathLike,
    network: str = "student",
    with_projector: bool = False,
    normalize: bool = False,
    formats: Sequence[str] = (),
    warmup: bool | None = None,
    image_size: int | None = None,
    log: Callable[[str], object] = print,
    max_pixels: int = MAX_PIXELS,
    output: str | os.PathLike | None = None,
) -> str:
    """Exports the encoder of a run from its last checkpoint.

    Writes `encoder.keras`, `encoder.json`, the next version of the SavedModel in
    `export`, and the other formats. It says so where that replaces the file of another
    network.

    Args:
        workdir: the run's folder, with `flags.txt` and `checkpoints`.
        network: `student` or `teacher`.
        with_projector: whether to keep the projector behind the backbone.
        normalize: whether embeddings are scaled to unit length, in every format.
        formats: names from `encoders.export.FORMATS`: `onnx`, `litert`.
        warmup: whether to write warm-up requests; None does if it can.
        image_size: side of the encoder's images in pixels; None takes the run's.
        log: called with a line of text.
        max_pixels: encoded images with more are refused by the SavedModel.
        output: folder to write into; None takes the run's.

    Returns:
        Path of the encoder's file.

    Raises:
        UsageError: if there is no such run, another process trains or exports there,
            or a library is missing.

    Example:

    >>> export_encoder("runs/cifar10", formats=["onnx"])
    'runs/cifar10/encoder.keras'
    """
    if network not in NETWORKS:
        raise UsageError(f"Unknown network '{network}'; known are student and teacher.")
    check_formats(formats)
    folder = RunFolder(workdir)
    config = folder.read_config(Config)
    if not checkpoints.last_step(folder.checkpoints):
        raise UsageError(f"{workdir} has no checkpoint to export.")
    size = image_size or _image_size(folder, config)
    with folder.locked():
        model, step = _restored(folder, config, size)
        log(f"{network} of step {step}, from {folder.checkpoints}.")
        backbone, projector = getattr(model, network).layers[-2:]
        described = {
            **_described(folder, config, step, network, with_projector),
            "normalized": normalize,
        }
        target = RunFolder(output or workdir)
        target.prepare()
        _say_what_is_replaced(target, described, log)
        encoder = build_encoder(
            backbone,
            projector if with_projector else None,
            size,
            any_size=True,
            normalize=normalize,
        )
        return save_all(
            encoder,
            target.path,
            size,
            described,
            formats,
            log,
            warmup=warmup,
            max_pixels=max_pixels,
            decoder=decoder_of(config),
        )


def _restored(folder, config, size):
    """The model of a run's last sound checkpoint, and its step."""
    side = network_size(config, size)
    own = own_network(config.backbone, folder, side, channels=config.channels)
    model = build_model(config, Plan(size, channels=config.channels), network=own)
    step = checkpoints.restore(model, folder.checkpoints)
    if not step:
        raise UsageError(f"{folder.path} has no undamaged checkpoint to export.")
    checkpoints.check_finite(model)
    return model, step


def _described(folder, config, step, network, with_projector):
    """Facts about a network of a run, a dict."""
    # The metrics table judges the student's backbone.
    judged = network == "student" and not with_projector
    knn_top1 = folder.last_metric("knn_top1") if judged else None
    return {
        **facts(config, folder.dataset_name(), step, knn_top1),
        "network": network,
        "projector": with_projector,
    }


def export_file(
    path: str | os.PathLike,
    output: str | os.PathLike,
    preprocessing: str = "none",
    normalize: bool = False,
    formats: Sequence[str] = (),
    warmup: bool | None = None,
    image_size: int | None = None,
    log: Callable[[str], object] = print,
    max_pixels: int = MAX_PIXELS,
) -> str:
    """Exports an encoder in a file, trained here or elsewhere.

    Writes the next version of the SavedModel in `export` and the other formats; and
    `encoder.keras` where that would not be the file that was read. Of a classifier that
    `evaluate` kept, the SavedModel returns class names and probabilities.

    Args:
        path: a `.keras` file.
        output: folder to write into.
        preprocessing: as in `load_encoder`.
        normalize: as in `export_encoder`, and so the rest.
        formats: names from `encoders.export.FORMATS`.
        warmup: whether to write warm-up requests.
        image_size: side in pixels that encoded images are brought to; None takes the
            encoder's own.
        log: called with a line of text.
        max_pixels: encoded images with more are refused by the SavedModel.

    Returns:
        Path of the encoder's file in `output`.

    Raises:
        UsageError: if it is no image encoder, its size is not known, or a library is
            missing.
    """
    check_formats(formats)
    encoder = load_encoder(path, preprocessing)
    if is_frozen(encoder):
        raise UsageError(f"{path} is a SavedModel; --encoder takes a .keras file.")
    size = image_size or encoder.image_size
    if size is None:
        raise UsageError(
            f"{path} takes images of any size and does not say which it was trained "
            "on; give --image_size."
        )
    if encoder.input_shape[1] not in (None, size):
        raise UsageError(
            f"{path} takes images of {encoder.input_shape[1]} pixels only, not of "
            f"--image_size={size}."
        )
    target = RunFolder(output)
    target.prepare()
    same = os.path.exists(target.encoder) and os.path.samefile(path, target.encoder)
    if same and (normalize or preprocessing != "none"):
        raise UsageError(
            f"{path} would be replaced by another network; give another --output."
        )
    before = described_in(path)
    class_names = before.get("class_names")
    if class_names and normalize:
        raise UsageError("--normalize is for encoders; this is a classifier.")
    described = {"source": os.path.basename(path), "normalized": normalize}
    kept = ("class_names", "exif_orientation", "value_range")
    described |= {name: before[name] for name in kept if before.get(name) is not None}
    keras_file = not same and not class_names
    if keras_file:
        _say_what_is_replaced(target, described, log)
    return save_all(
        normalized(encoder) if normalize else encoder,
        target.path,
        size,
        described,
        formats,
        log,
        keras_file,
        warmup=warmup,
        max_pixels=max_pixels,
        decoder=encoder.decoder,
        class_names=class_names,
    )


def _say_what_is_replaced(folder, described, log):
    """Says that a folder holds the file of another network, which is replaced."""
    if not os.path.isfile(folder.encoder):
        return
    before = read_json(folder.description)
    # What training writes is the student's backbone.
    default = {"network": "student", "projector": False, "normalized": False}
    was, becomes = (
        {name: {**default, **each}.get(name) for name in _IDENTITY}
        for each in (before, described)
    )
    if was != becomes:
        log(
            f"Replaces {folder.encoder} of {_named(was)} by that of {_named(becomes)}; "
            "--output=FOLDER writes elsewhere."
        )


def _named(described):
    """Such as `the teacher with its projector, normalised`."""
    words = described["source"] or f"the {described['network']}"
    words += " with its projector" if described["projector"] else ""
    return words + (" at unit length" if described["normalized"] else "")


def keep_initial(backbone, folder, size):
    """Writes the encoder before the first step, to compare later ones with.

    Args:
        backbone: functional `keras.Model` from normalised images to features.
        folder: `RunFolder` of the run.
        size: side of the images in pixels.
    """
    encoder = build_encoder(backbone, size=size, any_size=True)
    write_encoder(encoder, folder.initial, {"input_size": [size, size]})


def facts(config, dataset_name, step, knn_top1):
    """What `encoder.json` says of the run that an encoder comes from, a dict."""
    return {
        "method": config.objective or config.method,
        "backbone": config.backbone,
        "dataset": dataset_name,
        "steps": step,
        "batch_size": config.batch_size,
        "exif_orientation": config.exif_orientation,
        "value_range": config.value_range,
        "knn_top1": knn_top1,
    }


def _image_size(folder, config):
    """Side of the images that the run was trained on."""
    if config.image_size:
        return config.image_size
    try:
        return load_encoder(folder.encoder).image_size
    except UsageError:
        raise UsageError(
            f"The size of the images of {folder.path} is not known yet; give "
            "--image_size."
        ) from None
