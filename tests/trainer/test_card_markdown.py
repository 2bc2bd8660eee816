"""The document of a network: every figure in it comes from the files that it is made of."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.trainer.data.miniature_rhd import write_miniature_rhd
from trainer import cli, weights
from trainer.card_markdown import Counts, document
from trainer.configs import load_config
from trainer.models import build
from trainer.run_log import RunLog
from trainer.run_record import RunRecord

INFO = weights.WeightsInfo(
    "lightweight",
    "2026-01-02",
    64,
    1.25,
    provenance={
        "summary": "Good on drawn hands.",
        "hands_trained_on": {"drawn": 1234},
        "data_licences": "CC0 | our own",
        "compute": "one abacus",
        "minutes": 12.5,
        "measured": "Boxes by hand.",
        "credits": [{"source": "ann/hands", "licence": "CC BY 4.0", "author": "Ann B."}],
        "surprise": "none",
    },
    metrics={"drawn": {"samples": 7, "pck_at_0_1": 0.5, "pck_at_0_2": 0.75, "epe_px": 3.21}},
)
COUNTS = Counts(6_892_930, 13_767_808, {64: 540_000_000, 256: 8_600_000_000})


def _results(**changes: Any) -> dict[str, Any]:
    figures = {"samples": 3, "pck_at_0_2": 0.987, "pck_at_0_2_se": 0.0123, "auc_mmpose": None}
    return {
        "by_data_set": {"real": figures},
        **dict.fromkeys(("all", "visible", "hidden"), figures),
        "by_view": {"palm": figures},
        "turned": {"45": {"turn_given": 0.9, "turn_not_given": 0.5}},
        "command": "python -m trainer evaluate --data coco:real",
        "protocol": "box",
        "input_size": 64,
        "left_out": 0,
        "weights_sha256": "abc",
        **changes,
    }


def test_a_document_says_what_the_weights_say() -> None:
    text = document(INFO, "abc", COUNTS, None, [], {"curves": "lightweight-curves.png"})
    for expected in (
        "# The lightweight network", "| parameters | 6,892,930 |", "13.77 M", "accumulates at 256 × 256 | 8.60 G |",
        "`abc`", "Good on drawn hands.", "| drawn | 1,234 |", "CC0 \\| our own", "one abacus", "12.5", "Boxes by hand.",
        "| ann/hands | Ann B. | CC BY 4.0 |",
        "| drawn | 7 | 0.500 | 0.750 | – | – | – | 3.210 |", "(lightweight-curves.png)", "| surprise | none |",
        "from before runs kept their configuration",
    ):  # fmt: skip
        assert expected in text, expected


def test_a_document_prints_the_recipe_of_a_recorded_run_and_the_command_of_each_measurement() -> None:
    config = replace(load_config("default"), seed=77)
    record = RunRecord(config, ("coco:x",), False, {}, "", frozenset(), frozenset(), "light", "standard")
    text = document(INFO, "abc", COUNTS, record, [_results()], {})
    for expected in (
        "| seed | 77 |", "| input sizes | 128 px from 0% on, 192 px from 40% on, 256 px from 70% on |",
        "| warm start | light |", "| teacher | standard |", "python -m trainer evaluate --data coco:real",
        "| view: palm | 3 |", "| 45° | 0.900 | 0.500 |",
        "| real | 3 | – | 0.987 ± 0.012 |", "| view: palm | 3 |",
        "| 45° | 0.900 | 0.500 |",
    ):  # fmt: skip
        assert expected in text, expected


def test_hands_that_were_looked_at_in_several_boxes_count_once() -> None:
    result = _results() | {"boxes_a_hand": 3}
    text = document(INFO, "abc", COUNTS, None, [result], {})
    assert "Protocol box, each hand in 3 boxes, input" in text
    assert "| real | 1 | – | 0.987 ± 0.012 |" in text


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments of `card` for a tiny network with a log, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    weights.save(build("lightweight", batch_norm=True, width_multiplier=0.03), tmp_path / "light.npz", INFO)
    log = RunLog(tmp_path / "runs/tiny")
    for step in (1, 2):
        stages = {f"loss_stage{stage}": 3.0 / step for stage in (1, 2, 3)}
        log.write(
            {"step": step, "samples": step, "minutes": 1.0, "input_size": 32 * step, "loss": 9.0 / step, **stages}
        )
    log.write({"step": 2, "samples": 2, "minutes": 1.0, "input_size": 64, "pck_at_0_1": 0.5, "pck_at_0_2": 0.6})
    return ["card", "--variant", "lightweight", "--run", "tiny", "--weights", "light.npz", "--out", "docs"]


def test_results_of_other_weights_and_a_run_without_a_log_are_refused(
    run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").write_text(json.dumps(_results()))
    assert cli.main([*run, "--results", "results.json"]) == 2
    assert "the results of other weights" in capsys.readouterr().err
    assert cli.main([*run, "--results", "none.json"]) == 2
    assert "not what `evaluate --out` writes" in capsys.readouterr().err
    assert cli.main([*run, "--run", "nowhere"]) == 2
    assert "the run has no log" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_writes_document_curves_and_overlays_from_an_evaluation(run: list[str], tmp_path: Path) -> None:
    write_miniature_rhd(tmp_path / "rhd", training=2, evaluation=1)
    evaluate = ["evaluate", "--weights", "light.npz", "--data", "rhd:rhd", "--out", "results.json"]
    assert cli.main(evaluate) == 0
    assert cli.main([*run, "--results", "results.json", "--overlays", "rhd:rhd", "--overlay-count", "2"]) == 0
    text = (tmp_path / "docs/lightweight.md").read_text()
    assert "python -m trainer evaluate --data rhd:rhd --protocol box --weights light.npz" in text
    assert weights.file_sha256(tmp_path / "light.npz") in text
    with Image.open(tmp_path / "docs/lightweight-curves.png") as curves:
        assert curves.width > 600
    with Image.open(tmp_path / "docs/lightweight-overlays.jpg") as overlays:
        assert overlays.size == (6 * 160, 160)
