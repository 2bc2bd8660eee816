"""Which model answers a request, and why that one. Pure: it knows neither files nor which models are running.

In order: what the request asks for; a stable hash of the client's id into the weights, so that a client always meets
the same model; the weights by chance; the default. Whatever variant that gives, a share of its requests may go to the
version labelled "canary" instead, and of some requests a copy goes to another model (`service.inference.shadow`).
"""

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from service.inference.models import CANARY_LABEL, Kind, ModelReference, Variant

RoutedBy = Literal["header", "client", "weights", "canary", "default"]


@dataclass(frozen=True, slots=True)
class Route:
    """The model that a request goes to, and the rule that sent it there.

    Attributes:
        otherwise: where to go if that model does not exist at the moment; None if there is no other way.
        shadow: the model that gets a copy of the request once it is answered, if any.
    """

    reference: ModelReference
    routed_by: RoutedBy
    otherwise: "Route | None" = None
    shadow: ModelReference | None = None


@dataclass(frozen=True, slots=True)
class ShadowRule:
    """A copy of a share of the requests to a variant goes to another model.

    Attributes:
        source: the variant whose requests are copied; None for all.
        target: the model that gets the copies.
        share: how many of them, 0 to 1.
    """

    source: Variant | None
    target: ModelReference
    share: float


@dataclass(frozen=True, slots=True)
class RoutingRules:
    """What an operator has decided.

    Attributes:
        default: the model for requests that nothing else decides; None leaves it to the router's own.
        weights: models and the shares, in any unit, of the requests that name none. Empty: all go to the default.
        canary: for each variant, the share of its requests that goes to the version labelled "canary", 0 to 1.
        shadow: the first rule that fits a request and is drawn applies.
    """

    default: ModelReference | None = None
    weights: Sequence[tuple[ModelReference, float]] = ()
    canary: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    shadow: Sequence[ShadowRule] = ()

    def __post_init__(self) -> None:
        weights = [weight for _, weight in self.weights]
        if weights and not (min(weights) >= 0 and 0 < sum(weights) < float("inf")):
            raise ValueError(f"weights must not be negative, and one must be positive, got {weights}")
        shares = [*self.canary.values(), *(rule.share for rule in self.shadow)]
        if not all(0 <= share <= 1 for share in shares):
            raise ValueError(f"shares must lie between 0 and 1, got {shares}")


class Router:
    """Routes by the rules it was last given.

    Args:
        default: the model for requests that nothing else decides, unless the rules name another.
        rules: the rules to start with.
        chance: draws from [0, 1).
    """

    def __init__(
        self,
        default: ModelReference,
        rules: RoutingRules | None = None,
        *,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._default = default
        self._rules = rules or RoutingRules()
        self._chance = chance

    @property
    def rules(self) -> RoutingRules:
        return self._rules

    @property
    def default(self) -> ModelReference:
        """The model for requests that nothing else decides, by the rules of this moment."""
        return self._rules.default or self._default

    def follow(self, rules: RoutingRules) -> None:
        """Route by these rules from the next request on; those on their way keep their route."""
        self._rules = rules

    def route(self, asked_for: str | None, client_id: str | None = None) -> Route:
        """Route a request.

        Args:
            asked_for: what the request names ("lightweight", "standard@2"), or None or blank for no wish.
            client_id: who sends it, if that is known; the same id gets the same route under the same rules.

        Raises:
            UnknownModelError: if it names a variant that does not exist.
        """
        rules = self._rules
        reference, routed_by = self._choose(rules, asked_for, client_id)
        shadow = self._shadow_of(rules, reference.variant)
        stable = Route(reference, routed_by, shadow=shadow)
        if reference.version is not None or reference.label is not None:
            return stable
        share = rules.canary.get(reference.variant, 0.0)
        if self._draw(client_id, f"canary of {reference.variant}") >= share:
            return stable
        canary = ModelReference(reference.variant, label=CANARY_LABEL)
        return Route(canary, "canary", otherwise=stable, shadow=shadow)

    def _choose(
        self, rules: RoutingRules, asked_for: str | None, client_id: str | None
    ) -> tuple[ModelReference, RoutedBy]:
        if asked_for is not None and asked_for.strip():
            return ModelReference.parse(asked_for), "header"
        if rules.weights:
            drawn = self._draw(client_id, "weights")
            return _weighted(rules.weights, drawn), "client" if client_id else "weights"
        return rules.default or self._default, "default"

    def _shadow_of(self, rules: RoutingRules, variant: Kind) -> ModelReference | None:
        for rule in rules.shadow:
            if rule.source in (None, variant) and self._chance() < rule.share:
                return rule.target
        return None

    def _draw(self, client_id: str | None, purpose: str) -> float:
        """A number in [0, 1): by chance, or for a client always the same one, another for each purpose."""
        return self._chance() if not client_id else stable_fraction(f"{purpose}\0{client_id}")


def stable_fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text only: the same in every process, on every machine, for ever."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def _weighted(weights: Sequence[tuple[ModelReference, float]], drawn: float) -> ModelReference:
    """The model in whose stretch of [0, 1) the number falls; moving one boundary moves only clients next to it."""
    left = drawn * sum(weight for _, weight in weights)
    for reference, weight in weights:
        left -= weight
        if left < 0:
            return reference
    return next(reference for reference, weight in reversed(weights) if weight > 0)  # rounding at the very end
