"""The pages that people look at: a small demo, and the API's documentation. No page loads anything from elsewhere."""

import hashlib
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import PurePath
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".jpg": "image/jpeg",
    ".svg": "image/svg+xml",
}
_COMMON_CSP: Final = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; connect-src 'self'"
)
_PAGE_CSP: Final = f"{_COMMON_CSP}; script-src 'self'; style-src 'self'; img-src 'self' blob:"
# Swagger UI sets styles from its script and draws its icons from data URIs.
_DOCS_CSP: Final = f"{_COMMON_CSP}; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:"


def page_routes(openapi_document: Callable[[], dict[str, Any]]) -> APIRouter:
    """`/`, `/docs`, `/openapi.json` and the files they need.

    The demo's gRPC example names the port in the application's `state.grpc_port`, where there is one.

    Args:
        openapi_document: makes the document; called at the first request for it.
    """
    router = APIRouter(include_in_schema=False)
    ours = files("service.rest").joinpath("static")
    # This package carries Swagger UI's own files, so that no CDN is needed.
    swagger = files("fastapi_offline").joinpath("static")
    assets = {
        **{each.name: each for each in ours.iterdir() if PurePath(each.name).suffix in _TYPES},
        **{name: swagger.joinpath(name) for name in ("swagger-ui-bundle.js", "swagger-ui.css")},
    }
    document = cache(openapi_document)

    @router.get("/")
    async def demo(request: Request) -> Response:
        return _file(ours.joinpath("index.html"), request, csp=_PAGE_CSP)

    @router.get("/page.json")
    async def facts(request: Request) -> Response:
        """What the demo cannot know by itself: where gRPC is, for the code that it shows."""
        return JSONResponse({"grpc_port": getattr(request.app.state, "grpc_port", None)})

    @router.get("/docs")
    async def docs(request: Request) -> Response:
        return _file(ours.joinpath("docs.html"), request, csp=_DOCS_CSP)

    @router.get("/openapi.json")
    async def openapi() -> Response:
        return JSONResponse(document())

    @router.get("/static/{name}")
    async def static(name: str, request: Request) -> Response:
        asset = assets.get(name)
        if asset is None:
            raise HTTPException(404)
        return _file(asset, request)

    return router


def _file(file: Traversable, request: Request, *, csp: str | None = None) -> Response:
    """A small file of a package. Read anew each time; the browser keeps it and asks whether it has changed."""
    content = file.read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache", "Referrer-Policy": "no-referrer"}
    if csp is not None:
        headers["Content-Security-Policy"] = csp
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=_TYPES[PurePath(file.name).suffix])
