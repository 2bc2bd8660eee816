"""What is written after the end."""

import asyncio

import pytest

from service.rest.uvicorn_limits import LenientTransport

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
def outgoing(wire: Wire) -> LenientTransport:
    return LenientTransport(wire, wire.close)


@pytest.mark.parametrize("has_eof", [True, False])
def test_nothing_follows_the_end_of_this_side(has_eof: bool) -> None:
    wire = Wire(has_eof=has_eof)
    outgoing = LenientTransport(wire, wire.close)
    outgoing.write(HEAD)
    outgoing.write_eof()
    outgoing.write(HEAD)
    outgoing.write(b"body")
    assert wire.done == [HEAD, "end"] if has_eof else [HEAD]


def test_what_comes_after_the_end_is_dropped(wire: Wire, outgoing: LenientTransport) -> None:
    outgoing.write(HEAD)
    wire.close()
    outgoing.write(b"body")
    outgoing.write(HEAD)
    outgoing.close()
    assert wire.done == [HEAD, "closed", "closed"]
