"""The pages load nothing from elsewhere and nothing that is missing."""

import re

import pytest

from tests.service.rest.conftest import Gateway


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_page_loads_only_what_the_service_serves(gateway: Gateway, path: str) -> None:
    page = await gateway.client.get(path)
    assert page.status_code == 200
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert loaded
    for address in loaded:
        assert address.startswith("/")
        answer = await gateway.client.get(address)
        assert answer.status_code == 200, address
        assert answer.content


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_page_forbids_scripts_and_connections_from_elsewhere(gateway: Gateway, path: str) -> None:
    policy = (await gateway.client.get(path)).headers["Content-Security-Policy"]
    directives = dict(each.strip().split(" ", 1) for each in policy.split(";"))
    assert directives["default-src"] == "'none'"
    assert directives["script-src"] == "'self'"
    assert directives["connect-src"] == "'self'"


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_page_holds_no_inline_script_that_its_policy_would_stop(gateway: Gateway, path: str) -> None:
    page = (await gateway.client.get(path)).text
    assert not re.search(r"<script(?![^>]*\bsrc=)", page)
    assert not re.search(r"\son\w+=|\sstyle=", page)


async def test_browser_keeps_a_file_until_it_changes(gateway: Gateway) -> None:
    first = await gateway.client.get("/static/page.css")
    again = await gateway.client.get("/static/page.css", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_scripts_use_calls_that_exist(gateway: Gateway) -> None:
    paths = set((await gateway.client.get("/openapi.json")).json()["paths"])
    page = (await gateway.client.get("/")).text
    scripts = [(await gateway.client.get(each)).text for each in re.findall(r'"(/static/\w+\.js)"', page)]
    called = {path for text in scripts for path in re.findall(r'fetch\(["`](/v1/[\w-]+)', text)}
    assert called == {"/v1/hand-pose", "/v1/skeleton"}
    assert called <= paths
