"""What differs between backends and machines: devices, compiling whole steps, sharing batches among accelerators.

Data parallel: every device holds the whole network and gets a part of each batch. Keras does the work where its backend
can (`keras.distribution`, on JAX); on other backends one device is used.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.errors import RefusedError


@dataclass(frozen=True, slots=True)
class Devices:
    """What Keras computes on in this process.

    Attributes:
        backend: Keras's, by name.
        names: of the devices that it sees, kind and number: "cuda:0", "GPU:0", "cpu:0".
    """

    backend: str
    names: tuple[str, ...]

    @property
    def accelerated(self) -> bool:
        """Whether there is a device that is no processor."""
        return any(not name.lower().startswith("cpu") for name in self.names)

    def __str__(self) -> str:
        return f"Keras on {self.backend}, which sees {', '.join(self.names)}"


def devices_seen() -> Devices:
    """The backend and its devices."""
    import keras

    backend = str(keras.backend.backend())
    names: list[str] = []
    if backend == "jax":
        import jax

        names = [f"{device.platform}:{device.id}" for device in jax.devices()]
    elif backend == "tensorflow":
        import tensorflow as tf

        names = [device.name.removeprefix("/physical_device:") for device in tf.config.list_physical_devices()]
    elif backend == "torch":
        import torch

        names = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        names += ["mps:0"] if torch.backends.mps.is_available() else []
    return Devices(backend, tuple(names) or ("cpu:0",))


def share_batches_among_devices(batch_size: int) -> int:
    """Makes Keras share every batch among all devices that it sees; returns how many there are in use.

    To be called before a network is built. RefusedError if the batch cannot be shared out evenly.
    """
    import keras

    if keras.backend.backend() != "jax":
        return 1
    devices = keras.distribution.list_devices()
    if len(devices) < 2:
        return 1
    if batch_size % len(devices):
        raise RefusedError(f"a batch of {batch_size} cannot be shared out evenly among {len(devices)} devices")
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices))
    return len(devices)


def jit_pays() -> bool:
    """Whether Keras should compile a network's steps as a whole.

    On JAX it has to: operation by operation, a step takes many times as long. TensorFlow's graphs are quick without,
    and each new input size would cost a compilation.
    """
    import keras

    return bool(keras.backend.backend() == "jax")
