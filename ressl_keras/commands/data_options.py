"""The flags that say which images a command reads."""

import dataclasses

from ressl_keras.settings import Options, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    """A data set and where it is."""

    dataset: str = setting(
        "shapes",
        "Images: 'shapes' (drawn, needs no files), 'folder' (a tree of images under "
        "--data_dir), or the name of a TensorFlow Datasets image set.",
        group="Data",
        first=True,
    )
    data_dir: str | None = setting(
        None,
        "The image folder, or the folder where TensorFlow Datasets keeps its data.",
        group="Data",
        first=True,
        path=True,
        resumable=True,
    )
    download: bool = setting(
        True, "Let TensorFlow Datasets download.", group="Data", resumable=True
    )
