"""A record for each picture: with none, one or several hands, in both forms of a file."""

import json
from io import BytesIO

import numpy as np
import pyarrow.parquet
import pytest

from service.inference.estimates import Estimate, Hand, Handedness, Timings
from service.offline.records import answered, encode
from service.pose.geometry import Box
from tests.support.backend import spread_keypoints
from tests.support.models import served_model


def hand(side: Handedness | None) -> Hand:
    return Hand(
        box_in_image=Box(10, 20, 60, 50),
        keypoints_in_image=spread_keypoints(100).astype(np.float64),
        scores=np.full(21, 0.5, np.float32),
        sigmas=np.ones(21),
        handedness=side,
    )


@pytest.mark.parametrize("sides", [[], [Handedness("left", 0.75)], [Handedness("right", 0.9), None]], ids=len)
def test_parquet_holds_what_json_lines_do_of_none_one_and_several_hands(sides: list[Handedness | None]) -> None:
    timings = Timings(decode=0.001, detection=0.002, queue=0.0, inference=0.003, postprocess=0.0, total=0.01)
    hands = tuple(map(hand, sides))
    record = answered("a.jpg", "1", Estimate(served_model("lightweight"), "default", (200, 100), hands, timings))

    (line,) = encode([record], "jsonl").splitlines()
    (row,) = pyarrow.parquet.read_table(BytesIO(encode([record], "parquet"))).to_pylist()

    assert row.pop("problem") is None
    assert row == json.loads(line) == record
    result = record["result"]
    assert [each["handedness"] for each in result["hands"]] == [
        side and {"label": side.label, "score": side.score} for side in sides
    ]
    assert result["timings_ms"]["detection"] == 2.0
