"""Which servables are found on disk, and what is said of those that cannot be served."""

from pathlib import Path

import pytest

from service.backends.repository import ServableError, as_served, newest_servables
from tests.support.servables import write_card, write_detector_card


def test_newest_versions_of_every_model_are_found(tmp_path: Path) -> None:
    for version in (1, 2, 10):
        write_card(tmp_path, "standard", version=version)
    write_card(tmp_path, "lightweight")
    found = [(each.card.name, each.card.version) for each in newest_servables(tmp_path, 2)]
    assert found == [("cpm_lightweight", 1), ("cpm_standard", 2), ("cpm_standard", 10)]


def test_newest_version_of_each_model_is_stable(tmp_path: Path) -> None:
    for version in (9, 10):
        write_card(tmp_path, "standard", version=version)
    write_card(tmp_path, "lightweight", version=3)
    served = as_served(newest_servables(tmp_path, 5))
    assert {(each.name, each.version): each.labels for each in served} == {
        ("cpm_standard", 9): (),
        ("cpm_standard", 10): ("stable",),
        ("cpm_lightweight", 3): ("stable",),
    }


def test_folders_that_are_being_written_are_left_alone(tmp_path: Path) -> None:
    write_card(tmp_path, "standard")
    for name in (".export-2-abc", "tmp", "2.old", "²"):
        (tmp_path / "cpm_standard" / name).mkdir()
    assert len(newest_servables(tmp_path, 5)) == 1


@pytest.mark.parametrize("exists", [True, False])
def test_empty_repository_says_how_to_fill_it(tmp_path: Path, exists: bool) -> None:
    root = tmp_path if exists else tmp_path / "nowhere"
    with pytest.raises(ServableError, match="make models"):
        newest_servables(root, 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stride": 4}, "stride"),
        ({"channels": 21}, "channels"),
        ({"input_size": 100}, "input_size"),
        ({"keypoints": ["wrist"]}, "keypoints"),
        ({"variant": "huge"}, "variant"),
        ({"version": 7}, "not the folder"),
        ({"name": "other"}, "not the folder"),
    ],
)
def test_card_that_does_not_fit_is_named_with_what_is_wrong(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    folder = write_card(tmp_path, changes=change)
    with pytest.raises(ServableError, match=words) as caught:
        newest_servables(tmp_path, 1)
    assert str(folder / "model_card.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_newest_card_that_does_not_fit_is_passed_over(tmp_path: Path) -> None:
    write_card(tmp_path, "standard", version=1)
    write_card(tmp_path, "standard", version=2, changes={"stride": 4})
    write_detector_card(tmp_path, version=3)
    write_detector_card(tmp_path, version=4, changes={"columns": ["score"]})
    found = [str(each) for each in newest_servables(tmp_path, 1)]
    assert found == ["cpm_standard version 1", "hand_detector version 3"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"columns": ["score", "y", "x", "size", "cos", "sin", "right"]}, "columns"),
        ({"detections": 0}, "detections"),
        ({"input_size": 250}, "input_size"),
        ({"name": "cpm_standard"}, "name"),
        ({"version": 7}, "not the folder"),
    ],
)
def test_detectors_card_that_does_not_fit_is_named_with_what_is_wrong(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    write_detector_card(tmp_path, changes=change)
    with pytest.raises(ServableError, match=words):
        newest_servables(tmp_path, 1)


@pytest.mark.parametrize("content", [None, "", "{", "[]"])
def test_card_that_is_missing_or_no_card_is_named(tmp_path: Path, content: str | None) -> None:
    card = write_card(tmp_path) / "model_card.json"
    card.unlink()
    if content is not None:
        card.write_text(content)
    with pytest.raises(ServableError, match=r"model_card\.json"):
        newest_servables(tmp_path, 1)
