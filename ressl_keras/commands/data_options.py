"""The flags that say which images a command reads."""

import dataclasses

from ressl_keras.image_options import ImageOptions
from ressl_keras.settings import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataOptions(ImageOptions):
    """A data set and where it is."""

    dataset: str | None = setting(
        None,
        "Images: 'shapes' (drawn, needs no files), 'folder' (a tree of images under "
        "--data_dir), 'packed' (shards that ressl-pack or WebDataset wrote there), or "
        "the name of a TensorFlow Datasets image set. Default: folder if --data_dir is "
        "given, else shapes.",
        group="Data",
        first=True,
    )
    data_dir: str | None = setting(
        None,
        "The folder of images or shards, or the folder where TensorFlow Datasets keeps "
        "its data.",
        group="Data",
        first=True,
        path=True,
        resumable=True,
    )
    labels: str = setting(
        "folders",
        "Classes of a folder's images, used only to evaluate: 'folders' (sub-folders "
        "are classes), 'none' (learn from all images, hold none out), or a CSV file "
        "with a file and a label in each row.",
        group="Data",
        first=True,
    )
    download: bool = setting(
        True, "Let TensorFlow Datasets download.", group="Data", resumable=True
    )
    memory_gib: float = setting(
        4.0,
        "Sets of images up to this many GiB are kept in memory where possible; larger "
        "ones are read from their files in every epoch.",
        group="Data",
        low=0,
        high=2**20,
    )

    def __post_init__(self):
        super().__post_init__()
        if self.dataset is None:
            chosen = "folder" if self.data_dir else "shapes"
            object.__setattr__(self, "dataset", chosen)

    def load(self, decoder=None, **options):
        """The data set.

        Args:
            decoder: `Decoder` of the encoder that the images are for, which decides
                where the flags leave it open; its channels always count.
            **options: further arguments of `load_dataset`.
        """
        from ressl_keras.data.datasets import load_dataset

        oriented, value_range = self.exif_orientation, self.value_range
        if decoder is not None:
            oriented = oriented and decoder.exif_orientation
            value_range = value_range or decoder.value_range
        return load_dataset(
            self.dataset,
            self.data_dir,
            self.download,
            memory_limit=int(self.memory_gib * 2**30),
            labels=self.labels,
            exif_orientation=oriented,
            value_range=value_range,
            channels=decoder.channels if decoder else self.channels,
            **options,
        )
