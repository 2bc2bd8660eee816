"""A typed client: one interface over REST and gRPC, sync and async.

    from service.client import HandPoseClient, draw

    with HandPoseClient("http://127.0.0.1:8000") as client:
        estimate = client.estimate("hand.jpg")
        draw("hand.jpg", estimate).save("overlay.png")

Needs neither TensorFlow nor the service: of the project it imports `service.pose` and the generated messages only. What
only one protocol needs (httpx, grpcio, websockets) is imported when a client for it is made.
"""

from service.client.client import AsyncHandPoseClient, HandPoseClient
from service.client.errors import (
    ConnectionFailedError,
    FieldProblem,
    HandPoseError,
    RejectedError,
    ServerFailedError,
    TimedOutError,
    TryAgainError,
)
from service.client.images import ImageLike
from service.client.overlay import draw
from service.client.retrying import RetryPolicy
from service.client.tls import Tls
from service.client.types import (
    Estimate,
    Frame,
    Hand,
    Handedness,
    Keypoint,
    Model,
    ModelUsed,
    StreamAnswer,
    StreamOptions,
    Timings,
)
from service.pose.geometry import Box
from service.pose.tracking import OneEuro

__all__ = [
    "AsyncHandPoseClient",
    "Box",
    "ConnectionFailedError",
    "Estimate",
    "FieldProblem",
    "Frame",
    "Hand",
    "HandPoseClient",
    "HandPoseError",
    "Handedness",
    "ImageLike",
    "Keypoint",
    "Model",
    "ModelUsed",
    "OneEuro",
    "RejectedError",
    "RetryPolicy",
    "ServerFailedError",
    "StreamAnswer",
    "StreamOptions",
    "TimedOutError",
    "Timings",
    "Tls",
    "TryAgainError",
    "draw",
]
