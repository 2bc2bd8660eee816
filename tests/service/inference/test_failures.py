"""What a failure keeps alive, and what not."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from service.inference.errors import OverloadedError, UndecodableImageError
from service.inference.failures import let_go_of_frames


class Body:
    """Something large that a request holds."""


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def fail(body: Body, known: list[Exception]) -> None:
    """With a cause, in a frame that knows the body and, as those of tasks do, the error."""
    try:
        try:
            raise OverloadedError(f"no room for {body}")
        except OverloadedError as cause:
            raise UndecodableImageError("nor otherwise") from cause
    except UndecodableImageError as error:
        known.append(error)
        raise


@pytest.mark.usefixtures("_no_collector")
def test_frames_that_are_let_go_hold_nothing_any_more() -> None:
    def failed() -> tuple[UndecodableImageError, "weakref.ref[Body]"]:
        body, known = Body(), list[Exception]()
        try:
            fail(body, known)
        except UndecodableImageError as error:
            let_go_of_frames(error)
            return error, weakref.ref(body)
        raise AssertionError

    error, body = failed()
    assert body() is None
    assert isinstance(error.__cause__, OverloadedError)
    assert str(error) == "nor otherwise"
