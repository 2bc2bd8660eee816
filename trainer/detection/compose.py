"""Training pictures for the detector: whole photos and renders, several in one, hands pasted into other pictures.

Photos in which all hands are labelled are few, and most labelled hands fill half of their photo. So hands are cut out
with soft edges and pasted small and large into other pictures, with cut-outs without hands beside them in the same way:
a cut-out says nothing about whether there is a hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.pose.geometry import Affine, Box, crop_affine
from service.pose.preprocessing import show
from trainer.data.augment import AugmentConfig, photometric
from trainer.data.pipeline import ImageStore
from trainer.detection.labels import LabelledHand, LabelledPicture, excused
from trainer.detection.targets import Targets, make_targets

PHOTOMETRIC: Final = AugmentConfig(patch_chance=0.1, shake_chance=0.08, coarse_chance=0.2)
"""How the pixels of a whole picture vary; the affine part of it is not used."""

_COVERED: Final = 0.3  # share of a hand's keypoints under a pasted cut-out from which on it is excused


@dataclass(frozen=True, slots=True)
class Shares:
    """What training pictures are made of. Shares of the pictures that are drawn, in any unit.

    Attributes:
        rendered: rendered scenes.
        scenes: photos in which all hands are labelled.
        close: photos of single hands.
        empty: photos without a hand.
        mosaic_chance: chance that four pictures make one.
        paste_chance: chance that hands and empty cut-outs are pasted into a picture.
        any_turn_chance: chance of a turn by any angle instead of one of about `turn` degrees.
        turn: standard deviation of the other turns, in degrees.
    """

    rendered: float = 0.32
    scenes: float = 0.2
    close: float = 0.26
    empty: float = 0.22
    mosaic_chance: float = 0.22
    paste_chance: float = 0.35
    any_turn_chance: float = 0.12
    turn: float = 16.0


@dataclass(frozen=True, slots=True)
class Scene:
    """A training picture: uint8 RGB [S, S, 3], and what is in it."""

    pixels: NDArray[np.uint8]
    hands: tuple[LabelledHand, ...]
    ignored: tuple[Box, ...]


class Composer:
    """Makes training pictures from four stocks; what comes out depends on the random generator only."""

    def __init__(
        self,
        store: ImageStore,
        *,
        rendered: Sequence[LabelledPicture],
        scenes: Sequence[LabelledPicture],
        close: Sequence[LabelledPicture],
        empty: Sequence[LabelledPicture],
        shares: Shares | None = None,
    ) -> None:
        self._store = store
        self._shares = shares or Shares()
        self._close, self._empty = close, empty
        stocks = ((rendered, self._shares.rendered), (scenes, self._shares.scenes), (close, self._shares.close))
        self._stocks = [(stock, share) for stock, share in (*stocks, (empty, self._shares.empty)) if stock]
        total = sum(share for _, share in self._stocks)
        self._chances = [share / total for _, share in self._stocks]

    def make(self, rng: np.random.Generator, size: int) -> tuple[NDArray[np.uint8], Targets]:
        """A picture, uint8 RGB [size, size, 3], and its targets."""
        if rng.random() < self._shares.mosaic_chance:
            scene = self._mosaic(rng, size)
        else:
            scene = self._single(rng, size)
            if rng.random() < self._shares.paste_chance:
                scene = self._pasted(rng, scene)
        pixels = photometric(scene.pixels, rng, PHOTOMETRIC)
        return pixels, make_targets(scene.hands, scene.ignored, size)

    def _single(self, rng: np.random.Generator, size: int) -> Scene:
        stock, _ = self._stocks[int(rng.choice(len(self._stocks), p=self._chances))]
        picture = stock[int(rng.integers(len(stock)))]
        if stock is self._close:
            zoom = math.exp(rng.uniform(math.log(0.3), math.log(1.5)))
        else:
            zoom = math.exp(rng.uniform(math.log(0.75), math.log(1.9)) if rng.random() < 0.7 else 0.0)
        to_input = self._placed(rng, picture, size, zoom)
        moved = picture.moved(to_input)
        pixels = show(self._store.get(picture.path), to_input, (size, size))
        if self._empty and zoom < 1 and rng.random() < 0.75:  # what lies around is another picture
            inside = show_mask(picture.size, to_input, size)
            pixels = np.where(inside[..., None], pixels, self._backdrop(rng, size))
        return Scene(pixels, moved.hands, moved.ignored)

    def _placed(self, rng: np.random.Generator, picture: LabelledPicture, size: int, zoom: float) -> Affine:
        """The map from a picture to the input: letterboxed, scaled, turned, mirrored; a piece of it where larger."""
        whole = Box(0.0, 0.0, float(picture.size[0]), float(picture.size[1]))
        shares = self._shares
        turn = math.radians(shares.turn * float(rng.standard_normal()))
        if rng.random() < shares.any_turn_chance:
            turn = rng.uniform(-math.pi, math.pi)
        if rng.random() < 0.25:
            turn = 0.0
        to_input = crop_affine(whole, (size, size), radians=turn, mirrored=bool(rng.random() < 0.5))
        stretch = math.exp(rng.normal(0.0, 0.06))
        middle = Affine.translation(-size / 2, -size / 2)
        scaled = middle.then(Affine.scaling(zoom * stretch, zoom / stretch))
        to_input = to_input.then(scaled).then(Affine.translation(size / 2, size / 2))
        spare = abs(zoom - 1) * size / 2
        if zoom > 1 and picture.hands and rng.random() < 0.7:  # keep a hand in sight
            hand = picture.hands[int(rng.integers(len(picture.hands)))]
            x, y = to_input.apply(np.array(hand.box.centre))
            shift = (size * rng.uniform(0.2, 0.8) - x, size * rng.uniform(0.2, 0.8) - y)
            return to_input.then(Affine.translation(*(float(np.clip(each, -spare, spare)) for each in shift)))
        return to_input.then(Affine.translation(rng.uniform(-spare, spare), rng.uniform(-spare, spare)))

    def _backdrop(self, rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
        picture = self._empty[int(rng.integers(len(self._empty)))]
        scale = max(size / picture.size[0], size / picture.size[1]) * rng.uniform(1.0, 1.6)
        spare = np.array(picture.size) * scale - size
        shift = -rng.random(2) * spare
        to_input = Affine.scaling(scale).then(Affine.translation(float(shift[0]), float(shift[1])))
        if rng.random() < 0.5:
            to_input = to_input.then(Affine.mirror(size))
        return show(self._store.get(picture.path), to_input, (size, size))

    def _mosaic(self, rng: np.random.Generator, size: int) -> Scene:
        """Four pictures in one, at about a half of their size."""
        middle = [INPUT_STEP * round(size * rng.uniform(0.4, 0.6) / INPUT_STEP) for _ in range(2)]
        pixels = np.empty((size, size, 3), np.uint8)
        hands: list[LabelledHand] = []
        ignored: list[Box] = []
        for left, right in ((0, middle[0]), (middle[0], size)):
            for top, bottom in ((0, middle[1]), (middle[1], size)):
                side = max(right - left, bottom - top)
                part = self._single(rng, side)
                pixels[top:bottom, left:right] = part.pixels[: bottom - top, : right - left]
                move = Affine.translation(left, top)
                for hand in part.hands:
                    within = (hand.keypoints >= 0) & (hand.keypoints < (right - left, bottom - top))
                    share = within.all(axis=1).mean()
                    if share > 0.7:
                        hands.append(hand.moved(move))
                    elif share > 0:
                        ignored.append(excused(hand.moved(move)))
                ignored.extend(Box(box.x + left, box.y + top, box.width, box.height) for box in part.ignored)
        return Scene(pixels, tuple(hands), tuple(ignored))

    def _pasted(self, rng: np.random.Generator, scene: Scene) -> Scene:
        size = scene.pixels.shape[0]
        for _ in range(int(rng.integers(1, 4))):
            scene = self._paste(rng, scene, size, empty=bool(rng.random() < 0.4))
        return scene

    def _paste(self, rng: np.random.Generator, scene: Scene, size: int, *, empty: bool) -> Scene:
        """Another picture's hand, or a piece without one, with soft edges somewhere in the scene."""
        stock = self._empty if empty and self._empty else self._close
        if not stock:
            return scene
        picture = stock[int(rng.integers(len(stock)))]
        wanted = math.exp(rng.uniform(math.log(0.06), math.log(0.5))) * size
        place = rng.uniform(0.08, 0.92, 2) * size
        radians = math.radians(25.0 * float(rng.standard_normal()))
        if picture.hands:
            hand = picture.hands[0]
            about, side = np.array(hand.box.centre), max(hand.box.width, hand.box.height)
        else:
            side = rng.uniform(0.15, 0.5) * min(picture.size)
            about = np.array(picture.size) * rng.uniform(0.25, 0.75, 2)
        to_input = Affine.translation(-float(about[0]), -float(about[1])).then(Affine.scaling(wanted / side))
        if rng.random() < 0.5:
            to_input = to_input.then(Affine.mirror(0.0))
        to_input = to_input.then(Affine.rotation(radians)).then(Affine.translation(float(place[0]), float(place[1])))
        reach = rng.uniform(0.62, 0.95) * wanted  # half of the cut-out's side
        alpha = _soft_square(rng, place, reach, size) * show_mask(picture.size, to_input, size)
        covered = alpha > 0.5
        patch = show(self._store.get(picture.path), to_input, (size, size))
        mixed = scene.pixels + alpha[..., None] * (patch.astype(np.float32) - scene.pixels)
        hands, ignored = [], list(scene.ignored)
        for hand in scene.hands:
            columns, rows = np.clip(hand.keypoints, 0, size - 1).astype(int).T
            if covered[rows, columns].mean() <= _COVERED:
                hands.append(hand)
            else:
                ignored.append(excused(hand))
        moved = picture.moved(to_input)
        return replace(
            scene,
            pixels=np.rint(mixed).astype(np.uint8),
            hands=(*hands, *moved.hands),
            ignored=tuple(ignored),
        )


INPUT_STEP: Final = 8  # mosaics are cut between cells


def show_mask(picture_size: tuple[int, int], to_input: Affine, size: int) -> NDArray[np.bool_]:
    """Which pixels of the input [size, size] the picture covers."""
    rows, columns = np.mgrid[0:size, 0:size] + 0.5
    back = to_input.inverse()
    x = back.a * columns + back.b * rows + back.c
    y = back.d * columns + back.e * rows + back.f
    covered: NDArray[np.bool_] = (x > 0) & (x < picture_size[0]) & (y > 0) & (y < picture_size[1])
    return covered


def _soft_square(rng: np.random.Generator, centre: NDArray[np.float64], reach: float, size: int) -> NDArray[np.float32]:
    """1 in a round or square region, 0 outside, with an edge that is sharp or soft: float32 [size, size]."""
    power = rng.uniform(2.0, 8.0)
    edge = reach * rng.uniform(0.02, 0.35)
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32) + np.float32(0.5)
    across = np.abs(columns - centre[0]) / reach
    along = np.abs(rows - centre[1]) / (reach * rng.uniform(0.85, 1.15))
    distance = (across**power + along**power) ** (1 / power)
    soft: NDArray[np.float32] = np.clip((1 - distance) * reach / edge, 0.0, 1.0).astype(np.float32)
    return soft
