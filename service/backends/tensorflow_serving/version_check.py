"""Checks that a version which a model server has loaded can be served by this gateway, and warms it up."""

import asyncio
from pathlib import Path

import numpy as np

from service.backends.repository import ServableError, read_servable
from service.backends.tensorflow_serving.client import Endpoint
from service.backends.tensorflow_serving.failures import CallError
from service.backends.tensorflow_serving.tensors import from_tensor, predict_request
from service.inference.models import AnyCard, Kind, served
from service.pose.preprocessing import PADDING_GREY


async def check_version(endpoint: Endpoint, folder: Path, kind: Kind, *, timeout_s: float) -> AnyCard:
    """Check a version's card and its first answer, which also pays what only a first inference costs.

    Args:
        endpoint: a server on which the version is AVAILABLE.
        folder: the version's, with its model card.
        kind: what it should be.
        timeout_s: for the first inference.

    Raises:
        ServableError: it cannot be served.
        CallError: the server went away, or is busy.
    """
    model = served((await asyncio.to_thread(read_servable, folder)).card, ())
    if model.kind != kind:
        raise ServableError(f"its model card is that of a {model.kind} network, expected {kind}")
    width, height = model.input_size
    image = np.full((height, width, 3), PADDING_GREY, np.uint8)
    try:
        reply = await endpoint.predict(predict_request(model, [image]), timeout_s, ())
        answer = from_tensor(reply.outputs[model.output_name])
    except CallError as error:
        if error.worth_another_try:
            raise
        raise ServableError(f"its first inference failed: {error}") from error
    except ValueError as error:
        raise ServableError(f"its first answer cannot be read: {error}") from error
    if answer.shape != (expected := (1, *model.output_shape)):
        raise ServableError(f"its first answer has shape {answer.shape}, expected {expected}")
    return model.card
