"""What of a run is possible but hardly meant."""

from ressl_keras.method.transformer import TRANSFORMERS

# Fewer steps than these teach next to nothing.
_FEW_STEPS = 200


def cautions(config, plan, images):
    """Lines of text about what of a run is hardly meant.

    Args:
        config: `Config`.
        plan: `Plan`.
        images: set of images to learn from.
    """
    count, size = len(images), config.queue_size
    if config.references == "queue" and size > count:
        yield (
            f"Warning: the queue of {size:,} embeddings is larger than the data set of "
            f"{count:,} images, so it holds some of them several times; "
            f"--queue_size={count} or less is better."
        )
    if plan.total_steps < _FEW_STEPS and not config.max_steps:
        yield (
            f"Warning: {plan.total_steps} steps in all teach little; a useful encoder "
            "takes some hundreds at least. More --epochs or a smaller --batch_size "
            "make more."
        )
    yield from config.without_effect(_unused(config))


def _unused(config):
    """Names of settings that this run does not read, each with the reason."""
    unused = {}
    if config.backbone not in TRANSFORMERS:
        unused["patch_size"] = f"with --backbone={config.backbone}"
    if not config.init:
        unused["init_preprocessing"] = "without --init"
    if config.optimizer == "sgd":
        unused["adam_betas"] = "with --optimizer=sgd"
    else:
        unused["sgd_momentum"] = f"with --optimizer={config.optimizer}"
    if config.objective:
        return unused
    if config.method == "moco_v2":
        of_relation = "student_temperature", "teacher_temperature", "info_nce_epochs"
        unused |= dict.fromkeys(of_relation, "with --method=moco_v2")
    elif not config.info_nce_epochs:
        unused["info_nce_temperature"] = "without --info_nce_epochs"
    return unused
