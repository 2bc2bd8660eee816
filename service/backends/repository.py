"""The model repository on disk: which servables are there, and what they say of themselves.

A servable is a folder `<root>/<name>/<version>/` with a SavedModel and a `model_card.json`. Only cards are read here;
no model is loaded, and TensorFlow is not needed.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from service.inference.models import STABLE_LABEL, ModelCard, ServedModel

CARD_NAME: Final = "model_card.json"


class ServableError(Exception):
    """A servable, or the whole repository, cannot be served. One line for the operator."""


@dataclass(frozen=True, slots=True)
class Servable:
    """One version of one model on disk."""

    folder: Path
    card: ModelCard

    def __str__(self) -> str:
        return f"{self.card.name} version {self.card.version}"


class ModelRepository:
    """Finds servables below a folder. Every call looks again, so what appears later is found later."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def newest(self, versions: int) -> tuple[Servable, ...]:
        """The newest versions of every model, this many at the most, by name and then by version.

        Raises:
            ServableError: if there is none at all, or if one of them has no usable card.
        """
        folders = [folder for each in self._version_folders().values() for folder in each[-versions:]]
        chosen = tuple(map(read_servable, folders))
        if not chosen:
            raise ServableError(f"there are no models in {self._root}/; export them with: make models")
        return chosen

    def _version_folders(self) -> dict[str, list[Path]]:
        """Version folders of each model, oldest first. Folders of other names are being written, or are not ours."""
        found: dict[str, list[Path]] = defaultdict(list)
        for folder in sorted(self._root.glob("*/*/")):
            if folder.name.isascii() and folder.name.isdecimal() and not folder.parent.name.startswith("."):
                found[folder.parent.name].append(folder)
        for folders in found.values():
            folders.sort(key=lambda folder: int(folder.name))
        return found


def as_served(servables: tuple[Servable, ...]) -> tuple[ServedModel, ...]:
    """The servables as models that can be asked; of each model the newest version is labelled "stable"."""
    newest: dict[str, int] = {}
    for each in servables:
        newest[each.card.name] = max(each.card.version, newest.get(each.card.name, 0))
    return tuple(
        ServedModel(card.version, (STABLE_LABEL,) if newest[card.name] == card.version else (), card)
        for card in (each.card for each in servables)
    )


def read_servable(folder: Path) -> Servable:
    """The servable in a version's folder.

    Raises:
        ServableError: if its card cannot be read, does not fit this gateway, or is that of another servable.
    """
    path = folder / CARD_NAME
    try:
        card = ModelCard.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ServableError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the card"
        raise ServableError(f"{path} does not fit this gateway: {where}: {first['msg']}") from error
    if (card.name, str(card.version)) != (folder.parent.name, folder.name):
        raise ServableError(f"{path} is the card of {card.name}/{card.version}, not the folder it lies in")
    return Servable(folder, card)
