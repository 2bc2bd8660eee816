"""What generic tools see: grpc.health.v1 as grpc_health_probe asks it, and reflection as grpcurl does."""

import base64
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from service.inference.models import ServedModel
from service.rpc.servicer import SERVICE_NAME
from tests.support.backend import FakeBackend
from tests.support.gateway import Gateway
from tests.support.images import image_bytes

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def health_stub(gateway: Gateway) -> Any:  # its types are those of the synchronous API
    return health_pb2_grpc.HealthStub(gateway.channel())


async def health_of(gateway: Gateway, service: str) -> int:
    stub = health_stub(gateway)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    status: int = answer.status
    return status


@pytest.mark.parametrize("service", ["", SERVICE_NAME, "cpm_standard", "cpm_lightweight"])
async def test_the_whole_and_each_model_are_serving(gateway: Gateway, service: str) -> None:
    assert await health_of(gateway, service) == SERVING


async def test_a_name_that_never_was_a_service_is_not_found(gateway: Gateway) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health_of(gateway, "cpm_enormous")

    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_trouble_shows_in_the_next_check_and_goes_away_with_it(gateway: Gateway) -> None:
    gateway.backend.trouble = "the model server does not answer"
    assert await health_of(gateway, SERVICE_NAME) == NOT_SERVING

    gateway.backend.trouble = None
    assert await health_of(gateway, SERVICE_NAME) == SERVING


class UnloadingBackend(FakeBackend):
    """A backend that can unload a model."""

    unloaded: str | None = None

    def models(self) -> Sequence[ServedModel]:
        return [model for model in super().models() if model.name != self.unloaded]


async def test_a_model_that_was_unloaded_is_not_serving_while_the_others_are(workers: ThreadPoolExecutor) -> None:
    backend = UnloadingBackend()
    gateway = Gateway(workers, backend=backend)
    await gateway.start()

    backend.unloaded = "cpm_standard"

    assert await health_of(gateway, "cpm_standard") == NOT_SERVING
    assert await health_of(gateway, "cpm_lightweight") == SERVING
    await gateway.stop()


async def test_a_watcher_learns_that_the_server_goes_away(gateway: Gateway) -> None:
    stub = health_stub(gateway)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE_NAME))
    first = await watch.read()

    await gateway.server.not_serving()
    second = await watch.read()

    assert (first.status, second.status) == (SERVING, NOT_SERVING)
    watch.cancel()


class ReflectionClient:
    """Knows nothing of this project: learns the contract from the server, as grpcurl does."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._stub: Any = reflection_pb2_grpc.ServerReflectionStub(self._channel)
        self._pool = descriptor_pool.DescriptorPool()

    async def services(self) -> list[str]:
        answer = await self._ask(reflection_pb2.ServerReflectionRequest(list_services=""))
        return [service.name for service in answer.list_services_response.service]

    async def call(self, service: str, method: str, request: dict[str, Any]) -> dict[str, Any]:
        answer = await self._ask(reflection_pb2.ServerReflectionRequest(file_containing_symbol=service))
        await self._learn(answer.file_descriptor_response.file_descriptor_proto)
        descriptor = self._pool.FindServiceByName(service).FindMethodByName(method)
        request_class = message_factory.GetMessageClass(descriptor.input_type)
        response_class = message_factory.GetMessageClass(descriptor.output_type)
        invoke = self._channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=request_class.SerializeToString,
            response_deserializer=response_class.FromString,
        )
        response = await invoke(json_format.ParseDict(request, request_class()))
        return json_format.MessageToDict(response)

    async def _learn(self, files: Any) -> None:
        for raw in files:
            file = descriptor_pb2.FileDescriptorProto.FromString(raw)
            for name in file.dependency:
                answer = await self._ask(reflection_pb2.ServerReflectionRequest(file_by_filename=name))
                await self._learn(answer.file_descriptor_response.file_descriptor_proto)
            self._pool.Add(file)

    async def _ask(self, request: reflection_pb2.ServerReflectionRequest) -> Any:
        async def requests() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
            yield request

        async for answer in self._stub.ServerReflectionInfo(requests()):
            return answer
        raise AssertionError("the server gave no answer")


async def test_reflection_lists_the_services(gateway: Gateway) -> None:
    assert await ReflectionClient(gateway.channel()).services() == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        SERVICE_NAME,
    ]


async def test_a_client_that_only_reflects_can_ask_for_a_hand(gateway: Gateway) -> None:
    request = {"image": base64.b64encode(image_bytes()).decode()}

    answer = await ReflectionClient(gateway.channel()).call(SERVICE_NAME, "Estimate", request)

    assert len(answer["hands"][0]["keypoints"]) == 21
    assert answer["model"]["variant"] == "lightweight"
