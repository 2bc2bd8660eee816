"""A quick pass over what the fuzzers start from, and over all that once broke something."""

import pytest

from tests.fuzz.targets import TARGETS
from tests.fuzz.worker import run_property

_EXAMPLES = 20


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.engine == "coverage"])
def test_every_input_of_the_corpus_is_answered_or_refused(name: str) -> None:
    inputs = TARGETS[name].inputs()
    assert inputs

    with TARGETS[name].open_bytes() as check:
        for path in inputs:
            try:
                check(path.read_bytes())
            except Exception as error:
                error.add_note(f"with {path}")
                raise


def test_geometry_holds_for_a_few_values_of_each_kind() -> None:
    with TARGETS["geometry"].open_properties() as properties:
        for each in properties:
            run_property(each.values, each.holds, examples=_EXAMPLES, start=1)


def test_the_corpus_is_small() -> None:
    for target in TARGETS.values():
        assert sum(path.stat().st_size for path in target.inputs()) < 32 * 1024
