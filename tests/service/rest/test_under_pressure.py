"""Deadlines, full queues, senders that leave, and the end of the service; no time passes but by the test's hand."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.inference.model_queue import BatchingPolicy
from service.rest.policy import RestPolicy
from tests.service.rest.conftest import Gateway, running_gateway
from tests.support.clock import settle
from tests.support.images import image_bytes

PATH = "/v1/hand-pose"

Message = dict[str, Any]


def ask(gateway: Gateway, **headers: str) -> "asyncio.Task[Any]":
    request = gateway.client.post(PATH, content=image_bytes(), headers=headers)
    return asyncio.get_running_loop().create_task(request)


async def metric(gateway: Gateway, name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels."""
    families = text_string_to_metric_families((await gateway.client.get("/metrics")).text)
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"X-Request-Timeout-Ms": "250"}, 0.25),
        ({}, 2.0),  # the default
        ({"X-Request-Timeout-Ms": "99999999999999999999"}, 8.0),  # the maximum
    ],
)
async def test_request_is_answered_at_its_deadline(workers: Executor, headers: dict[str, str], seconds: float) -> None:
    policy = RestPolicy(default_deadline_s=2.0, max_deadline_s=8.0)
    async with running_gateway(workers, policy=policy) as gateway:
        gateway.backend.hold()
        asked = ask(gateway, **headers)
        await gateway.backend.arrived()
        gateway.clock.advance(seconds - 0.01)
        await settle()
        assert not asked.done()
        gateway.clock.advance(0.01)
        answer = await asked
        assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
        assert await metric(gateway, "handpose_requests_total", code="deadline_exceeded") == 1
        gateway.backend.release()


async def test_expired_request_never_reaches_the_model(workers: Executor) -> None:
    async with running_gateway(workers) as gateway:
        gateway.backend.hold()
        running, waiting = ask(gateway), ask(gateway, **{"X-Request-Timeout-Ms": "100"})
        await gateway.backend.arrived()
        await settle()
        gateway.clock.advance(0.1)
        assert (await waiting).status_code == 504
        gateway.backend.release()
        assert (await running).status_code == 200
        assert len(gateway.backend.calls) == 1
        assert await metric(gateway, "handpose_dropped_total", reason="expired") == 1


async def test_full_queue_answers_at_once_and_says_when_to_come_back(workers: Executor) -> None:
    async with running_gateway(workers, batching=BatchingPolicy(max_queue=2)) as gateway:
        gateway.backend.hold()
        accepted = [ask(gateway), ask(gateway)]
        await settle()
        refused = await ask(gateway)
        assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["retry_after_ms"] > 0
        assert await metric(gateway, "handpose_inflight_requests") == 2
        assert await metric(gateway, "handpose_rejected_total", reason="queue_full") == 1
        gateway.backend.release()
        assert [(await each).status_code for each in accepted] == [200, 200]
        assert (await ask(gateway)).status_code == 200
        assert await metric(gateway, "handpose_inflight_requests") == 0


async def test_draining_refuses_what_is_new_and_answers_what_was_accepted(workers: Executor) -> None:
    async with running_gateway(workers) as gateway:
        gateway.backend.hold()
        accepted = ask(gateway)
        await gateway.backend.arrived()
        draining = asyncio.get_running_loop().create_task(gateway.predictor.drain())
        await settle()
        refused = await ask(gateway)
        assert refused.status_code == 503
        assert "Retry-After" in refused.headers
        assert not draining.done()
        gateway.backend.release()
        assert (await accepted).status_code == 200
        await draining


class Connection:
    """One request on the application's own interface, whose sender may leave."""

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        *messages: Message,
        path: str = PATH,
        content_type: str = "image/png",
    ) -> None:
        self._messages = asyncio.Queue[Message]()
        for message in messages:
            self._messages.put_nowait(message)
        self.sent: list[Message] = []
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"content-type", content_type.encode())],
            "scheme": "http",
            "server": ("gateway", 80),
        }
        self.handled = asyncio.ensure_future(app(scope, self._messages.get, self._send))

    def leave(self) -> None:
        self._messages.put_nowait({"type": "http.disconnect"})

    async def _send(self, message: Message) -> None:
        self.sent.append(message)


async def test_sender_that_leaves_while_waiting_gives_its_place_back(workers: Executor) -> None:
    async with running_gateway(workers, batching=BatchingPolicy(max_queue=2)) as gateway:
        gateway.backend.hold()
        running = ask(gateway)
        await gateway.backend.arrived()
        connection = Connection(gateway.app, {"type": "http.request", "body": image_bytes()})
        await settle()
        assert (await ask(gateway)).status_code == 429
        connection.leave()
        await connection.handled
        assert await metric(gateway, "handpose_dropped_total", reason="cancelled") == 1
        assert await metric(gateway, "handpose_requests_total", code="client_gone") == 1
        second = ask(gateway)
        await settle()
        assert not second.done()
        gateway.backend.release()
        assert [(await each).status_code for each in (running, second)] == [200, 200]
        assert len(gateway.backend.calls) == 2
        assert await metric(gateway, "handpose_inflight_requests") == 0


async def test_sender_that_leaves_while_the_model_runs_harms_nobody(workers: Executor) -> None:
    async with running_gateway(workers) as gateway:
        gateway.backend.hold()
        connection = Connection(gateway.app, {"type": "http.request", "body": image_bytes()})
        await gateway.backend.arrived()
        connection.leave()
        await connection.handled
        gateway.backend.release()
        assert (await ask(gateway)).status_code == 200


async def test_sender_that_leaves_within_the_body_is_no_failure(
    workers: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_gateway(workers) as gateway:
        first_half = {"type": "http.request", "body": image_bytes()[:20], "more_body": True}
        connection = Connection(gateway.app, first_half)
        await settle()
        connection.leave()
        await connection.handled
        assert not gateway.backend.calls
        assert await metric(gateway, "handpose_requests_total", code="client_gone") == 1
    assert not [each for each in caplog.records if each.levelname == "ERROR"]


async def test_batch_whose_sender_leaves_is_dropped_as_a_whole(workers: Executor) -> None:
    async with running_gateway(workers, batching=BatchingPolicy(max_batch_size=1)) as gateway:
        gateway.backend.hold()
        running = ask(gateway)
        await gateway.backend.arrived()
        form = gateway.client.build_request("POST", "/", files=[("image", ("a.png", image_bytes()))] * 3)
        connection = Connection(
            gateway.app,
            {"type": "http.request", "body": await form.aread()},
            path=f"{PATH}:batch",
            content_type=form.headers["Content-Type"],
        )
        await settle(60)
        assert await metric(gateway, "handpose_queue_depth") == 4
        connection.leave()
        await connection.handled
        gateway.backend.release()
        assert (await running).status_code == 200
        assert len(gateway.backend.calls) == 1
        assert await metric(gateway, "handpose_requests_total", code="client_gone") == 3
