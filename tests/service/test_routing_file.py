"""The routing file: what it says is what the rules are, and what is wrong with it is said with its line."""

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.files import FileError, FollowedFile
from service.inference.models import ModelReference
from service.inference.routing import Router, RoutingRules, ShadowRule
from service.routing_file import parse_rules, read_rules
from tests.support.waiting import until

LIGHTWEIGHT = ModelReference("lightweight")
STANDARD = ModelReference("standard")

EVERYTHING = """\
# an experiment
default: standard@stable
weights:
  lightweight: 80
  standard@2: 20
canary:
  lightweight: 0.05
shadow:
  - from: lightweight
    to: standard
    share: 0.1
  - to: lightweight@canary
    share: 1
"""


def test_every_rule_is_read() -> None:
    assert parse_rules(EVERYTHING.encode()) == RoutingRules(
        default=ModelReference("standard", label="stable"),
        weights=((LIGHTWEIGHT, 80), (ModelReference("standard", version=2), 20)),
        canary={"lightweight": 0.05},
        shadow=(
            ShadowRule("lightweight", STANDARD, 0.1),
            ShadowRule(None, ModelReference("lightweight", label="canary"), 1.0),
        ),
    )


@pytest.mark.parametrize("text", ["weights:\ncanary:\nshadow:\n", "{}"])
def test_parts_that_are_left_out_or_empty_mean_no_rule(text: str) -> None:
    assert parse_rules(text.encode()) == RoutingRules()


@pytest.mark.parametrize("text", ["", "\n", "# nothing yet\n", "---\n"])
def test_an_empty_file_is_an_error_and_not_the_end_of_all_rules(text: str) -> None:
    with pytest.raises(FileError, match=r"f\.yaml: expected default, .*for no rules, write \{\}"):
        parse_rules(text.encode(), "f.yaml")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("weights:\n  heavyweight: 1\n", r"f\.yaml, line 2: weights\.heavyweight: there is no model 'heavyweight'"),
        ("default: lightweight@\n", r"line 1: default: there is no model"),
        ("weights:\n  lightweight: 1\n  standard: -2\n", r"line 3: weights\.standard: .*greater than or equal to 0"),
        ("weights:\n  lightweight: '1'\n", r"line 2: weights\.lightweight: .*valid number"),
        ("weights:\n  lightweight: .inf\n", r"line 2: weights\.lightweight: "),
        ("weights:\n  lightweight: 0\n", r"weights: at least one must be above 0"),
        ("\ncanary:\n  standard: 1.5\n", r"line 3: canary\.standard: .*less than or equal to 1"),
        ("canary:\n  standard@2: 0.5\n", r"line 2: canary\.standard@2: .*'standard' or 'lightweight'"),
        ("shadow:\n  - to: standard\n", r"line 2: shadow\.0\.share: field required"),
        ("shadow:\n  - to: standard\n    share: 1\n    form: standard\n", r"line 4: shadow\.0\.form: extra inputs"),
        ("shadow:\n  to: standard\n", r"line 1: shadow: .*valid list"),
        ("wieghts:\n  standard: 1\n", r"line 1: wieghts: extra inputs are not permitted"),
        ("default: standard\ndefault: lightweight\n", r"line 2: default is given twice"),
        ("weights: {standard: 1\n", r"line 2: no YAML: "),
        ("a: &x {b: *x}\n", r"no YAML|nested too deep|extra inputs"),
        ("x: &a [1]\ny: *a\n", r"extra inputs"),
        ("- standard\n", r"expected default, weights, canary or shadow"),
        ("one\n---\ntwo\n", r"no YAML: "),
        ("default: !!python/object/apply:os.getcwd []\n", r"line 1: "),
        ("{? [a]: 1}", r"line 1: a key is not a plain name"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text: str, complaint: str) -> None:
    with pytest.raises(FileError, match=complaint):
        parse_rules(text.encode(), "f.yaml")


@given(
    st.one_of(st.binary(max_size=200), st.text(alphabet="adefiltuwcnry:@.-!&*<>{}[] \n01", max_size=60).map(str.encode))
)
def test_any_bytes_are_rules_or_a_clear_error(content: bytes) -> None:
    with suppress(FileError):  # anything else fails the test
        assert isinstance(parse_rules(content), RoutingRules)


def test_a_file_of_any_size_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "routing.yaml"
    path.write_bytes(b"#" * 1_100_000)

    with pytest.raises(FileError, match="longer than"):
        read_rules(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"nowhere\.yaml: cannot be read: No such file"):
        read_rules(tmp_path / "nowhere.yaml")


async def test_a_changed_file_is_followed_and_a_wrong_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "routing.yaml"
    path.write_text("default: standard\n")
    router = Router(LIGHTWEIGHT)
    file = FollowedFile(path, parse_rules, router.follow, what="routing rules")
    file.load()
    assert router.route(None).reference == STANDARD
    watching = asyncio.create_task(file.watch(every_s=0.01))

    path.write_text("default: lightweight@2\n")
    await until(lambda: router.route(None).reference == ModelReference("lightweight", version=2))

    path.write_text("")  # as an editor or `cp` leaves it for a moment
    await until(lambda: "is empty" in caplog.text)
    path.write_text("default: heavyweight\n")
    await until(lambda: "line 1: default" in caplog.text)
    path.unlink()
    await until(lambda: "cannot be read" in caplog.text)
    assert router.route(None).reference == ModelReference("lightweight", version=2)

    elsewhere = tmp_path / "next.yaml"
    elsewhere.write_text("default: standard@3\n")
    path.symlink_to(elsewhere)  # as a mounted configuration changes
    await until(lambda: router.route(None).reference == ModelReference("standard", version=3))
    watching.cancel()


async def test_no_request_is_lost_while_the_rules_change(tmp_path: Path) -> None:
    path = tmp_path / "routing.yaml"
    path.write_text("default: standard\n")
    router = Router(LIGHTWEIGHT)
    file = FollowedFile(path, parse_rules, router.follow, what="routing rules")
    file.load()
    watching = asyncio.create_task(file.watch(every_s=0.001))
    met: set[ModelReference] = set()

    async def both_met() -> bool:
        path.write_text(f"default: {'lightweight' if len(met) % 2 else 'standard'}\n")
        met.add(router.route(None).reference)  # every single one has a route
        return met == {LIGHTWEIGHT, STANDARD}

    await until(both_met)
    watching.cancel()
