"""What every answer tells browsers, which sites may ask, and what nobody can put into a header."""

from collections.abc import AsyncIterator
from concurrent.futures import Executor

import httpx
import pytest

from service.rest.app import create_admin_app
from service.rest.policy import RestPolicy
from tests.service.rest.conftest import Gateway, running_gateway
from tests.support.images import image_bytes

SITE = "https://app.example"
ASKING = {"Origin": SITE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


@pytest.fixture
async def shared(workers: Executor) -> AsyncIterator[Gateway]:
    async with running_gateway(workers, policy=RestPolicy(cors_origins=(SITE,))) as running:
        yield running


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/livez"),
        ("GET", "/v1/models"),
        ("GET", "/nothing"),
        ("POST", "/v1/hand-pose"),
        ("GET", "/"),
        ("PUT", "/"),
    ],
)
async def test_every_answer_is_safe_to_show_to_a_browser(gateway: Gateway, method: str, path: str) -> None:
    headers = (await gateway.client.request(method, path)).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert "Server" not in headers
    assert "Strict-Transport-Security" not in headers  # no TLS here


async def test_answers_are_not_kept_and_pages_may_be(gateway: Gateway) -> None:
    assert (await gateway.client.get("/v1/models")).headers["Cache-Control"] == "no-store"
    assert (await gateway.client.get("/static/page.js")).headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize("wish", ["a\tb", "a b", "a;b", "é", "x" * 129, '"', "<script>"])
async def test_request_id_that_could_do_harm_is_replaced(gateway: Gateway, wish: str) -> None:
    answer = await gateway.client.get("/livez", headers=[(b"X-Request-Id", wish.encode())])
    assert answer.headers["X-Request-Id"] != wish
    assert answer.headers["X-Request-Id"].isalnum()


async def test_no_other_site_may_ask_unless_it_is_listed(gateway: Gateway) -> None:
    asked = await gateway.client.options("/v1/hand-pose", headers=ASKING)
    answered = await gateway.client.get("/v1/models", headers={"Origin": SITE})
    assert not [name for answer in (asked, answered) for name in answer.headers if name.startswith("access-control")]


async def test_listed_site_may_ask_with_a_key_and_without_cookies(shared: Gateway) -> None:
    asked = await shared.client.options("/v1/hand-pose", headers=ASKING)
    assert asked.status_code == 200
    assert asked.headers["Access-Control-Allow-Origin"] == SITE
    assert "Access-Control-Allow-Credentials" not in asked.headers
    answered = await shared.client.post("/v1/hand-pose", content=image_bytes(), headers={"Origin": SITE})
    assert answered.headers["Access-Control-Allow-Origin"] == SITE
    assert "Retry-After" in answered.headers["Access-Control-Expose-Headers"]
    assert answered.headers["Vary"] == "Origin"


async def test_site_that_is_not_listed_is_told_nothing(shared: Gateway) -> None:
    for origin in ("https://evil.example", f"{SITE}.evil.example", "null", "http://app.example"):
        asked = await shared.client.options("/v1/hand-pose", headers=ASKING | {"Origin": origin})
        assert "Access-Control-Allow-Origin" not in asked.headers


async def test_admin_listener_answers_what_operators_ask_and_nothing_else(gateway: Gateway) -> None:
    def metrics(_accept: str | None) -> tuple[bytes, str]:
        return b"handpose 1\n", "text/plain"

    app = create_admin_app(metrics=metrics, not_ready=gateway.backend.not_ready, clock=gateway.clock)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://admin") as client:
        assert (await client.get("/metrics")).text == "handpose 1\n"
        assert [(await client.get(path)).status_code for path in ("/livez", "/readyz")] == [200, 200]
        assert [(await client.get(path)).status_code for path in ("/", "/docs", "/v1/models")] == [404] * 3


async def test_metrics_are_nowhere_else_where_there_is_an_admin_listener(workers: Executor) -> None:
    async with running_gateway(workers, policy=RestPolicy(metrics=False)) as gateway:
        assert (await gateway.client.get("/metrics")).status_code == 404
        assert (await gateway.client.get("/readyz")).status_code == 200
