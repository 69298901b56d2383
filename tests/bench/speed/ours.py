"""headrace's own clients, all rules on: pool, deadline, retries, budget, breaker, metrics, request id."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from clients import Act, Ask
from prometheus_client import CollectorRegistry
from table import Lab

import headrace

RULES = """\
    timeouts: {deadline: 10s, attempt: 4s, connect: 2s, read: 4s, write: 4s, acquire: 500ms}
    pool: {max_connections: 200, max_idle: 200, when_full: wait, max_waiting: 1024, max_lifetime: 5m}
    retry: {max_attempts: 3, retry_on: [network, 5xx, 408, 429], budget: {ratio: 0.2, min_per_second: 3}}
    circuit_breaker: {failure_rate_threshold: 0.5, slow_call: {duration: 1s, rate_threshold: 0.5}}
    propagate: {request_id: true, retry_sequence: true, traceparent: true}
"""
"""Those of the keys that cost something at each call are written out, at their defaults or switched on."""


def rules(lab: Lab, *, install: str = "", more: str = "") -> str:
    """A file with nginx as the upstreams `plain` and `secure`; *more* are further upstreams."""
    text = f"version: 1\n{install}upstreams:\n  plain:\n    base_url: {lab.http}\n{RULES}"
    if lab.https:
        text += f"  secure:\n    base_url: {lab.https}\n    tls: {{ca: {lab.ca!r}}}\n{RULES}"
    return text + more


@contextmanager
def running(lab: Lab, text: str, name: str = "upstreams") -> Iterator[headrace.Headrace]:
    """A started Headrace over *text*, with metrics."""
    file = lab.folder / f"{name}.yaml"
    file.write_text(text)
    with headrace.Headrace(file, registry=CollectorRegistry()) as hr:
        yield hr


@contextmanager
def by_requests(lab: Lab) -> Iterator[headrace.Headrace]:
    """As installed by default."""
    with running(lab, rules(lab)) as hr:
        yield hr


@contextmanager
def by_urllib3(lab: Lab) -> Iterator[headrace.Headrace]:
    """With urllib3 governed as well."""
    with running(lab, rules(lab, install="install: {urllib3: true}\n")) as hr:
        yield hr


def _handle(lab: Lab, ask: Ask) -> Any:
    return lab.once(by_requests).upstream("secure" if ask.tls else "plain")


@contextmanager
def urlopen(lab: Lab, ask: Ask) -> Iterator[Act]:
    """`hr.upstream().urlopen`."""
    handle, method, path, body = _handle(lab, ask), ask.method, ask.path, ask.body

    def get() -> object:
        answer = handle.urlopen(method, path)
        return answer.status, answer.data

    def post() -> object:
        answer = handle.urlopen(method, path, body=body)
        return answer.status, answer.data

    yield get if body is None else post


@contextmanager
def handle(lab: Lab, ask: Ask) -> Iterator[Act]:
    """`hr.upstream().get`, a `requests.Response`."""
    one, path = _handle(lab, ask), ask.path

    def act() -> object:
        answer = one.get(path)
        return answer.status_code, answer.content

    yield act


@contextmanager
def own_session(lab: Lab, ask: Ask) -> Iterator[Act]:
    """`hr.session()`."""
    url = ask.url(lab)
    with lab.once(by_requests).session() as one:

        def act() -> object:
            answer = one.get(url)
            return answer.status_code, answer.content

        yield act
