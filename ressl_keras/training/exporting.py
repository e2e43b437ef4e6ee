"""Exporting the encoder of a run, finished or not."""

import os
from collections.abc import Callable, Sequence

from ressl_keras.config import MAX_PIXELS, Config
from ressl_keras.encoders.encoder import load_encoder
from ressl_keras.encoders.export import check_formats, save_all
from ressl_keras.errors import UsageError
from ressl_keras.run_folder import RunFolder
from ressl_keras.training import checkpoints
from ressl_keras.training.backbones import own_network
from ressl_keras.training.build import Plan, build_model, decoder_of

NETWORKS = ("student", "teacher")


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
) -> str:
    """Exports the encoder of a run from its last checkpoint.

    Writes `encoder.keras`, `encoder.json`, the next version of the SavedModel in
    `export`, and the other formats.

    Args:
        workdir: the run's folder, with `flags.txt` and `checkpoints`.
        network: `student` or `teacher`.
        with_projector: whether to keep the projector behind the backbone.
        normalize: whether the SavedModel's embeddings are scaled to unit length.
        formats: names from `encoders.export.FORMATS`: `onnx`, `litert`.
        warmup: whether to write warm-up requests; None does if it can.
        image_size: side of the encoder's images in pixels; None takes the run's.
        log: called with a line of text.
        max_pixels: encoded images with more are refused by the SavedModel.

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
        own = own_network(config.backbone, folder, size, channels=config.channels)
        plan = Plan(size, channels=config.channels)
        model = build_model(config, plan, network=own)
        step = checkpoints.restore(model, folder.checkpoints)
        if not step:
            raise UsageError(f"{workdir} has no undamaged checkpoint to export.")
        checkpoints.check_finite(model)
        log(f"{network} of step {step}, from {folder.checkpoints}.")
        backbone, projector = getattr(model, network).layers[-2:]
        # The metrics table judges the student's backbone.
        judged = network == "student" and not with_projector
        return save_all(
            backbone,
            workdir,
            size,
            {
                **facts(
                    config,
                    folder.dataset_name(),
                    step,
                    folder.last_metric("knn_top1") if judged else None,
                ),
                "network": network,
                "projector": with_projector,
            },
            projector if with_projector else None,
            normalize,
            formats,
            warmup,
            log,
            max_pixels,
            decoder_of(config),
        )


def facts(config, dataset_name, step, knn_top1):
    """What `encoder.json` says of the run that an encoder comes from, a dict."""
    return {
        "method": config.objective or config.method,
        "backbone": config.backbone,
        "dataset": dataset_name,
        "steps": step,
        "batch_size": config.batch_size,
        "knn_top1": knn_top1,
    }


def _image_size(folder, config):
    """Side of the images that the run was trained on."""
    if config.image_size:
        return config.image_size
    try:
        return load_encoder(folder.encoder).input_shape[1]
    except UsageError:
        raise UsageError(
            f"The size of the images of {folder.path} is not known yet; give "
            "--image_size."
        ) from None
