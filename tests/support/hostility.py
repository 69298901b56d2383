"""Calls to a server that does whatever it likes: how late they end."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import requests
import urllib3

import headrace
from support.faultserver import Answer, Break, Endless, FaultServer, Raw, Reply, Silence

BEHAVIOURS: dict[str, Reply] = {
    "/whole": Answer(),
    "/503": Answer(503),
    "/429": Answer(429, headers=(("Retry-After", "1"),)),
    "/slow": Answer(delay_s=0.2),
    "/silent": Silence(),
    "/dripping-head": Answer(drip_head_s=0.03),
    "/dripping-body": Answer(body=b"x" * 10_000, drip_body_s=0.03),
    "/dripping-chunks": Answer(body=b"x" * 10_000, chunked=True, drip_body_s=0.03),
    "/dripping-503": Answer(503, body=b"x" * 10_000, drip_body_s=0.03),
    "/huge-503": Answer(503, body=b"x" * 3_000_000),
    "/endless-chunks": Endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "/endless-chunk-size": Endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
    "/endless-body": Endless(b"HTTP/1.1 503 No\r\n\r\n", b"x"),
    "/endless-headers": Endless(b"HTTP/1.1 200 OK\r\n", b"X-More: x\r\n"),
    "/endless-interim": Endless(),
    "/reset": Break(at="request"),
    "/reset-amid-head": Break(at="head"),
    "/reset-amid-body": Break(at="body"),
    "/end-amid-head": Break(at="head", how="fin"),
    "/end-amid-body": Break(at="body", how="fin"),
    "/no-http": Raw(),
}

Call = Callable[[headrace.Headrace, str, str], Any]


def _by_requests(hr: headrace.Headrace, url: str, path: str) -> Any:
    return requests.get(url + path)


def _by_session_with_retries(hr: headrace.Headrace, url: str, path: str) -> Any:
    with requests.Session() as session:
        session.mount(url, requests.adapters.HTTPAdapter(max_retries=2))
        return session.get(url + path)


def _streamed(hr: headrace.Headrace, url: str, path: str) -> Any:
    return requests.get(url + path, stream=True).close()  # only its head has a deadline


def _by_handle(hr: headrace.Headrace, url: str, path: str) -> Any:
    return hr.upstream("billing").get(path)


def _by_urlopen(hr: headrace.Headrace, url: str, path: str) -> Any:
    return hr.upstream("billing").urlopen("GET", path)


def _with_a_body(hr: headrace.Headrace, url: str, path: str) -> Any:
    return hr.upstream("billing").urlopen("POST", path, body=b"x" * 100_000)


def _by_url(hr: headrace.Headrace, url: str, path: str) -> Any:
    with urllib3.PoolManager() as manager:
        return manager.request("GET", url + path)


CALLS: tuple[Call, ...] = (
    _by_requests,
    _by_session_with_retries,
    _streamed,
    _by_handle,
    _by_urlopen,
    _with_a_body,
    _by_url,
)


@dataclass(frozen=True, slots=True)
class Ended:
    """One call: what it was, how long it took, and what it raised, if anything."""

    surface: str
    path: str
    took_s: float
    error: BaseException | None


def prepare(server: FaultServer) -> None:
    """Have *server* behave by path."""
    for path, behaviour in BEHAVIOURS.items():
        server.at(path, behaviour)


def suffer(hr: headrace.Headrace, url: str, *, calls: int, threads: int, seed: int) -> list[Ended]:
    """Make *calls* calls of every kind to every behaviour, by *threads* at once. Blocks."""
    rng = random.Random(seed)
    todo = [
        (CALLS[number % len(CALLS)], path)
        for number, path in enumerate(rng.choices(list(BEHAVIOURS), k=calls))
    ]
    ended: list[Ended] = []

    def work() -> None:
        while True:
            try:
                call, path = todo.pop()
            except IndexError:
                return
            error = None
            began = time.monotonic()
            try:
                call(hr, url, path)
            except Exception as raised:
                error = raised
            ended.append(Ended(call.__name__, path, time.monotonic() - began, error))

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return ended
