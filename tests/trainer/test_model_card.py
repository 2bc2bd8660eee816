"""The model card's JSON: complete, read back as written, and refused with the field's name when it is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainer import model_card
from trainer.export import SIGNATURE
from trainer.model_card import CardError, ModelCard

CARD = ModelCard(
    name="cpm_lightweight",
    variant="lightweight",
    version=3,
    created="2026-01-02T03:04:05+00:00",
    keypoints=("wrist", "thumb_cmc"),
    channels=3,
    input_size=128,
    stride=8,
    target_sigma_in_cells=1.5,
    crop_padding=1.25,
    signature=SIGNATURE,
    parameters=10,
    paper_flops=18,
    macs=1000,
    weights_sha256="ab" * 32,
    provenance={"data": [{"name": "photos", "samples": 12}]},
    metrics={"photos": {"pck@0.2": 0.5}},
)


@pytest.mark.parametrize("card", [CARD, replace(CARD, golden={"image": "a.png"})])
def test_card_is_read_back_as_written(card: ModelCard, tmp_path: Path) -> None:
    model_card.write(card, tmp_path)
    assert model_card.read(tmp_path) == card


def test_json_is_flat_and_plain() -> None:
    content = json.loads(json.dumps(CARD.to_json()))
    assert content["format"] == 1
    assert content["signature"]["inputs"] == {"image": {"dtype": "uint8", "shape": [-1, -1, -1, 3]}}
    assert content["signature"]["outputs"] == {"belief_maps": {"dtype": "float32", "shape": [-1, -1, -1, 22]}}
    assert content["crop_padding"] == 1.25
    assert "golden" not in content


@pytest.mark.parametrize("field", sorted(CARD.to_json().keys() - {"format"}))
def test_missing_field_is_named(field: str) -> None:
    content = CARD.to_json()
    del content[field]
    with pytest.raises(CardError, match=f"model card: {field} has to be"):
        ModelCard.from_json(content)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", "1"),
        ("version", True),
        ("crop_padding", "wide"),
        ("keypoints", [1, 2]),
        ("golden", 5),
        ("signature", {"name": "serving_default", "inputs": {"image": 1}, "outputs": {}}),
        ("signature", {"name": "s", "inputs": {"image": {"dtype": "uint8", "shape": [None]}}, "outputs": {}}),
    ],
)
def test_field_of_the_wrong_type_is_refused(field: str, value: Any) -> None:
    with pytest.raises(CardError, match=r"model card: .* has to be"):
        ModelCard.from_json({**CARD.to_json(), field: value})


@pytest.mark.parametrize("content", [[], None, {"format": 2}, {}])
def test_other_formats_are_refused(content: object) -> None:
    with pytest.raises(CardError, match="model card"):
        ModelCard.from_json(content)


def test_absent_or_broken_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CardError, match=r"holds no model_card\.json"):
        model_card.read(tmp_path)
    (tmp_path / "model_card.json").write_text("{")
    with pytest.raises(CardError, match="is not JSON"):
        model_card.read(tmp_path)
    (tmp_path / "model_card.json").write_text(json.dumps({**CARD.to_json(), "channels": "many"}))
    with pytest.raises(CardError, match=r"model_card\.json: model card: channels has to be a JSON integer"):
        model_card.read(tmp_path)


def test_figures_that_json_cannot_hold_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        model_card.write(replace(CARD, metrics={"epe_px": float("nan")}), tmp_path)
    assert list(tmp_path.iterdir()) == []
