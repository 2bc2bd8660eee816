"""Bodies and headers of REST calls, properly framed, on a real socket.

The first bytes of an input choose the call, how its body is said to be and how it is sent; the rest is the body. So
every input is one request that must get one answer.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from tests.fuzz.gateway import Gateway, running
from tests.fuzz.reading import Reader
from tests.fuzz.targets import Check, FoundError

CALLS: Final[Sequence[str]] = ("POST /v1/hand-pose", "POST /v1/hand-pose:batch")
TYPES: Final[Sequence[str | None]] = (
    None,
    "image/png",
    "application/octet-stream",
    "application/json",
    "application/json; charset=utf-16",
    "multipart/form-data; boundary=b",
    'multipart/form-data; boundary="b"; charset=utf-7',
    "multipart/form-data; boundary=",
    "multipart/form-data",
    "application/pdf",
    "image/*",
    "\xff/\x80",
)
HEADERS: Final[Sequence[str]] = (
    "Accept",
    "X-Model-Variant",
    "X-Client-Id",
    "X-Request-Id",
    "X-Request-Timeout-Ms",
    "traceparent",
    "Authorization",
    "Content-Encoding",
    "Expect",
    "Cookie",
    "Range",
    "X-Forwarded-For",
)
_FRAMING: Final = ("length", "chunked", "chunked in single bytes")
MEANT: Final = frozenset({503, 504})
"""What may be answered of 500 and above: not ready, too late (the input may ask for a millisecond)."""

_KNOWN_HEADERS: Final = re.compile(
    rb"(content-(type|length|encoding|language|security-policy|disposition)|date|connection|transfer-encoding|vary|allow"
    rb"|retry-after|www-authenticate|cache-control|etag|last-modified|accept-ranges|referrer-policy|permissions-policy"
    rb"|cross-origin-[a-z-]+|strict-transport-security|location|x-[a-z-]+)"
)


@contextmanager
def opened() -> Iterator[Check]:
    """A check of REST calls, with a service to ask."""
    with running() as gateway:

        def check(data: bytes) -> None:
            request = request_of(data)
            answer = gateway.ask(lambda: exchange(gateway, request))
            check_answers(answer)
            if not answer:
                raise FoundError("the connection was closed without an answer")

        yield check


def request_of(data: bytes) -> bytes:
    """The HTTP request that an input stands for."""
    reader = Reader(data)
    call, kind, framing = reader.choice(CALLS), reader.choice(TYPES), reader.choice(_FRAMING)
    query = _percent(reader.short()[:512])
    headers = [b"Host: h", b"Connection: close"]
    if kind is not None:
        headers.append(b"Content-Type: " + kind.encode("latin-1"))
    more = reader.number() % 4
    headers += [reader.choice(HEADERS).encode() + b": " + in_a_header(reader.short()) for _ in range(more)]
    body = reader.rest()
    if framing == "length":
        headers.append(b"Content-Length: %d" % len(body))
    else:
        headers.append(b"Transfer-Encoding: chunked")
        size = 1 if framing != "chunked" else 100
        body = b"".join(
            b"%x\r\n%b\r\n" % (len(part), part)
            for part in (body[start : start + size] for start in range(0, len(body), size))
        )
        body += b"0\r\n\r\n"
    method, path = call.split(" ")
    target = path.encode() + (b"?" + query if query else b"")
    return method.encode() + b" " + target + b" HTTP/1.1\r\n" + b"\r\n".join(headers) + b"\r\n\r\n" + body


async def exchange(gateway: Gateway, request: bytes) -> bytes:
    """Send bytes; all that comes back until the service closes the connection."""
    reader, writer = await gateway.connect()
    try:
        writer.write(request)
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def check_answers(received: bytes) -> None:
    """Whatever came back is HTTP, is no failure of ours, and says nothing that we did not write.

    Raises:
        FoundError: if it is not so.
    """
    while received:
        head, separator, rest = received.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        status_line = re.fullmatch(rb"HTTP/1\.1 (\d{3}) [A-Za-z -]*", first)
        if status_line is None or not separator:
            raise FoundError(f"this is no HTTP: {head[:200]!r}")
        status = int(status_line[1])
        headers = dict(line.lower().partition(b": ")[::2] for line in lines)
        strange = [name for name in headers if not _KNOWN_HEADERS.fullmatch(name)]
        if strange:
            raise FoundError(f"headers that we never send: {strange}")
        if status >= 500 and status not in MEANT:
            raise FoundError(f"status {status}: {rest[:500]!r}")
        length = int(headers.get(b"content-length", b"0"))
        body, received = rest[:length], rest[length:]
        if len(body) == length and headers.get(b"content-type", b"").endswith(b"json"):
            told = json.loads(body)
            if status >= 400 and status != 404 and not {"type", "title", "status", "detail", "code"} <= set(told):
                raise FoundError(f"this is no problem: {told}")


def _percent(text: bytes) -> bytes:
    """Bytes as they can stand in a URL; most of what is not is encoded, and `%` stays so that it can be wrong."""
    safe = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~,=&%+"
    return b"".join(bytes((each,)) if each in safe else b"%%%02X" % each for each in text)


def in_a_header(value: bytes) -> bytes:
    """What of these bytes can stand in a header."""
    return bytes(each for each in value if each == 9 or (each >= 32 and each != 127))
