"""What an HTTP connection hands to the kernel, and when."""

import asyncio

import pytest

from service.rest.connections import Outgoing
from tests.support.clock import settle

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"


class Wire(asyncio.Transport):
    """A transport that notes what is done with it, and like uvloop's takes nothing after the end."""

    def __init__(self, *, has_eof: bool = True) -> None:
        super().__init__()
        self.done: list[bytes | str] = []
        self._has_eof = has_eof

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if "end" in self.done:
            raise RuntimeError("Cannot call write() after write_eof()")
        self.done.append(bytes(data))

    def can_write_eof(self) -> bool:
        return self._has_eof

    def write_eof(self) -> None:
        self.done.append("end")

    def close(self) -> None:
        self.done.append("closed")

    def is_closing(self) -> bool:
        return "closed" in self.done


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
async def outgoing(wire: Wire) -> Outgoing:
    return Outgoing(wire, wire.close, asyncio.get_running_loop())


async def test_head_goes_out_with_its_body(wire: Wire, outgoing: Outgoing) -> None:
    outgoing.write(HEAD)
    outgoing.write(b"body")
    assert wire.done == [HEAD + b"body"]
    outgoing.write(b"more")
    await settle()
    assert wire.done == [HEAD + b"body", b"more"]


async def test_head_whose_body_is_not_there_yet_goes_out_without_it(wire: Wire, outgoing: Outgoing) -> None:
    outgoing.write(HEAD)
    assert wire.done == []
    await settle(1)
    assert wire.done == [HEAD]
    outgoing.write(b"body")
    assert wire.done == [HEAD, b"body"]


async def test_head_without_a_body_goes_out_before_the_end(wire: Wire, outgoing: Outgoing) -> None:
    outgoing.write(HEAD)
    outgoing.close()
    await settle()
    assert wire.done == [HEAD, "closed"]


@pytest.mark.parametrize("has_eof", [True, False])
async def test_nothing_follows_the_end_of_this_side(has_eof: bool) -> None:
    wire = Wire(has_eof=has_eof)
    outgoing = Outgoing(wire, wire.close, asyncio.get_running_loop())
    outgoing.write(HEAD)
    outgoing.write_eof()
    outgoing.write(HEAD)
    await settle()
    outgoing.write(b"body")
    assert wire.done == [HEAD, "end"] if has_eof else [HEAD]


async def test_second_head_follows_the_first(wire: Wire, outgoing: Outgoing) -> None:
    early = b"HTTP/1.1 100 Continue\r\n\r\n"
    outgoing.write(early)
    outgoing.write(HEAD)
    outgoing.write(b"body")
    await settle()
    assert b"".join(each for each in wire.done if isinstance(each, bytes)) == early + HEAD + b"body"


async def test_what_comes_after_the_end_is_dropped(wire: Wire, outgoing: Outgoing) -> None:
    outgoing.write(HEAD)
    wire.close()
    outgoing.write(b"body")
    outgoing.write(HEAD)
    outgoing.close()
    await settle()
    assert wire.done == ["closed", "closed"]
