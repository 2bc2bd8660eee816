"""Which model answers a request, and why that one."""

from dataclasses import dataclass
from typing import Literal

from service.inference.models import ModelReference

RoutedBy = Literal["header", "default"]


@dataclass(frozen=True, slots=True)
class Route:
    """The model that a request goes to, and the rule that sent it there."""

    reference: ModelReference
    routed_by: RoutedBy


class Router:
    """Routes by what the request asks for; without a wish, to the default."""

    def __init__(self, default: ModelReference) -> None:
        self._default = default

    def route(self, asked_for: str | None) -> Route:
        """Route a request.

        Args:
            asked_for: what the request names ("lightweight", "standard@2"), or None or blank for no wish.

        Raises:
            UnknownModelError: if it names a variant that does not exist.
        """
        if asked_for is None or not asked_for.strip():
            return Route(self._default, "default")
        return Route(ModelReference.parse(asked_for), "header")
