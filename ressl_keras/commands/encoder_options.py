"""The flags that name an encoder."""

import dataclasses

from ressl_keras.settings import Options, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreprocessingOptions(Options):
    """What an encoder expects of its images."""

    preprocessing: str = setting(
        "none",
        "What an encoder from elsewhere expects to be done to images in 0-255, as "
        "keras.applications names it. Encoders trained here do it themselves.",
        group="Encoder",
        choices=("none", "tf", "torch", "caffe"),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderOptions(PreprocessingOptions):
    """An encoder, and what it expects of its images."""

    encoder: str = setting(
        None,
        "The encoder: a .keras file, a SavedModel folder (not for finetune), or the "
        "work directory of its run. Any image encoder will do.",
        group="Encoder",
        first=True,
        required=True,
        path=True,
    )

    def load_encoder(self):
        """The encoder, as of `encoders.encoder.load_encoder`."""
        from ressl_keras.encoders.encoder import load_encoder

        return load_encoder(self.encoder, self.preprocessing)
