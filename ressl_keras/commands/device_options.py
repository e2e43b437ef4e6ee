"""The flags that say which devices a command runs on."""

import dataclasses
import functools

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

    def start(self):
        """Takes the devices; call it before TensorFlow has done anything else.

        Returns:
            Tuple of the `tf.distribute.Strategy`, whether this process writes files,
            and a function that prints a line there and nothing on other workers.
        """
        from ressl_keras import devices

        strategy = devices.make_strategy(self.strategy, self.devices)
        chief = devices.is_chief(strategy)
        # Flushed, since a log file would otherwise show nothing for a long time.
        log = functools.partial(print, flush=True) if chief else lambda line: None
        return strategy, chief, log
