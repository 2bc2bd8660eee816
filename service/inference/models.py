"""What is known of a model that can be asked: its card, its version, and how a request names it."""

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.inference.errors import UnknownModelError
from service.pose.detections import DETECTION_COLUMNS
from service.pose.heatmaps import STRIDE
from service.pose.keypoints import CHANNEL_COUNT, KEYPOINT_NAMES

Variant = Literal["standard", "lightweight"]

VARIANTS: Final[tuple[Variant, ...]] = ("standard", "lightweight")

DETECTOR_NAME: Final = "hand_detector"
"""The servable that finds hands in whole pictures, whatever the variant that then finds their keypoints."""

INPUT_NAME: Final = "image"
OUTPUT_NAME: Final = "belief_maps"
DETECTOR_OUTPUT_NAME: Final = "detections"
SIGNATURE_NAME: Final = "serving_default"

STABLE_LABEL: Final = "stable"
"""The label that a request without a version means, where the model has it; otherwise the newest version."""

CANARY_LABEL: Final = "canary"
"""The label that a share of a variant's requests may be routed to."""


class ModelCard(BaseModel):
    """What a servable says of itself in its `model_card.json`; only what the gateway relies on or shows is read.

    Validation is the check that this gateway can serve the model: same keypoints in the same order, same stride, an
    input size that the network accepts. It raises pydantic's ValidationError naming each field that does not fit.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    variant: Variant
    version: Annotated[int, Field(ge=1)]
    keypoints: tuple[str, ...]
    channels: Literal[22]
    input_size: Annotated[int, Field(ge=3 * STRIDE, multiple_of=STRIDE)]
    stride: Literal[8]
    created: str = ""
    parameters: int | None = None
    paper_flops: int | None = None
    macs: int | None = None
    metrics: dict[str, Any] = {}
    provenance: dict[str, Any] = {}

    @model_validator(mode="after")
    def _keypoints_are_ours(self) -> Self:
        if self.keypoints != KEYPOINT_NAMES or self.channels != CHANNEL_COUNT:
            raise ValueError("the model's keypoints differ from this gateway's in number, name or order")
        return self


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One version of one model that the backend can run now.

    Attributes:
        version: the version that runs.
        labels: names that point at this version, such as "stable" or "canary".
        card: what the servable says of itself.
    """

    version: int
    labels: tuple[str, ...]
    card: ModelCard

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def variant(self) -> Variant:
        return self.card.variant

    @property
    def input_size(self) -> tuple[int, int]:
        """(width, height) of the model's input in pixels."""
        return self.card.input_size, self.card.input_size

    @property
    def kind(self) -> str:
        """What metrics and traces call it: its variant."""
        return self.variant

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of one crop's belief maps: (height, width, channels)."""
        cells = self.card.input_size // self.card.stride
        return cells, cells, self.card.channels


class DetectorCard(BaseModel):
    """What the hand detector says of itself in its `model_card.json`; only what the gateway relies on or shows is read.

    `detections` rows of `columns` values come out of it for each picture; `service.pose.detections` says what they are.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: Literal["hand_detector"]
    version: Annotated[int, Field(ge=1)]
    columns: tuple[str, ...]
    detections: Annotated[int, Field(ge=1)]
    input_size: Annotated[int, Field(ge=32, multiple_of=32)]
    created: str = ""
    parameters: int | None = None
    macs: int | None = None
    metrics: dict[str, Any] = {}
    provenance: dict[str, Any] = {}

    @model_validator(mode="after")
    def _columns_are_ours(self) -> Self:
        if self.columns != DETECTION_COLUMNS:
            raise ValueError("the detector's columns differ from this gateway's in number, name or order")
        return self


@dataclass(frozen=True, slots=True)
class ServedDetector:
    """One version of the hand detector that the backend can run now.

    Attributes:
        version: the version that runs.
        labels: names that point at this version, such as "stable".
        card: what the servable says of itself.
    """

    version: int
    labels: tuple[str, ...]
    card: DetectorCard

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def input_size(self) -> tuple[int, int]:
        """(width, height) of the detector's input in pixels."""
        return self.card.input_size, self.card.input_size

    @property
    def kind(self) -> str:
        """What metrics and traces call it, in place of a variant."""
        return "detector"

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of one picture's detections: (rows, columns)."""
        return self.card.detections, len(self.card.columns)


AnyModel = ServedModel | ServedDetector
"""Whatever a backend runs."""


@dataclass(frozen=True, slots=True)
class ModelReference:
    """How a request names a model: a variant, and perhaps one version or one label of it."""

    variant: Variant
    version: int | None = None
    label: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "standard", "lightweight@canary" or "standard@3".

        Raises:
            UnknownModelError: if the variant does not exist or the part after "@" is empty.
        """
        variant, at, selector = text.strip().partition("@")
        known = next((each for each in VARIANTS if each == variant.strip().lower()), None)
        selector = selector.strip()
        if known is None or (at and not selector):
            raise UnknownModelError(
                f"there is no model {_shown(text)}; ask for {' or '.join(VARIANTS)},"
                " optionally followed by @version or @label",
                code="unknown_variant" if known is None else "unknown_version",
            )
        if selector.isascii() and selector.isdigit() and len(selector) < 19:
            return cls(known, version=int(selector))
        return cls(known, label=selector or None)

    def __str__(self) -> str:
        selector = self.version if self.version is not None else self.label
        return self.variant if selector is None else f"{self.variant}@{_shown(str(selector))[1:-1]}"


def _shown(text: str) -> str:
    """A stranger's text, short and printable, in quotes."""
    return repr(text if len(text) <= 64 else text[:61] + "...")
