"""The one line for Django: `MIDDLEWARE += ["headrace.middleware.django.UpstreamErrors"]`.

The only module that imports Django, which is not a dependency.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction  # type: ignore[import-not-found, unused-ignore]
from django.http import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    HttpRequest,
    HttpResponse,
)

from headrace.middleware.problems import answer


class UpstreamErrors:
    """Answers the error of a governed call that a view lets out. Everything else is left to Django.

    It is sync and async capable without an adapter in between: it does nothing on the way in.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self._get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        # Under ASGI this is the coroutine, which Django awaits.
        return self._get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """The answer for *exception*, or None when it carries no record. Django calls it."""
        found = answer(exception)
        if found is None:
            return None
        return HttpResponse(found.body, status=found.status, headers=found.headers)
