"""What differs between backends and machines: compiling whole steps, and sharing batches among several accelerators.

Data parallel: every device holds the whole network and gets a part of each batch. Keras does the work where its backend
can (`keras.distribution`, on JAX); on other backends one device is used.
"""

from __future__ import annotations

from trainer.errors import RefusedError


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
