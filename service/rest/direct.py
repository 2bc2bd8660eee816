"""The way of the one call that nearly all requests are: past the framework's routing, to its function at once.

A request to the framework passes through a dozen functions that look for its route, its parameters and its
dependencies, and that is half of what HTTP costs. The call reads its parameters by itself and makes its response
itself, so there is nothing for them to find. The framework knows the route all the same: it describes it, and answers
whoever uses another method.
"""

from collections.abc import Awaitable, Callable, Mapping

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

FailureHandler = Callable[[Request, Exception], Awaitable[Response]]


class DirectWay:
    """ASGI: calls a route's function for requests that are for it, and leaves all others to the application.

    Args:
        app: what answers the others.
        route: without parameters in its path; its function takes the request and returns the response.
        failures: what answers for each type of exception, as the application's own handlers do. Others pass through.
    """

    def __init__(self, app: ASGIApp, *, route: APIRoute, failures: Mapping[type[Exception], FailureHandler]) -> None:
        self._app = app
        self._route = route
        self._path = route.path
        self._methods = frozenset(route.methods or ())
        self._call: Callable[[Request], Awaitable[Response]] = route.endpoint
        self._failures = failures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != self._path or scope["method"] not in self._methods:
            await self._app(scope, receive, send)
            return
        scope["route"] = self._route
        request = Request(scope, receive, send)
        try:
            response = await self._call(request)
        except Exception as error:
            answer = next((self._failures[each] for each in type(error).__mro__ if each in self._failures), None)
            if answer is None:
                raise
            response = await answer(request, error)
        await response(scope, receive, send)
