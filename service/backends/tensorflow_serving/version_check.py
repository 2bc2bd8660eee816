"""Checks that a version which a model server has loaded can be served by this gateway, and warms it up."""

import asyncio
from pathlib import Path

import numpy as np

from service.backends.repository import ServableError, read_servable
from service.backends.tensorflow_serving.client import Endpoint
from service.backends.tensorflow_serving.failures import CallError
from service.backends.tensorflow_serving.tensors import from_tensor, predict_request
from service.inference.models import OUTPUT_NAME, ModelCard, Variant
from service.pose.heatmaps import STRIDE
from service.pose.keypoints import CHANNEL_COUNT
from service.pose.preprocessing import PADDING_GREY


async def check_version(endpoint: Endpoint, folder: Path, variant: Variant, *, timeout_s: float) -> ModelCard:
    """Check a version's card and its first answer, which also pays what only a first inference costs.

    Args:
        endpoint: a server on which the version is AVAILABLE.
        folder: the version's, with its model card.
        variant: what it should be.
        timeout_s: for the first inference.

    Raises:
        ServableError: it cannot be served.
        CallError: the server went away, or is busy.
    """
    card = (await asyncio.to_thread(read_servable, folder)).card
    if card.variant != variant:
        raise ServableError(f"its model card is that of a {card.variant} network, expected {variant}")
    image = np.full((card.input_size, card.input_size, 3), PADDING_GREY, np.uint8)
    try:
        reply = await endpoint.predict(predict_request(card.name, card.version, [image]), timeout_s, ())
        maps = from_tensor(reply.outputs[OUTPUT_NAME])
    except CallError as error:
        if error.worth_another_try:
            raise
        raise ServableError(f"its first inference failed: {error}") from error
    except ValueError as error:
        raise ServableError(f"its first answer cannot be read: {error}") from error
    expected = (1, card.input_size // STRIDE, card.input_size // STRIDE, CHANNEL_COUNT)
    if maps.shape != expected:
        raise ServableError(f"its first answer has shape {maps.shape}, expected {expected}")
    return card
