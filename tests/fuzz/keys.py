"""Keys: the operator's file of them, and whatever is shown at the door of REST, gRPC and WebSocket.

The first byte of an input says which. At each door nobody may get in who does not show the one key that there is; the
key is not in the corpus, so that it can only be found.
"""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import grpc

from service.access.key_file import parse_keys, remove_key
from service.files import FileError
from service.inference.access import AccessPolicy, Doorkeeper
from service.inference.errors import ServiceError
from service.inference.keys import new_key
from service.rest.stream import PATH
from service.rpc.servicer import SERVICE_NAME
from tests.fuzz.gateway import Gateway, running
from tests.fuzz.reading import Reader
from tests.fuzz.rest import check_answers, exchange, in_a_header
from tests.fuzz.targets import PATIENCE, Check, FoundError

DOORS: Final[Sequence[str]] = ("file", "doorkeeper", "rest", "rpc", "stream")
"""What the first byte of an input says it is for."""

_HEADERS: Final = (b"Authorization", b"Sec-WebSocket-Protocol", b"Cookie", b"X-Api-Key", b"Authorization ")
_UPGRADE: Final = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)
_METHOD: Final = f"/{SERVICE_NAME}/ListModels"
_CALL_S: Final = 80.0 * PATIENCE
_GUESSES_ALLOWED: Final = 1_000_000_000  # or there would be nothing but "wait" after the tenth input
_REFUSALS: Final = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED})


@contextmanager
def opened() -> Iterator[Check]:
    """A check of all doors, with a service that knows one key."""
    key = new_key()
    with ExitStack() as resources:
        folder = Path(resources.enter_context(tempfile.TemporaryDirectory()))
        file = folder / "keys.yaml"
        file.write_text(f"- name: the-one\n  sha256: {hashlib.sha256(key.encode()).hexdigest()}\n")
        gateway = resources.enter_context(
            running({"HANDPOSE_API_KEYS_FILE": str(file), "HANDPOSE_WRONG_KEYS": str(_GUESSES_ALLOWED)})
        )

        async def connect() -> Any:
            host, port = gateway.addresses.grpc
            return grpc.aio.insecure_channel(f"{host}:{port}", options=[("grpc.use_local_subchannel_pool", 1)])

        channel = gateway.ask(connect)
        resources.callback(lambda: gateway.ask(channel.close))
        doorkeeper = Doorkeeper(AccessPolicy(failures=_GUESSES_ALLOWED), time=lambda: 0.0)
        doorkeeper.follow(parse_keys(file.read_bytes()))
        checks = {
            "file": lambda reader: _file(folder / "fuzzed.yaml", reader),
            "doorkeeper": lambda reader: _doorkeeper(doorkeeper, reader),
            "rest": lambda reader: _rest(gateway, b"GET /v1/models", b"", reader),
            "rpc": lambda reader: _rpc(gateway, channel, reader),
            "stream": lambda reader: _rest(gateway, b"GET " + PATH.encode(), _UPGRADE, reader),
        }

        def check(data: bytes) -> None:
            reader = Reader(data)
            checks[reader.choice(DOORS)](reader)

        yield check


def _file(path: Path, reader: Reader) -> None:
    content = reader.rest()
    try:
        keys = parse_keys(content)
    except FileError as error:
        if not str(error):
            raise FoundError("refused without a reason") from error
        return
    if keys:
        path.write_bytes(content)
        try:
            remove_key(path, keys[0].name)
        except FileError:
            return
        if [key.name for key in parse_keys(path.read_bytes())] != [key.name for key in keys[1:]]:
            raise FoundError("other entries changed when one was removed")


def _doorkeeper(doorkeeper: Doorkeeper, reader: Reader) -> None:
    peer = reader.short().decode("latin-1")
    try:
        doorkeeper.admit(reader.rest().decode("latin-1"), peer)
    except ServiceError:
        return
    raise FoundError("somebody without the key was let in")


def _rest(gateway: Gateway, call: bytes, more: bytes, reader: Reader) -> None:
    shown = b"".join(
        reader.choice(_HEADERS) + b": " + in_a_header(reader.short()) + b"\r\n" for _ in range(1 + reader.number() % 3)
    )
    request = call + b" HTTP/1.1\r\nHost: h\r\n" + shown + (more or b"Connection: close\r\n") + b"\r\n"
    answer = gateway.ask(lambda: exchange(gateway, request))
    check_answers(answer)
    if not answer.startswith((b"HTTP/1.1 401 ", b"HTTP/1.1 400 ", b"HTTP/1.1 429 ")):
        raise FoundError(f"somebody without the key was answered {answer[:200]!r}")


def _rpc(gateway: Gateway, channel: Any, reader: Reader) -> None:
    shown = "".join(chr(each) for each in reader.rest() if 32 <= each < 127)

    async def call() -> grpc.StatusCode:
        try:
            await channel.unary_unary(_METHOD)(b"", metadata=(("authorization", shown),), timeout=_CALL_S)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    code = gateway.ask(call)
    if code not in _REFUSALS:
        raise FoundError(f"somebody without the key was answered {code}")
