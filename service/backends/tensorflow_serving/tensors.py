"""Arrays to TensorFlow Serving's messages and back; nothing about connections."""

import math
from collections.abc import Sequence

import numpy as np
from google.protobuf.wrappers_pb2 import Int64Value
from numpy.typing import NDArray

from service.backends.tensorflow_serving.wire import serving_pb2 as wire
from service.inference.models import INPUT_NAME, SIGNATURE_NAME, AnyModel


def predict_request(model: AnyModel, crops: Sequence[NDArray[np.uint8]]) -> wire.PredictRequest:
    """The request for what exactly this version makes of a batch."""
    return wire.PredictRequest(
        model_spec=version_spec(model.name, model.version),
        inputs={INPUT_NAME: to_tensor(crops)},
        output_filter=[model.output_name],
    )


def version_spec(name: str, version: int) -> wire.ModelSpec:
    """Names exactly one version of a model."""
    return wire.ModelSpec(name=name, version=Int64Value(value=version), signature_name=SIGNATURE_NAME)


def to_tensor(images: Sequence[NDArray[np.uint8]]) -> wire.Tensor:
    """A batch of N images of one shape, each uint8 [H, W, 3], as a DT_UINT8 tensor [N, H, W, 3]."""
    shape = (len(images), *images[0].shape)
    # One copy of the pixels, and none of a stacked array in between.
    content = b"".join([image.data if image.flags.c_contiguous else image.tobytes() for image in images])
    return wire.Tensor(
        dtype=wire.DT_UINT8,
        tensor_shape=wire.TensorShape(dim=[wire.TensorShape.Dim(size=size) for size in shape]),
        tensor_content=content,
    )


def from_tensor(tensor: wire.Tensor) -> NDArray[np.float32]:
    """A float32 array from a DT_FLOAT tensor, in either of the two forms in which one may be sent.

    Raises:
        ValueError: if it is no float32 tensor or its content does not fit its shape.
    """
    if tensor.dtype != wire.DT_FLOAT:
        raise ValueError(f"the tensor's type is {tensor.dtype}, expected {wire.DT_FLOAT} (DT_FLOAT)")
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    if tensor.tensor_content:
        values = np.frombuffer(tensor.tensor_content, "<f4")
    else:
        values = np.array(tensor.float_val, np.float32)
    if values.size != math.prod(shape):
        raise ValueError(f"the tensor holds {values.size} values, but its shape is {shape}")
    return values.reshape(shape)
