"""Pictures with all their hands, as the detector learns them: read from COCO files, moved by affine maps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from service.pose.geometry import Affine, Box, turn_to_upright
from service.pose.keypoints import KEYPOINT_COUNT
from trainer.data.coco import (
    annotation_file,
    annotations_of,
    credit_of,
    find_image,
    images_by_id,
    keypoint_orders,
    load_json,
    set_folder,
    shift_to_continuous,
)
from trainer.data.label_convention import check_label_convention
from trainer.data.sample import BadSampleError, Credit, Handedness

_WRIST, _MIDDLE_MCP = 0, 9
_FEWEST_LABELLED: Final = 8  # keypoints without which a hand is excused instead of being taught
_ROOM: Final = 1.2  # how much larger than its keypoints' box what is excused about a hand is


@dataclass(frozen=True, slots=True)
class LabelledHand:
    """One hand of a picture.

    Attributes:
        keypoints: float64 [K, 2], those that are labelled, in continuous pixels of the picture.
        along: float64 [2], wrist -> middle_mcp in pixels; None where either is not labelled.
        handedness: the side as literally seen; None if not told.
    """

    keypoints: NDArray[np.float64]
    along: NDArray[np.float64] | None
    handedness: Handedness | None

    def moved(self, to: Affine) -> LabelledHand:
        """The hand after an affine map; a mirrored left hand is a right one."""
        handedness = self.handedness
        if handedness is not None and to.determinant < 0:
            handedness = "right" if handedness == "left" else "left"
        along = None if self.along is None else to.apply(self.along) - to.apply(np.zeros(2))
        return LabelledHand(to.apply(self.keypoints), along, handedness)

    @property
    def box(self) -> Box:
        """Tight around the labelled keypoints."""
        return Box.around(self.keypoints)

    def upright_square(self) -> tuple[NDArray[np.float64], float]:
        """Centre [2] and side of the square about the hand turned upright; as it is where its turn is not known."""
        turn = Affine.rotation(turn_to_upright(self.along) if self.along is not None else 0.0)
        box = Box.around(turn.apply(self.keypoints))
        return turn.inverse().apply(np.array(box.centre)), max(box.width, box.height)


@dataclass(frozen=True, slots=True)
class LabelledPicture:
    """A picture and all that is known of the hands in it.

    Attributes:
        path: the file.
        size: (width, height) in pixels.
        hands: those to be found.
        ignored: boxes in which there may be hands that nobody labelled: neither taught as hands nor as background.
        group: people or place of the picture; None if not told.
        source: name of the set.
        name: the file's name in its set.
        credit: where the picture comes from; None if not told.
    """

    path: Path
    size: tuple[int, int]
    hands: tuple[LabelledHand, ...]
    ignored: tuple[Box, ...]
    group: str | None
    source: str
    name: str
    credit: Credit | None

    def moved(self, to: Affine) -> LabelledPicture:
        """The labels after an affine map of the picture."""
        return replace(
            self,
            hands=tuple(hand.moved(to) for hand in self.hands),
            ignored=tuple(Box.around(to.apply(_corners(box))) for box in self.ignored),
        )


def excused(hand: LabelledHand) -> Box:
    """The box that is left out of the loss for a hand that is not to be taught."""
    return hand.box.scaled(_ROOM)


def read_pictures(path: Path) -> list[LabelledPicture]:
    """Every picture of a set in COCO form with its hands, those without any included.

    A hand of which fewer than 8 keypoints are seen (or labelled, where the set does not tell) is excused.

    Raises DataError as `trainer.data.coco.read_coco` does, and for annotations that cannot be read.
    """
    file = annotation_file(path)
    document = load_json(file)
    check_label_convention(document, file)
    order_of = keypoint_orders(document)
    of_image: dict[Any, list[dict[str, Any]]] = {}
    try:
        annotations = annotations_of(document, file)
        for annotation in annotations:
            of_image.setdefault(annotation["image_id"], []).append(annotation)
        shift = shift_to_continuous(document, annotations, file)
    except (TypeError, KeyError) as error:
        raise BadSampleError(f"{file}: an annotation is malformed: {error}") from error
    pictures = []
    for key, image in images_by_id(document, file).items():
        hands, ignored = [], []
        for annotation in of_image.get(key, []):
            try:
                hand = _hand(annotation, order_of(annotation), shift)
            except (TypeError, ValueError) as error:
                name = annotation.get("id")
                raise BadSampleError(f"{file}: annotation {name} is malformed: {error}") from error
            if hand is not None and not (annotation.get("ignore") or annotation.get("iscrowd")):
                hands.append(hand)
            elif annotation.get("bbox"):
                ignored.append(Box(*map(float, annotation["bbox"])).scaled(_ROOM))
        pictures.append(
            LabelledPicture(
                find_image(file, image),
                (int(image["width"]), int(image["height"])),
                tuple(hands),
                tuple(ignored),
                image.get("group"),
                set_folder(file).name,
                str(image["file_name"]),
                credit_of(image),
            )
        )
    return pictures


def _hand(annotation: dict[str, Any], order: list[int], shift: float) -> LabelledHand | None:
    values = annotation.get("keypoints")
    if not values:
        return None
    table = np.asarray(values, np.float64).reshape(KEYPOINT_COUNT, 3)[order]
    labelled = table[:, 2] > 0
    if np.count_nonzero(labelled) < _FEWEST_LABELLED:
        return None
    known = bool(labelled[_WRIST] and labelled[_MIDDLE_MCP])
    along = table[_MIDDLE_MCP, :2] - table[_WRIST, :2] if known else None
    handedness = annotation.get("handedness")
    return LabelledHand(table[labelled, :2] + shift, along, handedness if handedness in ("left", "right") else None)


def _corners(box: Box) -> NDArray[np.float64]:
    left, top, right, bottom = box.x, box.y, box.x + box.width, box.y + box.height
    return np.array([(left, top), (right, top), (left, bottom), (right, bottom)])
