"""What stays is set apart from what the collector walks through, and what is let go of is found all the same."""

import gc
import weakref
from collections.abc import Iterator
from contextlib import suppress

import pytest

from service.heap import settle, unsettled_at_the_end


class InACycle:
    def __init__(self) -> None:
        self.myself = self


@pytest.fixture(autouse=True)
def nothing_set_apart() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_what_is_there_is_set_apart_and_garbage_is_not_kept() -> None:
    garbage = weakref.ref(InACycle())
    settle()
    assert garbage() is None
    assert gc.get_freeze_count() > 10_000  # this process's modules alone
    assert len(gc.get_objects()) < 10_000


def test_what_was_set_apart_and_let_go_of_is_found_by_the_next_call() -> None:
    model = InACycle()
    settle()
    let_go = weakref.ref(model)
    del model
    settle()
    assert let_go() is None


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_set_apart_after_the_block_however_it_ends(fails: bool) -> None:
    with suppress(RuntimeError), unsettled_at_the_end():
        settle()
        if fails:
            raise RuntimeError
    assert gc.get_freeze_count() == 0
