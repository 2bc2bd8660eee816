"""Messages to values: what is absent takes the default, what is zero stays zero; and values to messages."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from service.inference.errors import InvalidInputError
from service.inference.estimates import (
    DEFAULT_MIN_SCORE,
    Estimate,
    EstimateRequest,
    Hand,
    Handedness,
    Priority,
    Timings,
)
from service.pose.geometry import Box
from service.pose.tracking import OneEuro
from service.rpc.convert import from_estimate, to_request, to_stream_options
from service.rpc.handpose.v1 import hand_pose_pb2 as pb
from tests.support.backend import spread_keypoints
from tests.support.models import served_model

HAND = Hand(
    box_in_image=Box(10, 20, 60, 50),
    keypoints_in_image=spread_keypoints(100).astype(np.float64),
    scores=np.full(21, 0.5, np.float32),
    sigmas=np.ones(21),
    detection_score=0.5,
    handedness=Handedness("left", 0.75),
)


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        (pb.OneEuro(), OneEuro()),
        (pb.OneEuro(beta=0.0), OneEuro(beta=0.0)),
        (pb.OneEuro(min_cutoff_hz=2.0, derivative_cutoff_hz=3.0), OneEuro(2.0, OneEuro().beta, 3.0)),
    ],
)
def test_parameters_of_the_filter_that_are_absent_take_the_default(sent: pb.OneEuro, meant: OneEuro) -> None:
    assert to_stream_options(pb.StreamOptions(smoothing=sent), None).smoothing == meant


def request_of(**fields: Any) -> EstimateRequest:
    message = pb.EstimateRequest(image=b"photo", **fields)
    return to_request(message, deadline=1.0, asked_for=None, client_id=None, priority=Priority.BULK)


@pytest.mark.parametrize(
    ("fields", "max_hands", "min_score", "whole"),
    [
        ({}, 4, None, False),
        ({"max_hands": 1, "min_score": 0.25}, 1, 0.25, False),
        ({"max_hands": 16, "min_score": 1.0}, 16, 1.0, False),
        ({"min_score": 0.0}, 4, 0.0, False),
        ({"whole": True}, 4, None, True),
    ],
)
def test_how_hands_are_looked_for_is_read_and_takes_its_default_where_it_is_absent(
    fields: dict[str, Any], max_hands: int, min_score: float | None, whole: bool
) -> None:
    request, options = request_of(**fields), to_stream_options(pb.StreamOptions(**fields), None)

    least = DEFAULT_MIN_SCORE if min_score is None else min_score
    assert (request.max_hands, request.min_score, request.whole) == (max_hands, least, whole)
    assert (options.max_hands, options.min_score, options.whole) == (max_hands, min_score, whole)


@pytest.mark.parametrize(
    ("fields", "field", "allowed"),
    [
        ({"max_hands": 0}, "max_hands", "from 1 to 16, got 0"),
        ({"max_hands": -3}, "max_hands", "from 1 to 16, got -3"),
        ({"max_hands": 17}, "max_hands", "from 1 to 16, got 17"),
        ({"min_score": -0.1}, "min_score", "from 0 to 1, got -0.1"),
        ({"min_score": 1.5}, "min_score", "from 0 to 1, got 1.5"),
        ({"min_score": float("nan")}, "min_score", "from 0 to 1, got nan"),
    ],
)
def test_a_stream_that_cannot_look_for_hands_as_asked_is_refused_with_what_is_allowed(
    fields: dict[str, Any], field: str, allowed: str
) -> None:
    with pytest.raises(InvalidInputError, match=allowed) as caught:
        to_stream_options(pb.StreamOptions(**fields), None)

    assert (caught.value.code, caught.value.errors[0].field) == ("invalid_options", field)


@pytest.mark.parametrize("hands", [(), (HAND,), (HAND, replace(HAND, handedness=None))])
def test_hands_say_their_side_where_it_is_known_and_may_be_none(hands: tuple[Hand, ...]) -> None:
    timings = Timings(decode=0.001, detection=0.002, queue=0.0, inference=0.003, postprocess=0.0, total=0.01)
    estimate = Estimate(served_model("lightweight"), "default", (200, 100), hands, timings)

    message = from_estimate(estimate, "r")

    sides = [each.handedness.label if each.HasField("handedness") else None for each in message.hands]
    assert sides == [each.handedness and each.handedness.label for each in hands]
    assert [each.rotation_degrees for each in message.hands] == [each.rotation_degrees for each in hands]
    assert [each.score for each in message.hands] == pytest.approx([0.5] * len(hands))
    assert message.timings.detection_ms == pytest.approx(2.0)
