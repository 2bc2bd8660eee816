"""RHD from its original folder and from MMPose's JSON: order, hand, split, and hostile pickles."""

import os
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.trainer.data import miniature_rhd as miniature
from tests.trainer.data.fake_samples import fake_sample
from trainer.data.rhd import (
    TO_BASE_FIRST,
    decode_depth,
    hand_of_mask,
    paper_split,
    read_annotations,
    read_mmpose_rhd,
    read_rhd,
)
from trainer.data.sample import BadSampleError, DataError, Sample, SkippedSamples

REAL_SAMPLES = Path(os.environ.get("HANDPOSE_REAL_SAMPLES", Path(__file__).parents[4] / "shared/data/real_samples"))


@pytest.fixture(scope="module")
def rhd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("RHD_published_v2")
    miniature.write_miniature_rhd(folder)
    return folder


def test_every_keypoint_lies_on_its_own_finger_for_left_and_right_hands(rhd: Path) -> None:
    samples = read_rhd(rhd)
    assert {sample.handedness for sample in samples} == {"left", "right"}
    for sample in samples:
        picture = Image.open(sample.image_path)
        fingers = [miniature.finger_at(picture, point) for point in sample.keypoints_in_image[1:]]
        assert fingers == [finger for finger in range(5) for _ in range(4)]


def test_fingers_run_from_base_to_tip(rhd: Path) -> None:
    for sample in read_rhd(rhd):
        from_wrist = np.linalg.norm(sample.keypoints_in_image - sample.keypoints_in_image[0], axis=1)
        assert (np.diff(from_wrist[1:].reshape(5, 4), axis=1) > 0).all()


def test_the_hand_with_more_mask_pixels_is_the_sample(tmp_path: Path) -> None:
    expected = miniature.write_miniature_rhd(tmp_path, training=4, evaluation=2)
    assert {sample.name: sample.handedness for sample in read_rhd(tmp_path)} == expected


def test_hidden_keypoints_are_labelled_but_not_visible(rhd: Path) -> None:
    sample = read_rhd(rhd)[0]
    assert sample.labelled.all()
    assert not sample.visible[20]
    assert sample.visible[:20].all()


def test_mask_classes_2_to_17_are_left_and_those_above_right() -> None:
    mask = np.zeros((4, 4), np.uint8)
    mask[0], mask[1, :3], mask[3] = 17, 18, 1
    assert hand_of_mask(mask) == "left"
    mask[2] = 33
    assert hand_of_mask(mask) == "right"
    assert hand_of_mask(np.ones((2, 2), np.uint8)) == "right"


def test_depth_is_decoded_to_metres(rhd: Path) -> None:
    picture = np.asarray(Image.open(rhd / "training/depth/00000.png"))
    assert decode_depth(picture)[0, 0] == pytest.approx((26 * 256 + 100) / 65535 * 5)
    assert decode_depth(np.full((1, 1, 3), 255, np.uint8))[0, 0] == pytest.approx(5.0)


def test_order_conversion_is_a_permutation_that_turns_each_finger_round() -> None:
    assert sorted(TO_BASE_FIRST.tolist()) == list(range(21))
    assert (TO_BASE_FIRST[TO_BASE_FIRST] == np.arange(21)).all()
    assert TO_BASE_FIRST[[0, 4, 8, 20]].tolist() == [0, 1, 5, 17]


def test_official_parts_can_be_read_alone_and_are_named(rhd: Path) -> None:
    assert len(read_rhd(rhd)) == 12
    evaluation = read_rhd(rhd / "evaluation")
    assert len(evaluation) == 4
    assert all(sample.name.startswith("evaluation/") for sample in evaluation)


def _pictures(count: int, hands: int = 1) -> list[Sample]:
    return [fake_sample(name=f"color/{number:05d}.png") for number in range(count) for _ in range(hands)]


def _names(samples: Iterable[Sample]) -> set[str]:
    return {sample.name for sample in samples}


def test_paper_split_is_8_1_1_but_for_chance() -> None:
    samples = _pictures(2000)
    split = paper_split(samples)
    assert len(split.train) == pytest.approx(1600, rel=0.05)
    assert len(split.validation) == pytest.approx(200, rel=0.2)
    assert len(split.test) == pytest.approx(200, rel=0.2)
    assert sorted((*split.train, *split.validation, *split.test), key=lambda s: s.name) == samples
    assert _names(paper_split(samples, seed=1).test) != _names(split.test)


def test_paper_split_keeps_both_hands_of_a_picture_together() -> None:
    split = paper_split(_pictures(100, hands=2))
    parts = [_names(split.train), _names(split.validation), _names(split.test)]
    assert sum(len(part) for part in parts) == len(set.union(*parts)) == 100


def test_no_picture_changes_its_part_when_samples_are_reordered_left_out_or_joined_by_another_set() -> None:
    samples = _pictures(200)
    test = _names(paper_split(samples).test)
    assert _names(paper_split(samples[::-1]).test) == test
    assert _names(paper_split(samples[1:]).test) == test - {samples[0].name}
    others = [fake_sample(name=f"photo{number}.jpg", source="photos") for number in range(100)]
    assert _names(paper_split([*others, *samples]).test) & _names(samples) == test


def test_a_set_too_small_for_three_parts_is_refused() -> None:
    with pytest.raises(DataError, match="needs more pictures: these 2 hands would be split"):
        paper_split(_pictures(2))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol_are_read(tmp_path: Path, protocol: int) -> None:
    values = {3: {"uv_vis": np.arange(126, dtype=np.float32).reshape(42, 3), "K": np.eye(3, order="F")}}
    path = tmp_path / "anno_training.pickle"
    path.write_bytes(pickle.dumps(values, protocol=protocol))
    read = read_annotations(path)
    np.testing.assert_array_equal(read[3]["uv_vis"], values[3]["uv_vis"])
    np.testing.assert_array_equal(read[3]["K"], values[3]["K"])
    assert read[3]["uv_vis"].dtype == np.float32


def test_pickles_of_numpy_1_and_numpy_2_are_read(tmp_path: Path) -> None:
    modern = pickle.dumps({0: {"K": np.eye(3), "n": np.float64(0.5)}}, protocol=2)
    old = modern.replace(b"numpy._core.", b"numpy.core.")
    assert b"numpy._core." in modern
    for content in (modern, old):
        path = tmp_path / "anno_training.pickle"
        path.write_bytes(content)
        np.testing.assert_array_equal(read_annotations(path)[0]["K"], np.eye(3))


class _RunsAProgram:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch was_run",))


class _TakesAttribute:
    def __reduce__(self) -> tuple[Any, ...]:
        return (getattr, ("text", "upper"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({0: _RunsAProgram()}, r"asks for (posix|nt)\.system"),
        ({0: _TakesAttribute()}, r"asks for builtins\.getattr"),
        ({0: {"uv_vis": np.array([_RunsAProgram()])}}, "refused"),
        ({0: {"uv_vis": np.array([None])}}, "array of 'O8'"),
        ({0: Path("x")}, "asks for pathlib"),
    ],
)
def test_malicious_pickle_is_refused_and_nothing_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "anno_training.pickle"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=reason) as raised:
        read_annotations(path)
    assert str(path) in str(raised.value)
    assert not (tmp_path / "was_run").exists()


def _global(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


_SCALAR = _global("numpy.core.multiarray.scalar")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x80\x02}r\xff\xff\xff\x0f.", r"its memo is not in order \(LONG_BINPUT 268435455"),
        (b"\x80\x02}K\x00)q\x00s.", "its memo is not in order"),  # no pickler notes the empty tuple
        (b"\x80\x02}K\x00\x85q\x00h\x00\x86s.", "it uses one tuple twice"),  # doubles when hashed
        (b"\x80\x02}K\x00]2as.", "the opcode DUP"),
        (b"\x80\x02K\x00Q.", "the opcode BINPERSID"),
        (b"\x80\x02}K\x00" + _SCALAR + b"N}X\x0c\x00\x00\x00__defaults__K\x01K\x02\x86s\x86bs.", "changes a function"),
        (b"\x80\x02}K\x00" + _SCALAR + b"s.", "it holds a StandIn"),
    ],
)
def test_a_pickle_that_would_fill_memory_or_touch_our_code_is_refused(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "anno_training.pickle"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read_annotations(path)


def test_lists_shared_a_million_million_times_over_are_read_once(tmp_path: Path) -> None:
    content: list[Any] = []
    for _ in range(40):
        content = [content, content]
    path = tmp_path / "anno_training.pickle"
    path.write_bytes(pickle.dumps({0: content}))
    first, second = read_annotations(path)[0]
    assert first is second


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({0: 1})[:-4], pickle.dumps([1, 2])])
def test_damaged_pickle_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "anno_training.pickle"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"anno_training\.pickle"):
        read_annotations(path)


def test_missing_and_broken_files_are_named_and_can_be_skipped(tmp_path: Path) -> None:
    miniature.write_miniature_rhd(tmp_path, training=4, evaluation=2)
    (tmp_path / "training/color/00001.png").unlink()
    with pytest.raises(BadSampleError, match=r"training/color/00001\.png: missing picture"):
        read_rhd(tmp_path)
    (tmp_path / "evaluation/mask/00000.png").write_bytes(b"\x89PNG broken")
    skipped = SkippedSamples()
    assert len(read_rhd(tmp_path, on_bad=skipped)) == 4
    assert len(skipped.reasons) == 2
    assert "00001.png: missing" in skipped.summary()
    assert "mask/00000.png" in skipped.summary()


def test_wrong_keypoint_count_is_named(tmp_path: Path) -> None:
    miniature.write_miniature_rhd(tmp_path, training=1, evaluation=1)
    path = tmp_path / "training/anno_training.pickle"
    path.write_bytes(pickle.dumps({0: {"uv_vis": np.zeros((21, 3))}}))
    with pytest.raises(BadSampleError, match=r"00000\.png: uv_vis must hold 42 keypoints.*\(21, 3\)"):
        read_rhd(tmp_path)


def test_folder_without_rhd_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="training or evaluation"):
        read_rhd(tmp_path)
    (tmp_path / "training").mkdir()
    with pytest.raises(DataError, match=r"anno_training\.pickle: missing annotations"):
        read_rhd(tmp_path)


def test_mmpose_rhd_samples_have_base_to_tip_order_and_both_hands() -> None:
    folder = REAL_SAMPLES / "rhd"
    if not folder.is_dir():
        pytest.skip("MMPose's RHD samples are not here")
    samples = {sample.name: sample for sample in read_mmpose_rhd(folder)}
    assert {name: sample.handedness for name, sample in samples.items()} == {
        "00111.png": "left",
        "01111.png": "left",
        "11111.png": "right",
    }
    # The thumb's tip of the first picture, as seen in the picture itself: far from the wrist, at the lower left.
    np.testing.assert_allclose(samples["00111.png"].keypoints_in_image[4], [170.4, 115.0], atol=1e-4)
    for sample in samples.values():
        bases = sample.keypoints_in_image[[5, 9, 13, 17]]
        tips = sample.keypoints_in_image[[8, 12, 16, 20]]
        wrist = sample.keypoints_in_image[0]
        # Knuckles of one hand lie closer together than its fingertips or between wrist and tips.
        assert np.ptp(bases, axis=0).max() < np.linalg.norm(tips - wrist, axis=1).max()
