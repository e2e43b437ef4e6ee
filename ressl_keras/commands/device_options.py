"""The flags that say which devices a command runs on."""

import dataclasses

from ressl_keras.settings import Options, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceOptions(Options):
    """One device, all of a machine, or several machines."""

    strategy: str = setting(
        "auto",
        "Distribution. auto: the machines in TF_CONFIG, else all GPUs of this machine. "
        "TF_CONFIG is TensorFlow's.",
        group="Devices",
        resumable=True,
        choices=("auto", "one_device", "mirrored", "multi_worker"),
    )
    devices: int = setting(
        0,
        "GPUs to use; 0: all. Without a GPU: logical devices to split the CPU into, "
        "for trying distribution.",
        group="Devices",
        resumable=True,
        low=0,
        high=1024,
    )

    def make_strategy(self):
        """The `tf.distribute.Strategy`; call it before TensorFlow has done anything."""
        from ressl_keras.devices import make_strategy

        return make_strategy(self.strategy, self.devices)
