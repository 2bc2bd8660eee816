from typing import Any

import pytest
from pydantic import ValidationError

from service.inference.errors import UnknownModelError
from service.inference.models import ModelCard, ModelReference
from service.pose.keypoints import KEYPOINT_NAMES
from tests.support.models import model_card


def card_as_written(**changes: Any) -> dict[str, Any]:
    return {**model_card().model_dump(), **changes}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("standard", ModelReference("standard")),
        (" Lightweight ", ModelReference("lightweight")),
        ("lightweight@canary", ModelReference("lightweight", label="canary")),
        ("standard@12", ModelReference("standard", version=12)),
    ],
)
def test_a_request_names_a_variant_and_perhaps_a_version_or_label(text: str, expected: ModelReference) -> None:
    assert ModelReference.parse(text) == expected


@pytest.mark.parametrize("text", ["", "huge", "standard@", "@canary", "standard light", "x" * 10_000])
def test_what_names_no_model_is_refused_with_what_would(text: str) -> None:
    with pytest.raises(UnknownModelError, match="standard or lightweight") as caught:
        ModelReference.parse(text)
    assert len(caught.value.detail) < 250


@pytest.mark.parametrize("text", ["standard", "lightweight@canary", "standard@3"])
def test_a_reference_reads_like_what_was_asked_for(text: str) -> None:
    assert str(ModelReference.parse(text)) == text


def test_a_strangers_label_is_shown_short_and_printable() -> None:
    shown = str(ModelReference.parse("standard@" + "\n" + "€" * 500))
    assert len(shown) < 90
    assert "\n" not in shown


def test_a_card_with_fields_that_the_gateway_does_not_know_is_read() -> None:
    assert ModelCard.model_validate(card_as_written(golden={"image": "x"})) == model_card()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"keypoints": list(reversed(KEYPOINT_NAMES))}, "keypoints differ"),
        ({"channels": 21}, "channels"),
        ({"stride": 4}, "stride"),
        ({"input_size": 100}, "input_size"),
        ({"input_size": 8}, "input_size"),
        ({"version": 0}, "version"),
        ({"variant": "huge"}, "variant"),
    ],
)
def test_a_model_that_this_gateway_cannot_serve_is_refused_by_its_card(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        ModelCard.model_validate(card_as_written(**change))
