"""Which model a request goes to: the order of the rules, shares that come out right, clients that stay in place."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.inference.errors import UnknownModelError
from service.inference.models import ModelReference
from service.inference.routing import Route, Router, RoutingRules, ShadowRule, stable_fraction

LIGHTWEIGHT = ModelReference("lightweight")
STANDARD = ModelReference("standard")
CANARY = ModelReference("lightweight", label="canary")
SPLIT = RoutingRules(weights=((LIGHTWEIGHT, 80), (STANDARD, 20)))

REQUESTS = 10_000


def within_binomial_bound(count: int, share: float, trials: int = REQUESTS) -> bool:
    """Whether a count is one that four standard deviations about the mean hold."""
    return abs(count - share * trials) <= 4 * math.sqrt(trials * share * (1 - share))


def router(rules: RoutingRules | None = None, *, seed: int = 1) -> Router:
    return Router(LIGHTWEIGHT, rules, chance=random.Random(seed).random)


@pytest.mark.parametrize("asked_for", [None, "", "  "])
def test_without_wish_or_rule_a_request_goes_to_the_default(asked_for: str | None) -> None:
    assert router().route(asked_for) == Route(LIGHTWEIGHT, "default")


def test_the_rules_may_name_another_default() -> None:
    assert router(RoutingRules(default=STANDARD)).route(None) == Route(STANDARD, "default")


@pytest.mark.parametrize("asked_for", ["standard", "standard@2", "standard@nightly"])
def test_what_a_request_asks_for_comes_before_every_rule(asked_for: str) -> None:
    route = router(RoutingRules(weights=((LIGHTWEIGHT, 1),), canary={"lightweight": 1.0})).route(asked_for, "client")

    assert route == Route(ModelReference.parse(asked_for), "header")


def test_asking_for_a_variant_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UnknownModelError):
        router(SPLIT).route("heavyweight")


def test_ten_thousand_requests_split_by_the_weights() -> None:
    shared = router(SPLIT)
    routes = Counter(shared.route(None) for _ in range(REQUESTS))

    assert set(routes) == {Route(LIGHTWEIGHT, "weights"), Route(STANDARD, "weights")}
    assert within_binomial_bound(routes[Route(STANDARD, "weights")], 0.2)


def test_ten_thousand_clients_split_by_the_weights() -> None:
    shared = router(SPLIT)
    routes = Counter(shared.route(None, f"client-{number}") for number in range(REQUESTS))

    assert set(routes) == {Route(LIGHTWEIGHT, "client"), Route(STANDARD, "client")}
    assert within_binomial_bound(routes[Route(STANDARD, "client")], 0.2)


@given(st.text(min_size=1), st.integers(), st.integers())
def test_a_client_lands_on_the_same_side_in_every_process(client_id: str, seed: int, other_seed: int) -> None:
    rules = RoutingRules(weights=SPLIT.weights, canary={"lightweight": 0.5, "standard": 0.5})

    first = router(rules, seed=seed).route(None, client_id)
    again = router(rules, seed=other_seed)

    assert all(again.route(None, client_id) == first for _ in range(5))


def test_a_clients_place_is_the_same_for_ever() -> None:
    # Measured once. If these change, every client of every running experiment changes sides.
    assert stable_fraction("weights\0alice") == 0.14706160046400518
    assert stable_fraction("weights\0bob") == 0.738370056032602


def test_more_weight_for_one_model_moves_clients_to_it_only() -> None:
    before = router(RoutingRules(weights=((LIGHTWEIGHT, 80), (STANDARD, 20))))
    after = router(RoutingRules(weights=((LIGHTWEIGHT, 60), (STANDARD, 40))))
    clients = [f"client-{number}" for number in range(2_000)]

    moved = [
        (before.route(None, client).reference, after.route(None, client).reference)
        for client in clients
        if before.route(None, client) != after.route(None, client)
    ]

    assert set(moved) == {(LIGHTWEIGHT, STANDARD)}
    assert within_binomial_bound(len(moved), 0.2, 2_000)


def test_a_weight_of_zero_gets_nothing() -> None:
    shared = router(RoutingRules(weights=((STANDARD, 0), (LIGHTWEIGHT, 3), (CANARY, 0))))

    assert {shared.route(None).reference for _ in range(1_000)} == {LIGHTWEIGHT}


@pytest.mark.parametrize("drawn", [0.0, 0.5, 1.0 - 2**-53])
def test_every_number_that_can_be_drawn_has_a_model(drawn: float) -> None:
    weights = (*[(LIGHTWEIGHT, 0.1)] * 7, (STANDARD, 0.0))

    assert Router(STANDARD, RoutingRules(weights=weights), chance=lambda: drawn).route(None).reference == LIGHTWEIGHT


@pytest.mark.parametrize("asked_for", [None, "lightweight"])
def test_a_share_of_a_variants_requests_goes_to_its_canary(asked_for: str | None) -> None:
    shared = router(RoutingRules(canary={"lightweight": 0.05}))
    routes = [shared.route(asked_for) for _ in range(REQUESTS)]
    canaries = [route for route in routes if route.reference == CANARY]

    assert within_binomial_bound(len(canaries), 0.05)
    assert {route.routed_by for route in canaries} == {"canary"}
    # Where there is no canary at the moment, such a request goes where it would have gone.
    assert {route.otherwise for route in canaries} == {Route(LIGHTWEIGHT, "default" if asked_for is None else "header")}


def test_a_canary_is_for_its_own_variant() -> None:
    shared = router(RoutingRules(canary={"lightweight": 1.0}))

    assert shared.route("standard").reference == STANDARD


def test_the_canary_is_not_the_same_clients_as_the_weights_other_side() -> None:
    rules = RoutingRules(weights=((LIGHTWEIGHT, 50), (STANDARD, 50)), canary={"lightweight": 0.5})
    shared = router(rules)
    routes = Counter(shared.route(None, f"client-{number}").reference for number in range(REQUESTS))

    assert within_binomial_bound(routes[CANARY], 0.25)


def test_new_rules_hold_from_the_next_request_on() -> None:
    shared = router(RoutingRules(default=STANDARD))
    assert shared.route(None).reference == STANDARD

    shared.follow(RoutingRules())

    assert shared.route(None).reference == LIGHTWEIGHT


def test_a_share_of_requests_is_copied_by_the_first_rule_that_fits() -> None:
    rules = RoutingRules(
        shadow=(ShadowRule("lightweight", STANDARD, 0.1), ShadowRule(None, ModelReference("standard", version=2), 1.0))
    )
    shared = router(rules)
    copies = Counter(shared.route("lightweight").shadow for _ in range(REQUESTS))

    assert within_binomial_bound(copies[STANDARD], 0.1)
    assert copies[ModelReference("standard", version=2)] == REQUESTS - copies[STANDARD]
    assert shared.route("standard").shadow == ModelReference("standard", version=2)


@pytest.mark.parametrize(
    ("weights", "canary"), [(((LIGHTWEIGHT, -1.0),), {}), (((LIGHTWEIGHT, 0.0),), {}), ((), {"standard": 1.5})]
)
def test_rules_that_make_no_sense_cannot_be_made(
    weights: tuple[tuple[ModelReference, float], ...], canary: dict[str, float]
) -> None:
    with pytest.raises(ValueError, match="must"):
        RoutingRules(weights=weights, canary=canary)
