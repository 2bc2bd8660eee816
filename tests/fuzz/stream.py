"""A WebSocket stream: its options, its text and binary messages, and frames that break the protocol.

The first bytes of an input choose the options; then each few bytes are one message of the client's. At the end the
client says that no more frames come and reads until the service closes.
"""

import asyncio
import json
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final
from urllib.parse import quote_from_bytes

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConcurrencyError, ConnectionClosed, InvalidHandshake, InvalidStatus

from service.rest.stream import PATH
from tests.fuzz.gateway import Gateway, running
from tests.fuzz.reading import Reader
from tests.fuzz.rest import MEANT
from tests.fuzz.targets import Check, FoundError
from tests.support.images import image_bytes, picture

OPTIONS: Final[Sequence[str]] = (
    "variant",
    "client_id",
    "tracking",
    "smoothing",
    "min_cutoff_hz",
    "beta",
    "derivative_cutoff_hz",
    "latest_only",
    "frame_timeout_ms",
    "strange",
)
_INTERNAL: Final = 1011  # how a stream that failed inside is closed
_MESSAGES_AT_MOST: Final = 12
_BROKEN_S: Final = 0.05
_CLOSE_S: Final = 1.0  # for the service to close a connection whose protocol was broken
_NUMBERS: Final[Sequence[Any]] = (
    0,
    1,
    -1,
    1e308,
    -1e308,
    2**63,
    -(2**63),
    10**400,
    0.1,
    1e-320,
    True,
    None,
    "1",
    [],
    {},
)


@contextmanager
def opened() -> Iterator[Check]:
    """A check of streams, with a service to stream to."""
    with running() as gateway:
        image = image_bytes(picture(24, 24))

        def check(data: bytes) -> None:
            gateway.ask(lambda: _stream(gateway, Reader(data), image))

        yield check


async def _stream(gateway: Gateway, reader: Reader, image: bytes) -> None:
    host, port = gateway.addresses.rest
    options = [f"{reader.choice(OPTIONS)}={quote_from_bytes(reader.short())}" for _ in range(reader.number() % 4)]
    uri = f"ws://{host}:{port}{PATH}?{'&'.join(options)}"
    try:
        connection = await connect(
            uri, compression=None, open_timeout=None, close_timeout=_CLOSE_S, ping_interval=None, max_size=None
        )
    except InvalidStatus as error:
        if error.response.status_code >= 500 and error.response.status_code not in MEANT:
            raise FoundError(f"the handshake was answered with {error.response.status_code}") from error
        return
    except (InvalidHandshake, EOFError) as error:
        raise FoundError("the handshake had no answer") from error
    try:
        await _converse(connection, reader, image)
    except ConnectionClosed:
        pass
    finally:
        await connection.close()
    if connection.close_code == _INTERNAL:
        raise FoundError(f"the stream was closed with {connection.close_code} {connection.close_reason}")


async def _converse(connection: ClientConnection, reader: Reader, image: bytes) -> None:
    reading = asyncio.create_task(_read_all(connection))
    try:
        for _ in range(_MESSAGES_AT_MOST):
            if not reader.left:
                break
            if not await _say(connection, reader, image):
                # The service may rightly wait for the rest of what it took for a frame: this side leaves.
                await asyncio.wait([reading], timeout=_BROKEN_S)
                connection.transport.abort()
                return
        await connection.send('{"end": true}')
        await reading
    finally:
        reading.cancel()
        # What it found counts, whatever ended the conversation.
        results = await asyncio.gather(reading, return_exceptions=True)
        for result in results:
            if isinstance(result, FoundError):
                raise result


async def _read_all(connection: ClientConnection) -> None:
    async for message in connection:
        answer = json.loads(message)
        status = answer.get("problem", {}).get("status", 200)
        if status >= 500 and status not in MEANT:
            raise FoundError(f"a frame was answered with {answer['problem']}")


async def _say(connection: ClientConnection, reader: Reader, image: bytes) -> bool:
    """One thing that a client may do; False if it was no frame of a WebSocket's, and nothing may follow."""
    match reader.number() % 7:
        case 0:
            await connection.send(reader.short(), text=True)  # whether it is UTF-8 is the service's business
        case 1:
            await connection.send(reader.short())
        case 2:
            await connection.send(image)
        case 3:
            await connection.send(json.dumps(_description(reader)))
        case 4:
            with suppress(ConcurrencyError):  # this side's library wants each to be another one
                await connection.ping(reader.short()[:125])
        case 5:
            await connection.send([reader.short(), reader.short()])
        case _:
            connection.transport.write(reader.rest() if reader.number() % 2 else reader.short())
            return False
    return True


def _description(reader: Reader) -> dict[str, Any]:
    """A frame's description in the right form, with values that are hardly right."""
    made: dict[str, Any] = {}
    for name in ("id", "time_s"):
        if reader.number() % 2:
            made[name] = _number(reader)
    made["rois"] = [
        {name: _number(reader) for name in ("x", "y", "width", "height")} for _ in range(reader.number() % 6)
    ]
    return made


def _number(reader: Reader) -> Any:
    match reader.number() % 4:
        case 0:
            return reader.number()
        case 1:
            value: float = struct.unpack("<d", reader.take(8).ljust(8, b"\0"))[0]
            return value
        case _:
            return reader.choice(_NUMBERS)
