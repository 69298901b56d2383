"""A streamed answer that outlives the inbound request it was opened in."""

from __future__ import annotations

from typing import TypeVar

import requests
from urllib3.response import BaseHTTPResponse

from headrace.transport.stock.response import StreamedResponse

A = TypeVar("A", bound=requests.Response | BaseHTTPResponse)


def detach(answer: A) -> A:
    """*answer*. From now on it outlives the inbound request that it was opened in, and its holder must close it.

    It is for a streamed answer (`stream=True`, `preload_content=False`) that is read on after that request, by a
    thread of its own, say, or for another request. Otherwise its connection is closed with the request. For any
    other answer, outside of a request, or a second time, it does nothing. Once the request has ended it is too late.

    Raises:
        TypeError: *answer* is no response of requests or urllib3.
    """
    if isinstance(answer, requests.Response):
        raw: object = answer.raw
    elif isinstance(answer, BaseHTTPResponse):
        raw = answer
    else:
        raise TypeError(
            f"detach() takes a response of requests or urllib3 and returns it, not {type(answer).__name__!r}"
        )
    if isinstance(raw, StreamedResponse) and raw.let_go is not None:
        let_go, raw.let_go = raw.let_go, None
        let_go()
    return answer
