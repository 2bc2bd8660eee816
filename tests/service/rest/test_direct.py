"""The one call that goes past the framework's routing answers as if it did not."""

from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute

from service.inference.errors import InvalidInputError, ServiceError
from service.rest.direct import DirectWay
from tests.service.rest.conftest import Gateway
from tests.support.images import image_bytes

PATH = "/v1/hand-pose"


async def call(request: Request) -> Response:
    match request.query_params.get("fail"):
        case "known":
            raise InvalidInputError("as it says")  # a ServiceError, as the handlers below know it
        case "foreign":
            raise LookupError("nobody handles this")
    return Response(
        f"{request.method} with {len(await request.body())} bytes", headers={"X-Route": request["route"].path}
    )


async def tell(_request: Request, error: Exception) -> Response:
    return Response(f"told: {type(error).__name__}", 400)


def client_of(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here")


@pytest.fixture
def framework() -> FastAPI:
    app = FastAPI()
    app.router.add_api_route("/call", call, methods=["POST"], response_class=Response)
    app.router.add_api_route("/other", call, methods=["GET"], response_class=Response)
    app.add_exception_handler(ServiceError, tell)
    return app


@pytest.fixture
def direct(framework: FastAPI) -> DirectWay:
    async def nobody(scope: Any, receive: Any, send: Any) -> None:
        await Response("left to the application", 418)(scope, receive, send)

    route = next(each for each in framework.routes if isinstance(each, APIRoute) and each.path == "/call")
    return DirectWay(nobody, route=route, failures={ServiceError: tell})


@pytest.mark.parametrize("url", ["/call", "/call?fail=known"])
async def test_it_answers_what_the_framework_answers(framework: FastAPI, direct: DirectWay, url: str) -> None:
    async with client_of(framework) as slow, client_of(direct) as quick:
        expected, got = await slow.post(url, content=b"four"), await quick.post(url, content=b"four")
    assert (got.status_code, got.text) == (expected.status_code, expected.text)
    assert got.headers == expected.headers


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/call"), ("POST", "/call/"), ("GET", "/other"), ("PUT", "/call")]
)
async def test_everything_else_is_left_to_the_application(direct: DirectWay, method: str, path: str) -> None:
    async with client_of(direct) as client:
        assert (await client.request(method, path)).status_code == 418


async def test_a_failure_that_nobody_handles_passes_through(direct: DirectWay) -> None:
    async with client_of(direct) as client:
        with pytest.raises(LookupError):
            await client.post("/call?fail=foreign")


async def test_the_call_is_still_one_of_the_frameworks_routes(gateway: Gateway) -> None:
    """Who uses another method, or reads the document, is answered by the framework."""
    wrong = await gateway.client.get(PATH)
    assert (wrong.status_code, wrong.headers["Allow"]) == (405, "POST")
    assert (await gateway.client.post(PATH, content=image_bytes())).status_code == 200
