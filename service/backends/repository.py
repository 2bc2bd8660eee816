"""The model repository on disk: which servables are there, and what they say of themselves.

A servable is a folder `<root>/<name>/<version>/` with a SavedModel and a `model_card.json`. Only cards are read here;
no model is loaded, and TensorFlow is not needed.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError

from service.inference.errors import UnavailableError, UnknownModelError
from service.inference.models import (
    DETECTOR_NAME,
    STABLE_LABEL,
    AnyCard,
    AnyModel,
    DetectorCard,
    ModelCard,
    ModelReference,
    ServedDetector,
    ServedModel,
    served,
)

CARD_NAME: Final = "model_card.json"

T = TypeVar("T", bound=BaseModel)


class ServableError(Exception):
    """A servable, or the whole repository, cannot be served. One line for the operator."""


@dataclass(frozen=True, slots=True)
class Servable:
    """One version of one model on disk."""

    folder: Path
    card: AnyCard

    def __str__(self) -> str:
        return f"{self.card.name} version {self.card.version}"


def version_folders(root: Path) -> dict[str, list[Path]]:
    """The versions' folders of every model below a folder, by the model's name; each model's newest first.

    Raises:
        ServableError: there is none at all.
    """
    found: dict[str, list[Path]] = defaultdict(list)
    for folder in sorted(root.glob("*/*/")):  # folders of other names are being written, or are not ours
        if folder.name.isascii() and folder.name.isdecimal() and not folder.parent.name.startswith("."):
            found[folder.parent.name].append(folder)
    if not found:
        raise ServableError(f"there are no models in {root}/; export them with: make models")
    return {name: sorted(folders, key=lambda folder: -int(folder.name)) for name, folders in found.items()}


def newest_servables(root: Path, versions: int) -> tuple[Servable, ...]:
    """The newest versions with a usable card of every model below a folder, by name and then by version.

    Args:
        root: the folder.
        versions: how many of each model, at the most.

    Raises:
        ServableError: there is none at all.
    """
    servables: list[Servable] = []
    unusable: list[ServableError] = []
    for folders in version_folders(root).values():
        newest: list[Servable] = []
        for folder in folders:
            if len(newest) < versions:
                try:
                    newest.insert(0, read_servable(folder))
                except ServableError as error:
                    unusable.append(error)
        servables += newest
    if not servables:
        raise unusable[0]
    return tuple(servables)


def resolve(models: Sequence[ServedModel], reference: ModelReference) -> ServedModel:
    """The newest of the models that a reference fits. Raises UnknownModelError, which names all, if there is none."""
    of_variant = [each for each in models if each.variant == reference.variant]
    fitting = [
        each
        for each in of_variant
        if reference.version in {None, each.version} and (reference.label is None or reference.label in each.labels)
    ]
    if fitting:
        return max(fitting, key=lambda each: each.version)
    names = ", ".join(
        f"{each.variant}@{each.version}" + "".join(f" = {each.variant}@{label}" for label in each.labels)
        for each in models
    )
    raise UnknownModelError(
        f"there is no model {reference}; there is {names}",
        code="unknown_version" if of_variant else "unknown_variant",
    )


def as_served(servables: Sequence[Servable]) -> tuple[AnyModel, ...]:
    """The servables as models that can be asked; of each model the newest version is labelled "stable"."""
    cards = [each.card for each in servables]
    newest = {card.name: card.version for card in sorted(cards, key=lambda card: card.version)}
    return tuple(served(card, (STABLE_LABEL,) if newest[card.name] == card.version else ()) for card in cards)


def variants_among(models: Iterable[AnyModel]) -> tuple[ServedModel, ...]:
    """Those that find keypoints."""
    return tuple(each for each in models if isinstance(each, ServedModel))


def detector_among(models: Iterable[AnyModel]) -> ServedDetector:
    """The hand detector: the version labelled "stable", else the newest. Raises UnavailableError if there is none."""
    found = [each for each in models if isinstance(each, ServedDetector)]
    if not found:
        raise UnavailableError(
            f"there is no {DETECTOR_NAME} to look for hands with; give rois, or whole=true", code="no_detector"
        )
    return max(found, key=lambda each: (STABLE_LABEL in each.labels, each.version))


def read_servable(folder: Path) -> Servable:
    """The servable in a version's folder.

    Raises:
        ServableError: if its card cannot be read, does not fit this gateway, or is that of another servable.
    """
    card: AnyCard
    card = read_card(folder, DetectorCard) if folder.parent.name == DETECTOR_NAME else read_card(folder, ModelCard)
    if (card.name, str(card.version)) != (folder.parent.name, folder.name):
        path = folder / CARD_NAME
        raise ServableError(f"{path} is the card of {card.name}/{card.version}, not the folder it lies in")
    return Servable(folder, card)


def read_card(folder: Path, content: type[T]) -> T:
    """What the card in a version's folder says. Raises ServableError if it cannot be read or does not fit."""
    path = folder / CARD_NAME
    try:
        return content.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ServableError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the card"
        raise ServableError(f"{path} does not fit this gateway: {where}: {first['msg']}") from error
