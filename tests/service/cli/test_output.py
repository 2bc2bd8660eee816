"""Estimates in words: how many hands, and which."""

from typing import Final

import pytest

from service.cli.output import as_json, as_text
from service.client import Box, Estimate, Hand, Handedness, ModelUsed, Timings

RIGHT: Final = Hand(0.971, Box(0, 0, 9, 9), (), Handedness("right", 0.987654), 12.3456)
LEFT: Final = Hand(0.5, Box(9, 0, 9, 9), (), Handedness("left", 0.75), -90.0)
OF_A_ROI: Final = Hand(0.25, Box(1, 2, 3, 4), ())


def estimate_of(*hands: Hand) -> Estimate:
    model = ModelUsed("cpm_lightweight", "lightweight", 2, None, "default")
    return Estimate("r", model, (20, 10), hands, Timings(1.0, 0.0, 2.0, 0.5, 5.678, detection=1.234))


@pytest.mark.parametrize(
    ("hands", "said"),
    [
        ((), "no hand found"),
        ((RIGHT,), "1 hand (right, score 0.97)"),
        ((RIGHT, LEFT), "2 hands (right, score 0.97; left, score 0.50)"),
        ((OF_A_ROI,), "1 hand (score 0.25)"),
    ],
)
def test_a_line_counts_the_hands_and_says_their_sides_and_scores(hands: tuple[Hand, ...], said: str) -> None:
    assert as_text("a.jpg", estimate_of(*hands)) == f"a.jpg: {said}, lightweight@2, 6 ms"


def test_json_is_rounded_as_over_rest() -> None:
    answer = as_json(estimate_of(RIGHT, OF_A_ROI))

    assert [each["handedness"] for each in answer["hands"]] == [{"label": "right", "score": 0.9877}, None]
    assert [each["rotation_degrees"] for each in answer["hands"]] == [12.35, 0.0]
    assert answer["timings_ms"]["detection"] == 1.23
