"""Every call of the OpenAPI document, by schemathesis: requests that fit the document, and requests that do not.

Checked is that no answer is a failure of ours, and that each is what the document promises: its status, its type, its
headers and its schema. Needs the extra `fuzz`.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import httpx

from tests.fuzz.gateway import Gateway, running
from tests.fuzz.rest import MEANT
from tests.fuzz.targets import FoundError, Property

_PROMISES: Final = (
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)


@contextmanager
def opened() -> Iterator[Sequence[Property]]:
    """A property for each call and each kind of request, with a service to ask."""
    with running() as gateway:
        yield list(_properties(gateway))


def _properties(gateway: Gateway) -> Iterator[Property]:
    import schemathesis
    from schemathesis.checks import CHECKS, load_all_checks

    base = f"http://{gateway.addresses.rest[0]}:{gateway.addresses.rest[1]}"

    async def fetch() -> dict[str, Any]:
        async with httpx.AsyncClient(base_url=base) as client:
            document: dict[str, Any] = (await client.get("/openapi.json")).json()
            return document

    load_all_checks()
    promises = [CHECKS.get_one(name) for name in _PROMISES]
    schema: Any = schemathesis.openapi.from_dict(gateway.ask(fetch))
    for found in schema.get_all_operations():
        call = found.ok()
        for mode in schemathesis.GenerationMode:
            name = f"{call.method.upper()} {call.path}, {mode.value}"
            yield Property(name, call.as_strategy(generation_mode=mode), _answered_as_promised(gateway, base, promises))


def _answered_as_promised(gateway: Gateway, base: str, promises: Sequence[Any]) -> Callable[[Any], None]:
    def holds(case: Any) -> None:
        answer = gateway.ask(lambda: asyncio.to_thread(case.call, base_url=base))
        if answer.status_code >= 500 and answer.status_code not in MEANT:
            raise FoundError(f"{case.as_curl_command()} was answered with {answer.status_code}: {answer.text[:500]}")
        case.validate_response(answer, checks=promises)

    return holds
