"""grpc.health.v1 for the gateway: "" and the service's name for the whole, and each model under its own name.

A check asks the backend there and then, so its answer is never older than the question. Watchers are told of changes at
intervals, and after every check. Once the server drains, everything is NOT_SERVING for good.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

from service.inference.models import ServedModel

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class HealthServicer(health.aio.HealthServicer):
    """Implements grpc.health.v1.Health on the backend's own word.

    Args:
        not_ready: why requests would fail now; None when every model answers.
        models: the models that can be asked now.
        service_names: full names of the services that depend on the whole.
    """

    def __init__(
        self,
        *,
        not_ready: Callable[[], Awaitable[str | None]],
        models: Callable[[], Sequence[ServedModel]],
        service_names: Sequence[str],
    ) -> None:
        super().__init__()
        self._not_ready = not_ready
        self._models = models
        self._whole = ("", *service_names)
        self._seen: dict[str, Any] = {}  # the state of each model that was there at some time

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        """The state now; NOT_FOUND for a name that never was one."""
        await self.refresh()
        response: health_pb2.HealthCheckResponse = await super().Check(request, context)
        return response

    async def refresh(self) -> None:
        """Ask the backend, and tell the watchers what changed."""
        whole = _NOT_SERVING if await self._not_ready() is not None else _SERVING
        there = {model.name: _SERVING for model in self._models()}
        self._seen = dict.fromkeys(self._seen, _NOT_SERVING) | there
        for name, state in (self._seen | dict.fromkeys(self._whole, whole)).items():
            await self.set(name, state)

    async def keep_watchers_informed(self, interval_s: float) -> None:
        """Refresh at intervals until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(interval_s)
