"""What strangers send never makes a series: the number of series is bounded by models and codes."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.service.rest.conftest import Gateway, running_gateway
from tests.support.executor import InlineExecutor
from tests.support.images import image_bytes

ODD_REQUESTS = 10_000


def series_in(exposition: str) -> int:
    return sum(len(family.samples) for family in text_string_to_metric_families(exposition))


async def series_of(gateway: Gateway) -> int:
    return series_in((await gateway.client.get("/metrics")).text)


async def ask(gateway: Gateway, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
    """One request, handed to the application as a server would, without the cost of one."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    left = asyncio.Event()

    async def receive() -> MutableMapping[str, Any]:
        if not messages:
            await left.wait()
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        pass

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 50_000),
        "server": ("gateway", 80),
    }
    await gateway.app(scope, receive, send)


async def ask_oddly(gateway: Gateway, number: int) -> None:
    """Each time something else that nobody has ever said before: variants, clients, ids, paths, methods, types."""
    headers = {
        "X-Model-Variant": (f"stranger-{number}", f"standard@{number + 2}", f"lightweight@label-{number}")[number % 3],
        "X-Client-Id": f"client-{number}",
        "X-Request-Id": f"request-{number}",
        "X-Request-Timeout-Ms": str(number % 7 or f"odd-{number}"),
        "X-Odd": f"odd-{number}",
        "traceparent": f"00-{number + 1:032x}-{number + 1:016x}-01",
        "User-Agent": f"agent-{number}",
        "Accept": f"image/odd-{number}, application/json",
        "Content-Type": f"image/odd-{number}" if number % 2 else "image/png",
    }
    path = f"/v1/odd-{number}" if number % 5 == 0 else "/v1/hand-pose"
    await ask(gateway, f"ODD{number}" if number % 11 == 0 else "POST", path, headers, b"odd")


async def test_ten_thousand_odd_requests_leave_the_number_of_series_as_it_was() -> None:
    async with running_gateway(InlineExecutor()) as gateway:
        for variant in ("standard", "lightweight"):
            await gateway.client.post("/v1/hand-pose", content=image_bytes(), headers={"X-Model-Variant": variant})
        for number in range(100):
            await ask_oddly(gateway, number)
        before = await series_of(gateway)
        for number in range(100, 100 + ODD_REQUESTS):
            await ask_oddly(gateway, number)
        after = (await gateway.client.get("/metrics")).text

    assert series_in(after) == before
    counted = sum(
        sample.value
        for family in text_string_to_metric_families(after)
        for sample in family.samples
        if sample.name == "handpose_requests_total"
    )
    assert counted > ODD_REQUESTS / 2, "they were counted, and not merely lost"
    assert "odd" not in after
