"""Promoting and rolling back labels on a model server, as an operator does it from the command line."""

import argparse
import asyncio
import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from deploy.stand_in.process import StandIn
from deploy.stand_in.repository import add_version, config_text, without_detector
from service.backends.tensorflow_serving.management import ManagedServers, add_arguments, list_versions, run
from service.bootstrap import managed_servers
from service.inference.models import VARIANTS
from service.pose.keypoints import KEYPOINT_COUNT
from tests.support.images import image_bytes, picture
from tests.support.waiting import until

SIDE = 256
RED, GREEN = 100, 140


def golden(version: int, *, off_by: float = 0.0) -> dict[str, object]:
    """What the stand-in's model of this version answers for a picture of one colour, perhaps not quite."""
    points = np.tile(np.array((RED, GREEN)) / 256 * SIDE, (KEYPOINT_COUNT, 1))
    points[-1] = ((version % 8 + 1) / 10 * SIDE, SIDE / 2)
    points[3, 0] += off_by
    image = image_bytes(picture(SIDE, SIDE, (RED, GREEN, 0)))
    return {
        "images": [{"image": base64.b64encode(image).decode(), "keypoints": points.tolist()}],
        "tolerance": 0.02,
    }


def set_golden(folder: Path, content: dict[str, object]) -> None:
    card = json.loads((folder / "model_card.json").read_text())
    (folder / "model_card.json").write_text(json.dumps(card | {"golden": content}))


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[StandIn]:
    """A model server with lightweight 1 (stable), 2 on disk with good golden answers, and standard 1 (stable)."""
    add_version(tmp_path, "lightweight", 1)
    set_golden(add_version(tmp_path, "lightweight", 2), golden(2))
    add_version(tmp_path, "standard", 1)
    config = config_text(tmp_path, {"lightweight": ((1,), {"stable": 1}), "standard": ((1,), {"stable": 1})})
    with StandIn(tmp_path, config) as running:
        yield running


def models(stand_in: StandIn, *words: str, patience_s: float = 20.0) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(words), servers_of(stand_in, patience_s))


def servers_of(stand_in: StandIn, patience_s: float = 20.0) -> ManagedServers:
    repository = stand_in.config_file.parent
    return managed_servers(
        (stand_in.address,), config_file=stand_in.config_file, repository=repository, patience_s=patience_s
    )


def test_versions_are_listed_with_state_and_labels(stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    assert models(stand_in, "list") == 0

    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["server", "model", "version", "state", "labels"]
    assert rows[1:] == [
        [stand_in.address, "cpm_standard", "1", "AVAILABLE", "stable"],
        [stand_in.address, "cpm_lightweight", "1", "AVAILABLE", "stable"],
        [stand_in.address, "cpm_lightweight", "2", "on", "disk"],
        [stand_in.address, "hand_detector", "1", "AVAILABLE", "stable"],
    ]


def test_a_label_is_promoted_rolled_back_and_promoted_again(
    stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert models(stand_in, "promote", "lightweight@2") == 0
    assert "stable of lightweight is version 2, before that version 1" in capsys.readouterr().out
    assert labels(stand_in) == {"1": "previous_stable", "2": "stable"}

    assert models(stand_in, "rollback", "lightweight") == 0
    assert labels(stand_in) == {"1": "stable", "2": "previous_stable"}

    assert models(stand_in, "rollback", "lightweight") == 0
    assert labels(stand_in) == {"1": "previous_stable", "2": "stable"}
    assert "specific" in stand_in.config_file.read_text()  # what the servers poll says the same


def labels(stand_in: StandIn, name: str = "cpm_lightweight") -> dict[str, str]:
    """The labels of each version of a model that is loaded."""
    rows = asyncio.run(list_versions(servers_of(stand_in)))
    return {row["version"]: row["labels"] for row in rows if row["model"] == name and row["state"] == "AVAILABLE"}


def test_the_version_before_the_previous_one_is_unloaded(stand_in: StandIn) -> None:
    repository = stand_in.config_file.parent
    set_golden(add_version(repository, "lightweight", 3), golden(3))
    assert models(stand_in, "promote", "lightweight@2") == 0
    assert models(stand_in, "promote", "lightweight@3") == 0

    config = stand_in.config_file.read_text().split("cpm_standard")[0]
    assert [line.split()[1] for line in config.splitlines() if "versions:" in line] == ["2", "3"]


def golden_hands(*hands: list[float]) -> dict[str, object]:
    """A card that says that there are these hands (x, y, size, cos, sin, right) in a picture of SIDE by SIDE pixels."""
    image = image_bytes(picture(SIDE, SIDE, (RED, GREEN, 0)))
    return {"images": [{"image": base64.b64encode(image).decode(), "hands": hands}], "tolerance": 0.02}


HAND = [SIDE / 2, SIDE / 2, SIDE / 1.25, 0.0, -1.0, 1.0]
"""What the stand-in's detector answers."""


def test_a_detector_is_promoted_by_its_golden_answers_and_rolled_back(
    stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    set_golden(add_version(stand_in.config_file.parent, "detector", 2), golden_hands(HAND))

    assert models(stand_in, "promote", "detector@2") == 0
    assert "stable of detector is version 2, before that version 1" in capsys.readouterr().out
    assert labels(stand_in, "hand_detector") == {"1": "previous_stable", "2": "stable"}

    assert models(stand_in, "rollback", "detector") == 0
    assert labels(stand_in, "hand_detector") == {"1": "stable", "2": "previous_stable"}


@pytest.mark.parametrize(
    ("hands", "words"),
    [
        ([], "golden image 1 it finds 1 hands instead of 0"),
        ([HAND, [40.0, 40.0, *HAND[2:]]], "golden image 1 it finds 1 hands instead of 2"),
        ([[HAND[0] + 10, *HAND[1:]]], "golden image 1 a hand lies 0.039 of the image's side from its place"),
        ([[*HAND[:2], HAND[2] + 10, *HAND[3:]]], "with a size that is 0.039 of it off"),
    ],
)
def test_a_detector_that_does_not_find_what_its_card_says_is_not_promoted(
    stand_in: StandIn, capsys: pytest.CaptureFixture[str], hands: list[list[float]], words: str
) -> None:
    set_golden(add_version(stand_in.config_file.parent, "detector", 2), golden_hands(*hands))

    assert models(stand_in, "promote", "detector@2") == 1

    assert words in capsys.readouterr().err
    assert labels(stand_in, "hand_detector")["1"] == "stable"
    assert "versions: 2" not in stand_in.config_file.read_text()


def test_a_model_that_an_older_configuration_does_not_have_is_promoted_into_it(tmp_path: Path) -> None:
    for variant in VARIANTS:
        add_version(tmp_path, variant, 1)
    config = config_text(tmp_path, {variant: ((1,), {"stable": 1}) for variant in VARIANTS})
    with StandIn(tmp_path, without_detector(config)) as server:
        assert labels(server, "hand_detector") == {}

        assert models(server, "promote", "detector@1", "--without-check") == 0

        assert labels(server, "hand_detector") == {"1": "stable"}
        assert labels(server) == {"1": "stable"}


def test_another_label_is_promoted_beside_stable(stand_in: StandIn) -> None:
    assert models(stand_in, "promote", "lightweight@2", "--label", "canary") == 0

    assert labels(stand_in) == {"1": "stable", "2": "canary"}


def test_a_candidate_that_is_not_what_its_card_says_is_not_promoted(
    stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    set_golden(add_version(stand_in.config_file.parent, "lightweight", 4), golden(4, off_by=40.0))

    assert models(stand_in, "promote", "lightweight@4") == 1

    assert "golden image 1 a keypoint lies 0.15" in capsys.readouterr().err
    assert labels(stand_in)["1"] == "stable"
    assert "versions: 4" not in stand_in.config_file.read_text()


def test_a_candidate_that_does_not_load_is_not_promoted(stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    folder = add_version(stand_in.config_file.parent, "lightweight", 5)
    set_golden(folder, golden(5))
    (folder / "unloadable").touch()

    assert models(stand_in, "promote", "lightweight@5") == 1

    assert "could not be loaded" in capsys.readouterr().err
    assert labels(stand_in) == {"1": "stable"}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("promote", "lightweight@9"), "there is no "),
        (("promote", "lightweight"), "name the version to promote"),
        (("promote", "heavyweight@1"), "there is no model 'heavyweight@1'"),
        (("promote", "lightweight@1"), "holds no golden answers"),
        (("promote", "standard@1", "--without-check"), "is version 1 already"),
        (("rollback", "standard"), "has no version before this one"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    stand_in: StandIn, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], reason: str
) -> None:
    before = stand_in.config_file.read_text()

    assert models(stand_in, *words) == 1

    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert stand_in.config_file.read_text() == before


def test_a_configuration_with_parts_that_would_be_lost_is_left_alone(
    stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    text = stand_in.config_file.read_text().replace('model_platform: "tensorflow"', "logging_config { }", 1)
    stand_in.config_file.write_text(text)

    assert models(stand_in, "promote", "lightweight@2") == 1

    assert "is not a configuration that can be changed here" in capsys.readouterr().err
    assert stand_in.config_file.read_text() == text


def test_a_server_that_is_away_is_named(stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in.kill()

    assert models(stand_in, "list") == 1

    assert stand_in.address in capsys.readouterr().err


AS_DEPLOYED = ("--max-num-load-retries", "2", "--load-retry-interval-s", "1.0", "--poll-s", "1.0")


@pytest.mark.slow
def test_a_broken_version_fails_within_seconds_and_is_promoted_once_it_is_repaired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_version(tmp_path, "lightweight", 1)
    folder = add_version(tmp_path, "lightweight", 2)
    set_golden(folder, golden(2))
    (folder / "unloadable").touch()
    add_version(tmp_path, "standard", 1)
    config = config_text(tmp_path, {"lightweight": ((1,), {"stable": 1}), "standard": ((1,), {"stable": 1})})
    with StandIn(tmp_path, config, arguments=AS_DEPLOYED) as server:
        began = time.monotonic()
        assert models(server, "promote", "lightweight@2") == 1
        assert time.monotonic() - began < 10
        error = capsys.readouterr().err
        assert "cpm_lightweight version 2" in error
        assert "could not be loaded: Could not find SavedModel .pb or .pbtxt" in error
        assert error.count("\n") == 1
        assert "versions: 2" not in server.config_file.read_text()
        assert models(server, "list") == 0
        assert "failed: Could not find SavedModel" in capsys.readouterr().out

        (folder / "unloadable").unlink()
        assert models(server, "promote", "lightweight@2") == 0
        assert labels(server) == {"1": "previous_stable", "2": "stable"}


async def test_a_version_is_in_the_file_that_a_restart_reads_only_once_it_has_loaded(stand_in: StandIn) -> None:
    stand_in.order(loading_s=1.0)
    before = stand_in.config_file.read_text()
    promoting = asyncio.create_task(asyncio.to_thread(models, stand_in, "promote", "lightweight@2"))
    await until(lambda: is_loading(stand_in))

    assert stand_in.config_file.read_text() == before
    assert await promoting == 0
    assert "versions: 2" in stand_in.config_file.read_text()


async def is_loading(stand_in: StandIn) -> bool:
    rows = await list_versions(servers_of(stand_in))
    return any((row["version"], row["state"]) == ("2", "LOADING") for row in rows)


def test_a_promotion_that_the_servers_undo_by_a_look_at_their_file_is_begun_again(tmp_path: Path) -> None:
    for version in (1, 2):
        set_golden(add_version(tmp_path, "lightweight", version), golden(version))
    add_version(tmp_path, "standard", 1)
    config = config_text(tmp_path, {"lightweight": ((1,), {"stable": 1}), "standard": ((1,), {"stable": 1})})
    with StandIn(tmp_path, config, arguments=("--config-poll-s", "3.0", "--faults", '{"loading_s": 0}')) as server:
        server.order(loading_s=2.0)
        assert models(server, "promote", "lightweight@2") == 0
        assert labels(server) == {"1": "previous_stable", "2": "stable"}


def test_a_version_that_keeps_the_servers_from_starting_is_rolled_back_in_the_file(
    stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert models(stand_in, "promote", "lightweight@2") == 0
    stand_in.kill()
    broken = stand_in.config_file.parent / "cpm_lightweight" / "2" / "unloadable"
    broken.touch()
    with pytest.raises(ChildProcessError):
        stand_in.start()

    assert models(stand_in, "rollback", "lightweight", "--in-file") == 0
    assert "stable of lightweight is version 1 for the model servers' next start" in capsys.readouterr().out
    stand_in.start()
    assert labels(stand_in) == {"1": "stable"}

    broken.unlink()
    assert models(stand_in, "promote", "lightweight@2") == 0
    assert labels(stand_in) == {"1": "previous_stable", "2": "stable"}
