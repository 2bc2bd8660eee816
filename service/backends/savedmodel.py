"""One SavedModel as a function from crops to belief maps. Importing this module imports TensorFlow.

The only module of the service that does, so `service.bootstrap` imports it late, and only for the embedded backend.
"""

import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from service.backends.repository import Servable, ServableError
from service.inference.errors import InternalError, UnavailableError
from service.inference.models import DETECTOR_OUTPUT_NAME, INPUT_NAME, OUTPUT_NAME, SIGNATURE_NAME, DetectorCard
from service.pose.keypoints import CHANNEL_COUNT

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

_TRIED_BATCH: Final = 2
_TIMED_TURNS: Final = 5


def configure(*, threads: int, at_once: int = 1) -> None:
    """Set how TensorFlow uses the processor. Has to come before the first model is opened.

    Args:
        threads: how many all inferences use together for what they compute; 0: one a CPU core.
        at_once: how many inferences may run at the same time; further ones wait.
    """
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    # The networks are chains: within one inference there is nothing to run beside an operation.
    tf.config.threading.set_inter_op_parallelism_threads(at_once)


def multiply_in(*, bfloat16: bool) -> None:
    """Set what inferences from now on multiply in, of all models. The first of each shape takes longer.

    Args:
        bfloat16: whether convolutions multiply in bfloat16 (8 bits of precision) and add in float32. Belief maps stay
            float32. For processors with instructions for it (`service.backends.processor`).
    """
    tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": bfloat16})


def bfloat16_is_quicker(run: Run, input_size: int, *, now: Callable[[], float] = time.perf_counter) -> bool:
    """Whether a model runs quicker on this machine if it multiplies in bfloat16, found by trying both by turns.

    Having the instructions does not say it: processors with AMX gain a factor of two to three, while some with AVX512
    alone multiply no quicker and lose what converting costs. It takes a second or two, and leaves `multiply_in` as it
    happens to be then.

    Args:
        run: the model, as `open_servable` returns it.
        input_size: side of its crops, in pixels.
        now: a clock, in seconds.
    """
    crops = np.full((_TRIED_BATCH, input_size, input_size, 3), 128, np.uint8)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(1 + _TIMED_TURNS):
        for bfloat16, taken in seconds.items():
            multiply_in(bfloat16=bfloat16)
            start = now()
            run(crops)
            taken.append(now() - start)
    # The first is compiled, so it does not count; the least does, because what else the machine does only adds to it.
    return min(seconds[True][1:]) < min(seconds[False][1:])


def open_servable(servable: Servable) -> Run:
    """Load a SavedModel and check that it is what its card says.

    Returns:
        A function from crops, uint8 [N, H, W, 3], to what `Backend.predict` answers. It may be called from any thread,
        and raises ServiceErrors only.

    Raises:
        ServableError: if it does not load or has another signature.
    """
    try:
        signature = tf.saved_model.load(str(servable.folder)).signatures[SIGNATURE_NAME]
    except KeyError as error:
        raise ServableError(f"{servable.folder}: the SavedModel has no signature {SIGNATURE_NAME}") from error
    except (OSError, ValueError, tf.errors.OpError) as error:
        first = str(error).splitlines() or [type(error).__name__]
        raise ServableError(f"{servable.folder}: not a SavedModel that loads: {first[0]}") from error
    _check(servable, signature)
    # Called as it is. Measured on two CPU cores with the lightweight model: with its variables frozen into constants it
    # takes as long (1.0) and 1.4 times the memory, compiled by XLA more than five times as long.

    output_name = _output_of(servable)[0]

    def run(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        try:
            result: NDArray[np.float32] = signature(**{INPUT_NAME: tf.constant(crops)})[output_name].numpy()
        except tf.errors.ResourceExhaustedError as error:
            raise UnavailableError("the model ran out of memory; try again", retry_after_s=1.0) from error
        except (tf.errors.OpError, ValueError, TypeError) as error:
            raise InternalError(f"{servable} failed on a batch of shape {crops.shape}") from error
        return result

    return run


def _output_of(servable: Servable) -> tuple[str, Any]:
    """Name and TensorSpec of what comes out of a servable."""
    if isinstance(servable.card, DetectorCard):
        shape = [None, servable.card.detections, len(servable.card.columns)]
        return DETECTOR_OUTPUT_NAME, tf.TensorSpec(shape, tf.float32)
    return OUTPUT_NAME, tf.TensorSpec([None, None, None, CHANNEL_COUNT], tf.float32)


def _check(servable: Servable, signature: Any) -> None:
    """Names, types and shapes of the signature are those that the gateway calls it with."""
    inputs: dict[str, Any] = signature.structured_input_signature[1]
    outputs: dict[str, Any] = signature.structured_outputs
    expected_input = tf.TensorSpec([None, None, None, 3], tf.uint8)
    output_name, expected_output = _output_of(servable)
    for kind, specs, name, expected in (
        ("input", inputs, INPUT_NAME, expected_input),
        ("output", outputs, output_name, expected_output),
    ):
        if set(specs) != {name}:
            raise ServableError(f"{servable.folder}: its {kind}s are {sorted(specs)}, expected only {name}")
        spec = specs[name]
        if spec.dtype != expected.dtype or not spec.shape.is_compatible_with(expected.shape) or spec.shape[0] == 1:
            raise ServableError(
                f"{servable.folder}: {kind} {name} is {spec.dtype.name} {spec.shape},"
                f" expected {expected.dtype.name} {expected.shape}"
            )
