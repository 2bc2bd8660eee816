"""Raw bytes on REST's socket: broken requests, several at once, requests that never end.

The input is what a client sends before it hangs up. Whatever comes back must be HTTP and no failure of ours, and the
next client must be served.
"""

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from tests.fuzz.gateway import Gateway, running
from tests.fuzz.rest import check_answers, exchange
from tests.fuzz.targets import Check, FoundError

_TURNS: Final = 8  # of the event loop, for the service to read and perhaps answer before the client hangs up
_NO_PLAIN_ANSWERS: Final = (b"HEAD", b"UPGRADE")  # answers without the body they announce; another protocol
_FAILURE: Final = re.compile(rb"HTTP/1\.1 5(?!03|04)\d\d ")
_ALIVE: Final = b"GET /livez HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"


@contextmanager
def opened() -> Iterator[Check]:
    """A check of connections, with a service to connect to."""
    with running() as gateway:

        def check(data: bytes) -> None:
            answers = gateway.ask(lambda: _hang_up_after(gateway, data))
            if any(word in data.upper() for word in _NO_PLAIN_ANSWERS):
                if _FAILURE.search(answers):
                    raise FoundError(f"a failure: {answers[:500]!r}")
            else:
                check_answers(answers)
            if not gateway.ask(lambda: exchange(gateway, _ALIVE)).startswith(b"HTTP/1.1 200 OK"):
                raise FoundError("the service is not alive")

        yield check


async def _hang_up_after(gateway: Gateway, data: bytes) -> bytes:
    reader, writer = await gateway.connect()
    try:
        writer.write(data)
        for _ in range(_TURNS):
            await asyncio.sleep(0.0005)
        with suppress(OSError):  # it has closed the connection already
            writer.write_eof()
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()
