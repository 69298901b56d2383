"""One line per framework: the errors of governed calls become answers, whichever library raised them.

An outer middleware never sees an exception that a framework has turned into a 500 already. So the framework itself
is told which errors are ours to answer: those of requests, those of urllib3, and those that headrace alone raises.

    FastAPI, Starlette, Litestar, Flask, Quart    headrace.map_errors(app)
    Django                                        MIDDLEWARE += ["headrace.middleware.django.UpstreamErrors"]

No framework is imported before one of its own applications, or requests, comes in here.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from headrace.adapters.twins import FAMILIES
from headrace.errors import UpstreamError
from headrace.middleware.problems import MEDIA_TYPE, ProblemAnswer, problem

if TYPE_CHECKING:
    from starlette.responses import Response

ANSWERED: tuple[type[Exception], ...] = (*FAMILIES, UpstreamError)
"""What a framework hands to us. An error without a record goes back to it."""


def map_errors(app: Any) -> None:
    """Let *app* answer the errors of governed calls: 502, 503, 504 or 499, as `headrace.problem` says.

    Call it once, before the first request. Handlers that *app* has for subclasses, or that it gets later for the same
    classes, come before ours. Every other error is left to *app*. Mutates *app*.

    Args:
        app: An application of FastAPI, Starlette, Litestar, Flask or Quart, or a Flask blueprint. One of our
            middlewares around it is looked through.

    Raises:
        TypeError: *app* is something else. The text says what there is for it.
    """
    inner = app
    while type(inner).__module__.startswith("headrace."):
        inner = inner.app
    add: Callable[[type[Exception], Callable[..., Any]], object]
    handler: Callable[..., Any] = asgi_problem
    if callable(getattr(inner, "add_exception_handler", None)):  # Starlette and all that is made of it
        add = inner.add_exception_handler
    elif callable(getattr(inner, "register_error_handler", None)):  # Flask, Quart, their blueprints
        add, handler = inner.register_error_handler, problem
    elif _is_of("litestar", inner):
        add = inner.exception_handlers.__setitem__
    else:
        raise TypeError(
            "map_errors() takes an application of FastAPI, Starlette, Litestar, Flask or Quart; found "
            f"{type(inner).__module__}.{type(inner).__qualname__}. For Django: MIDDLEWARE += "
            '["headrace.middleware.django.UpstreamErrors"]; for an application without a framework: '
            "service: {error_responses: map} in the file"
        )
    for family in ANSWERED:
        add(family, handler)


def asgi_problem(request: Any, exc: Exception) -> Awaitable[Response]:
    """The answer for *exc*; an exception handler of Starlette, FastAPI or Litestar. `map_errors` adds it.

    Starlette takes it for a coroutine function, so that it needs no worker thread: all of these may be waiting for
    the upstream that failed. Litestar awaits no handler, so its requests are answered at once.

    Raises:
        Exception: *exc* itself when it carries no record, or comes from a WebSocket: one that is open gets no answer
            any more, and Starlette does not say here whether it is.
    """
    if request.scope["type"] == "websocket":
        raise exc
    found = problem(exc)
    return _for_litestar(found) if _is_of("litestar", request) else _for_starlette(found)


if hasattr(inspect, "markcoroutinefunction"):  # Python 3.12
    inspect.markcoroutinefunction(asgi_problem)
else:
    asgi_problem._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]


def _is_of(framework: str, found: object) -> bool:
    return any(cls.__module__.partition(".")[0] == framework for cls in type(found).__mro__)


async def _for_starlette(found: ProblemAnswer) -> Response:
    from starlette.responses import Response  # no application without it comes here

    return Response(found.body, status_code=found.status, headers=found.headers)


def _for_litestar(found: ProblemAnswer) -> Any:
    from litestar.response import Response  # type: ignore[import-not-found, unused-ignore]

    headers = {name: value for name, value in found.headers.items() if name != "Content-Type"}
    return Response(found.body, status_code=found.status, headers=headers, media_type=MEDIA_TYPE)
