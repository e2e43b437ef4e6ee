"""The settings that say how files become pixels."""

import dataclasses

from ressl_keras.errors import UsageError
from ressl_keras.settings import Options, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageOptions(Options):
    """How files become pixels, in training, evaluation and serving alike."""

    exif_orientation: bool = setting(
        True, "Turn images as their EXIF data says, as photo tools do.", group="Data"
    )
    value_range: tuple[float, ...] | None = setting(
        None,
        "Values of 16-bit images that become black and white, such as 0,4095. "
        "Default: the smallest and the largest of each image.",
        group="Data",
        length=2,
        low=-(2.0**32),
        high=2.0**32,
    )

    channels: int = setting(
        3,
        "Channels of the images: 1 for gray, 3 for colour, 4 for colour and alpha.",
        group="Data",
        low=1,
        high=4,
        choices=(1, 3, 4),
    )

    def __post_init__(self):
        super().__post_init__()
        if self.value_range and self.value_range[0] > self.value_range[1]:
            low, high = self.value_range
            raise UsageError(
                f"value_range must be two ascending numbers; got {low},{high}."
            )
