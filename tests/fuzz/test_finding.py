"""That what must never happen is found when it happens."""

import asyncio
import logging
from collections.abc import Iterator

import pytest
from hypothesis import strategies as st

from tests.fuzz.gateway import Gateway, running
from tests.fuzz.rest import check_answers
from tests.fuzz.targets import FoundError
from tests.fuzz.worker import run_property

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: application/json\r\n\r\n{}"


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with running() as gateway:
        yield gateway


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n", "status 500"),
        (OK + b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n", "status 502"),
        (b"HTTP/1.1 200 OK\r\nx_evil: 1\r\ncontent-length: 0\r\n\r\n", "headers that we never send"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-le", "no HTTP"),
        (OK.replace(b"200 OK", b"400 Bad Request"), "no problem"),
    ],
)
def test_an_answer_that_must_not_be_is_found(answer: bytes, what: str) -> None:
    with pytest.raises(FoundError, match=what):
        check_answers(answer)


@pytest.mark.parametrize("answer", [b"", OK, OK + OK, b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"])
def test_an_answer_that_may_be_is_not(answer: bytes) -> None:
    check_answers(answer)


def test_an_error_in_the_log_is_found(gateway: Gateway) -> None:
    async def fail() -> None:
        logging.getLogger("service.planted").error("something broke")

    with pytest.raises(FoundError, match=r"service\.planted: something broke"):
        gateway.ask(fail)


def test_an_error_that_nobody_waits_for_is_found(gateway: Gateway) -> None:
    async def fail() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 // 0)
        await asyncio.sleep(0.01)

    with pytest.raises(FoundError, match="ZeroDivisionError"):
        gateway.ask(fail)


def test_an_answer_that_does_not_come_is_found(gateway: Gateway) -> None:
    async def wait_for_ever() -> None:
        await asyncio.Event().wait()

    with pytest.raises(FoundError, match="no end after"):
        gateway.ask(wait_for_ever, within_s=0.01)


def test_a_property_that_does_not_hold_is_found() -> None:
    def holds(value: int) -> None:
        assert value < 100

    with pytest.raises(AssertionError):
        run_property(st.integers(0, 1000), holds, examples=200, start=1)
