"""Naming data sets on the command line, and splits by file name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainer.data.fake_samples import fake_sample
from tests.trainer.data.miniature_rhd import write_miniature_rhd
from trainer.data.sample import Credit, DataError
from trainer.data.sources import (
    Source,
    WeightedSamples,
    check_sources_apart,
    read_sources,
    split_by_name,
    with_enough_keypoints,
)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("coco:a/b", Source("coco", Path("a/b"))),
        ("coco:a/b@0.5", Source("coco", Path("a/b"), 0.5)),
        ("rhd:/x/RHD_published_v2@2", Source("rhd", Path("/x/RHD_published_v2"), 2.0)),
        ("mmpose-rhd:rhd.json", Source("mmpose-rhd", Path("rhd.json"))),
        ("coco:me@home/photos", Source("coco", Path("me@home/photos"))),
        ("coco:C:/photos", Source("coco", Path("C:/photos"))),
        ("coco:a/b@57.5%", Source("coco", Path("a/b"), 57.5, is_share=True)),
    ],
)
def test_sources_are_parsed(text: str, source: Source) -> None:
    assert Source.parse(text) == source


@pytest.mark.parametrize("text", ["photos", "voc:photos", "coco:", "coco:photos@0"])
def test_a_source_that_cannot_be_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(DataError, match=r"KIND one of coco, rhd, mmpose-rhd|must be positive"):
        Source.parse(text)


def test_several_sets_are_read_with_their_weights(tmp_path: Path) -> None:
    write_miniature_rhd(tmp_path / "rhd", training=3, evaluation=2)
    data = read_sources([Source("rhd", tmp_path / "rhd/training", 0.5), Source("rhd", tmp_path / "rhd/evaluation")])
    assert data.weights == (0.5, 0.5, 0.5, 1.0, 1.0)


def test_a_percentage_is_a_sets_share_of_the_samples_drawn(tmp_path: Path) -> None:
    write_miniature_rhd(tmp_path / "rhd", training=3, evaluation=2)
    parts = [f"rhd:{tmp_path / 'rhd' / name}" for name in ("training", "evaluation")]
    data = read_sources([Source.parse(f"{part}@{percent}%") for part, percent in zip(parts, (75, 25), strict=True)])
    assert sum(data.weights[:3]) == pytest.approx(3 * sum(data.weights[3:]))
    with pytest.raises(DataError, match="a percentage for every data set"):
        read_sources([Source.parse(f"{parts[0]}@50%"), Source.parse(parts[1])])


def test_hands_with_too_few_visible_keypoints_are_left_out() -> None:
    visible = np.arange(21) < 11
    hidden, seen = replace(fake_sample(name="hidden"), visible=visible), fake_sample(name="seen")
    kept = with_enough_keypoints(WeightedSamples((hidden, seen), (1.0, 2.0)), 12)
    assert [sample.name for sample in kept.samples] == ["seen"]
    assert kept.weights == (2.0,)


@pytest.mark.parametrize("field", ["group", "credit"])
def test_people_or_sources_on_both_sides_of_a_split_are_refused(field: str) -> None:
    values: list[Any] = ["ann", "bob"] if field == "group" else [Credit("ann", "MIT"), Credit("bob", "MIT")]
    ann, bob = (replace(fake_sample(), **{field: value}) for value in values)

    check_sources_apart([ann, fake_sample()], [bob, fake_sample()])
    with pytest.raises(DataError, match=r"'bob' is trained on .* and held out .*: hold all of it out, or none"):
        check_sources_apart([ann, bob], [bob])


def test_pictures_of_one_name_in_sets_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("a/hands", "b/hands", "b/others"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.png").touch()
        document = {
            "images": [{"id": 1, "file_name": "1.png"}],
            "annotations": [{"image_id": 1, "keypoints": [float(n) for n in range(1, 64)]}],
        }
        (tmp_path / name / "annotations.json").write_text(json.dumps(document))
    first, same, other = (Source("coco", tmp_path / name) for name in ("a/hands", "b/hands", "b/others"))
    assert [sample.source for sample in read_sources([first, other]).samples] == ["hands", "others"]
    for twice in (first, same):
        with pytest.raises(DataError, match=r"are both known as 'hands' and both have a picture 1\.png: rename"):
            read_sources([first, twice])


def test_holdout_keeps_whole_groups_of_names_out_of_training() -> None:
    samples = tuple(fake_sample(name=name) for name in ("a_1.png", "a_2.png", "b_1.png", "c_1.png"))
    train, held = split_by_name(WeightedSamples(samples, (1.0, 2.0, 3.0, 4.0)), ["^a_", "^c"])
    assert [sample.name for sample in train.samples] == ["b_1.png"]
    assert train.weights == (3.0,)
    assert [sample.name for sample in held.samples] == ["a_1.png", "a_2.png", "c_1.png"]


def test_a_holdout_that_leaves_nothing_or_is_no_expression_is_refused() -> None:
    data = WeightedSamples((fake_sample(),), (1.0,))
    with pytest.raises(DataError, match="leave no sample to train on"):
        split_by_name(data, ["."])
    with pytest.raises(DataError, match=r"'\(' is no regular expression"):
        split_by_name(data, ["("])
