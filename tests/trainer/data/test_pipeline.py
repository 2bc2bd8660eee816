"""The input pipeline: labels on the pixels they name, batches that depend on their number only."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.pose.geometry import Box
from service.pose.heatmaps import STRIDE, decode
from tests.trainer.data.fake_samples import dotted_sample, fake_sample
from trainer.data.augment import NO_AUGMENTATION, AugmentConfig
from trainer.data.label_trust import LabelTrust
from trainer.data.pipeline import (
    Batch,
    ImageStore,
    Prefetcher,
    TrainingBatches,
    WorkerKilledError,
    evaluation_crops,
    make_crop,
    readable,
    reductions,
    target_maps,
    to_model_input,
)
from trainer.data.sample import BadSampleError, Sample, SkippedSamples
from trainer.data.sources import WeightedSamples
from trainer.errors import TrainerError

GEOMETRY_ONLY = AugmentConfig(colour_chance=0.0, grey_chance=0.0, blur_chance=0.0, noise_chance=0.0, patch_chance=0.0)


def _weighted(*samples: Sample) -> WeightedSamples:
    return WeightedSamples(samples, (1.0,) * len(samples))


def _bright_centre(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    # The picture's own black counts, the grey beyond its edge does not.
    weight = np.where(pixels[..., 0] == 128, 0.0, pixels[..., 0].astype(np.float64))
    weight[weight < 40] = 0.0
    rows, columns = np.indices(weight.shape) + 0.5
    centre = [float((weight * axis).sum() / weight.sum()) for axis in (columns, rows)]
    return np.array(centre)


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_keypoints_stay_on_their_pixels_through_every_augmentation(tmp_path: Path, factor: float) -> None:
    sample = dotted_sample(tmp_path, 7)
    store = ImageStore({sample.image_path: factor})
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(60):
        crop = make_crop(sample, store, 96, rng, GEOMETRY_ONLY)
        keypoint = crop.keypoints_in_input[7]
        if (keypoint > 12).all() and (keypoint < 84).all():
            seen += 1
            assert np.abs(_bright_centre(crop.pixels) - keypoint).max() < 0.35
    assert seen > 20


def test_a_mirrored_crop_shows_the_other_hand(tmp_path: Path) -> None:
    sample = dotted_sample(tmp_path)
    store = ImageStore()
    always = AugmentConfig(**{**_as_dict(NO_AUGMENTATION), "mirror_chance": 1.0})
    plain = make_crop(sample, store, 64, np.random.default_rng(0))
    mirrored = make_crop(sample, store, 64, np.random.default_rng(0), always)
    assert (sample.handedness, plain.handedness, mirrored.handedness) == ("right", "right", "left")
    np.testing.assert_allclose(mirrored.keypoints_in_input[:, 0], 64 - plain.keypoints_in_input[:, 0])


def _as_dict(config: AugmentConfig) -> dict[str, float]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def test_targets_decode_to_the_keypoints(tmp_path: Path) -> None:
    sample = dotted_sample(tmp_path)
    crop = make_crop(sample, ImageStore(), 256, np.random.default_rng(0))
    maps = target_maps(crop.keypoints_in_input[None], sample.labelled[None], 256)
    assert maps.shape == (1, 32, 32, 22)
    np.testing.assert_allclose(decode(maps).in_heatmap[0] * STRIDE, crop.keypoints_in_input, atol=0.05)


def test_a_batch_weighs_its_maps_by_how_far_their_labels_are_trusted(tmp_path: Path) -> None:
    hidden = np.ones(21, bool)
    hidden[4] = False
    sample = replace(dotted_sample(tmp_path), visible=hidden)
    trust = LabelTrust(hidden=0.25)
    batch = TrainingBatches(
        _weighted(sample), ImageStore(), batch_size=3, seed=0, config=NO_AUGMENTATION, trust=trust
    ).build(0, 32)
    assert batch.weights.shape == (3, 22)
    np.testing.assert_array_equal(batch.weights[1], np.where(np.arange(22) == 4, 0.25, 1.0))


def test_a_batch_depends_on_seed_and_number_only(tmp_path: Path) -> None:
    data = _weighted(*(dotted_sample(tmp_path, number) for number in range(4)))

    def batches(seed: int) -> TrainingBatches:
        return TrainingBatches(data, ImageStore(), batch_size=4, seed=seed, config=AugmentConfig())

    in_order = batches(1)
    in_order.build(0, 32)
    first, again = in_order.build(5, 32), batches(1).build(5, 32)
    np.testing.assert_array_equal(first.crops, again.crops)
    np.testing.assert_array_equal(first.targets, again.targets)
    assert (batches(2).build(5, 32).crops != first.crops).any()
    assert (in_order.build(6, 32).crops != first.crops).any()


def test_prefetched_batches_are_the_same_with_any_number_of_workers(tmp_path: Path) -> None:
    data = _weighted(*(dotted_sample(tmp_path, number) for number in range(3)))
    batches = TrainingBatches(data, ImageStore(), batch_size=2, seed=0, config=AugmentConfig())
    expected = [batches.build(number, 32 if number < 3 else 48).crops for number in range(6)]
    for workers in (0, 2):
        with Prefetcher(batches, workers=workers, ahead=2) as prefetcher:
            for number in range(6):  # the input grows on the way
                got = prefetcher.get(number, 32 if number < 3 else 48)
                np.testing.assert_array_equal(got.crops, expected[number])


def test_batches_that_were_skipped_can_be_asked_for(tmp_path: Path) -> None:
    batches = TrainingBatches(
        _weighted(dotted_sample(tmp_path)), ImageStore(), batch_size=1, seed=0, config=AugmentConfig()
    )
    with Prefetcher(batches) as prefetcher:
        for number in (0, 7, 2):
            np.testing.assert_array_equal(prefetcher.get(number, 32).crops, batches.build(number, 32).crops)


def test_weights_say_how_often_a_sample_is_drawn(tmp_path: Path) -> None:
    # The first picture is black, the second white, and the crop shows nothing else.
    samples = []
    for name, value in (("black", 0), ("white", 255)):
        Image.new("RGB", (120, 100), (value,) * 3).save(tmp_path / f"{name}.png")
        samples.append(fake_sample(image_path=tmp_path / f"{name}.png"))
    data = WeightedSamples(tuple(samples), (1.0, 3.0))
    batches = TrainingBatches(data, ImageStore(), batch_size=8, seed=0, config=NO_AUGMENTATION)
    middles = np.concatenate([batches.build(number, 32).crops[:, 16, 16, 0] for number in range(20)])
    assert np.mean(middles > 0) == pytest.approx(0.75, abs=0.05)


def test_inputs_are_rgb_from_minus_half_to_half() -> None:
    crops = np.array([[[[0, 128, 255]]]], np.uint8)
    np.testing.assert_allclose(to_model_input(crops), [[[[-0.5, 128 / 255 - 0.5, 0.5]]]], atol=1e-6)
    assert to_model_input(crops).dtype == np.float32


def test_broken_and_missing_pictures_are_named_or_left_out(tmp_path: Path) -> None:
    good = dotted_sample(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    broken = fake_sample(image_path=tmp_path / "broken.png")
    missing = fake_sample(image_path=tmp_path / "missing.png")
    store = ImageStore()
    with pytest.raises(BadSampleError, match=r"broken\.png: "):
        store.get(broken.image_path)
    with pytest.raises(BadSampleError, match=r"missing\.png: cannot be read"):
        store.get(missing.image_path)
    skipped = SkippedSamples()
    left = readable(_weighted(good, broken, missing), store, skipped)
    assert left.samples == (good,)
    assert len(skipped.reasons) == 2


def test_a_broken_picture_stops_the_batch_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"")
    data = _weighted(fake_sample(image_path=tmp_path / "broken.png"))
    batches = TrainingBatches(data, ImageStore(), batch_size=2, seed=0, config=AugmentConfig())
    with (
        Prefetcher(batches) as prefetcher,
        pytest.raises(BadSampleError, match=r"broken\.png"),
    ):
        prefetcher.get(0, 32)


class _DiesAtBatchOne(TrainingBatches):
    """Its process is killed while it builds the second batch, as for want of memory."""

    def build(self, number: int, input_size: int) -> Batch:
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().build(number, input_size)


def test_errors_and_a_killed_worker_are_told_across_processes(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"")
    broken = _weighted(fake_sample(image_path=tmp_path / "broken.png"))
    with (
        Prefetcher(TrainingBatches(broken, ImageStore(), batch_size=2, seed=0, config=AugmentConfig()), workers=1) as p,
        pytest.raises(BadSampleError, match=r"broken\.png"),
    ):
        p.get(0, 32)
    good = _weighted(dotted_sample(tmp_path))
    with (
        Prefetcher(_DiesAtBatchOne(good, ImageStore(), batch_size=2, seed=0, config=AugmentConfig()), workers=1) as p,
        pytest.raises(TrainerError, match="was killed"),
    ):
        [p.get(number, 32) for number in range(3)]


class _IsToldToStop(TrainingBatches):
    """Its process gets the SIGTERM that a whole process group gets, from another process than its parent."""

    def build(self, number: int, input_size: int) -> Batch:
        os.kill(os.getpid(), signal.SIGTERM)
        return super().build(number, input_size)


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the sender of a signal is not told here")
def test_a_worker_leaves_a_sigterm_of_the_group_to_its_parent(tmp_path: Path) -> None:
    batches = _IsToldToStop(
        _weighted(dotted_sample(tmp_path)), ImageStore(), batch_size=2, seed=0, config=AugmentConfig()
    )
    with Prefetcher(batches, workers=1) as prefetcher:
        assert [len(prefetcher.get(number, 32).crops) for number in range(3)] == [2, 2, 2]


def test_a_pool_that_is_broken_gets_rid_of_its_other_workers(tmp_path: Path) -> None:
    good = _weighted(dotted_sample(tmp_path))
    batches = _DiesAtBatchOne(good, ImageStore(), batch_size=2, seed=0, config=AugmentConfig())
    with Prefetcher(batches, workers=2) as prefetcher, pytest.raises(WorkerKilledError):
        [prefetcher.get(number, 32) for number in range(3)]


def test_the_store_keeps_pictures_only_up_to_its_limit(tmp_path: Path) -> None:
    first, second = dotted_sample(tmp_path, 0), dotted_sample(tmp_path, 1)
    store = ImageStore(memory_bytes=120 * 100 * 3)
    kept, decoded = store.get(first.image_path), store.get(second.image_path)
    assert store.get(first.image_path) is kept
    assert store.get(second.image_path) is not decoded


def test_a_reduced_picture_still_speaks_of_the_full_size(tmp_path: Path) -> None:
    path = dotted_sample(tmp_path).image_path
    picture = ImageStore({path: 0.5}).get(path)
    assert picture.pixels.size == (60, 50)
    assert (picture.width, picture.height) == (120, 100)


def test_training_sees_a_small_hand_in_a_large_picture_as_sharp_as_serving_does(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), dtype=np.uint8)
    small, large = (
        replace(fake_sample(image_path=tmp_path / f"{name}.png"), box_in_image=Box(300.0, 200.0, side, side))
        for name, side in (("small", 70.0), ("large", 900.0))
    )
    for sample in (small, large):
        Image.fromarray(noise).save(sample.image_path)
    factors = reductions([small, large], 64)
    assert set(factors) == {large.image_path}
    for sample in (small, large):
        kept, whole = (
            make_crop(sample, store, 64, np.random.default_rng(0)).pixels.astype(np.float64)
            for store in (ImageStore(factors), ImageStore())
        )
        assert np.ptp(whole) > 20
        assert kept.std() > 0.8 * whole.std()
    assert ImageStore(factors).get(large.image_path).pixels.size == (137, 102)


def test_of_several_hands_in_a_picture_the_smallest_decides_how_far_it_is_reduced(tmp_path: Path) -> None:
    one, other = (
        replace(fake_sample(image_path=tmp_path / "both.png"), box_in_image=Box(0.0, 0.0, side, side))
        for side in (900.0, 300.0)
    )
    assert reductions([one, other], 64) == reductions([other], 64) != reductions([one], 64)


def test_evaluation_crops_come_in_order_and_in_groups(tmp_path: Path) -> None:
    samples = [dotted_sample(tmp_path, number) for number in range(5)]
    groups = list(evaluation_crops(samples, ImageStore(), 32, 2))
    assert [len(group) for group, _ in groups] == [2, 2, 1]
    assert [sample.name for group, _ in groups for sample in group] == [s.name for s in samples]
