"""The augmentations of the two views: their parameters, and named sets of them."""

import dataclasses

from ressl_keras.errors import UsageError, closest
from ressl_keras.settings import Options, setting, settings_of


def _parameter(default, help, high=1.0, low=0.0, **options):
    return setting(default, help, group="", low=low, high=high, **options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation(Options):
    """The random operations of one view; the defaults are the strong view's.

    Raises:
        UsageError: if a value is not allowed.

    Example:

    >>> Augmentation(hue=0.0, solarize=0.2)
    """

    crop_min: float = _parameter(0.2, "Smallest share of the image's area.", low=0.001)
    crop_max: float = _parameter(1.0, "Largest share of the image's area.", low=0.001)
    ratio_min: float = _parameter(0.75, "Smallest width/height of the crop.", 10, 0.1)
    ratio_max: float = _parameter(4 / 3, "Largest width/height of the crop.", 10, 0.1)
    flip: float = _parameter(0.5, "Probability of mirroring left to right.")
    vertical_flip: float = _parameter(0.0, "Probability of mirroring top to bottom.")
    turn: float = _parameter(0.0, "Probability of one to three quarter turns.")
    jitter: float = _parameter(0.8, "Probability of colour jitter.")
    brightness: float = _parameter(0.4, "Strength of brightness jitter.")
    contrast: float = _parameter(0.4, "Strength of contrast jitter.")
    saturation: float = _parameter(0.4, "Strength of saturation jitter.")
    hue: float = _parameter(0.1, "Strength of hue jitter, in full turns.", 0.5)
    grayscale: float = _parameter(0.2, "Probability of grayscale.")
    blur: float = _parameter(0.5, "Probability of Gaussian blur.")
    blur_min: float = _parameter(0.1, "Smallest sigma of the blur in pixels.", 16)
    blur_max: float = _parameter(2.0, "Largest sigma of the blur in pixels.", 16)
    solarize: float = _parameter(0.0, "Probability of inverting the bright half.")

    def __post_init__(self):
        super().__post_init__()
        for name in ("crop", "ratio", "blur"):
            low, high = (getattr(self, f"{name}_{end}") for end in ("min", "max"))
            if low > high:
                raise UsageError(f"{name}_min={low:g} is above {name}_max={high:g}.")


NAMES = tuple(settings_of(Augmentation))
# What a weak view leaves out: all that changes pixels and not their places.
_WEAK = dict.fromkeys(("jitter", "grayscale", "blur", "solarize"), 0.0)
# Named sets: what differs from photographs.
SETS = {
    "photo": {},
    "gray": {"saturation": 0.0, "hue": 0.0, "grayscale": 0.0},
    "overhead": {"vertical_flip": 0.5, "turn": 0.75},  # all eight ways are as likely
}


def view_augmentations(
    name="photo", teacher_view="weak", student=None, teacher=None
) -> tuple[Augmentation, Augmentation]:
    """The augmentations of the two views.

    Args:
        name: one of `SETS`.
        teacher_view: `weak`, the geometric part of the set; or `strong`, the whole.
        student: texts such as `hue:0.05` that replace parameters of the student's view.
        teacher: the same for the teacher's.

    Returns:
        Tuple of the teacher's and the student's `Augmentation`.

    Raises:
        UsageError: if a name is unknown or a value is not allowed.
    """
    if name not in SETS:
        raise UsageError(f"Unknown augmentation '{name}'. {closest(name, SETS)}")
    weak = _WEAK if teacher_view == "weak" else {}
    return (
        Augmentation(**{**SETS[name], **weak, **_parsed(teacher, "teacher")}),
        Augmentation(**{**SETS[name], **_parsed(student, "student")}),
    )


def _parsed(texts, view):
    known, values = settings_of(Augmentation), {}
    for text in texts or ():
        name, colon, value = (part.strip() for part in text.partition(":"))
        if not colon or name not in known:
            raise UsageError(
                f"{view}_augmentation={text}: expected name:value, such as hue:0.05. "
                f"{closest(name, NAMES)}"
            )
        try:
            values[name] = known[name].parse(value)
        except ValueError as error:
            raise UsageError(f"{view}_augmentation={text}: must be {error}.") from None
    return values
