"""What one test does with headrace, no other test sees: instances, circuits, patches, the bound request."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import Any

import pytest
import requests
import requests_mock
import responses
import urllib3
from prometheus_client import CollectorRegistry
from requests.adapters import HTTPAdapter

import headrace
from headrace.testing import isolated
from support.faultserver import Answer, FaultServer
from support.governed import rules, running

STOCK = HTTPAdapter.send, HTTPAdapter.get_connection_with_tls_context


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as one:
        yield one


@pytest.fixture
def install(tmp_path: Path, server: FaultServer) -> Iterator[Callable[[], headrace.Headrace]]:
    """Starts an instance whose billing opens after two failures, and leaves it running to the end of the test."""
    file = tmp_path / "upstreams.yaml"
    body = "    retry: {max_attempts: 1}\n    circuit_breaker: {consecutive_failures: 2}\n"
    file.write_text(rules(server.url, body, more="install: {urllib3: true}\n"))
    with contextlib.ExitStack() as running:
        yield lambda: running.enter_context(headrace.install(file, registry=CollectorRegistry()))


def open_circuit(server: FaultServer) -> None:
    server.next(Answer(503), Answer(503))
    for _ in range(2):
        requests.get(server.url)
    with pytest.raises(headrace.CircuitOpenError):
        requests.get(server.url)


def is_governed(url: str) -> bool:
    return hasattr(requests.get(url), "headrace")


# Instances and what they know


def test_what_was_started_inside_is_closed_and_its_patches_are_gone(
    server: FaultServer, install: Callable[[], headrace.Headrace]
) -> None:
    with isolated():
        hr = install()
        assert is_governed(server.url)

    assert not hr.status()["running"]
    assert not is_governed(server.url)
    with urllib3.PoolManager() as manager:
        assert not hasattr(manager.request("GET", server.url), "headrace")
    assert (HTTPAdapter.send, HTTPAdapter.get_connection_with_tls_context) == STOCK
    with pytest.raises(LookupError):
        headrace.current()


def test_it_is_closed_after_a_failure_too(install: Callable[[], headrace.Headrace]) -> None:
    with contextlib.suppress(ZeroDivisionError), isolated():
        hr = install()
        raise ZeroDivisionError

    assert not hr.status()["running"]


def test_what_ran_before_runs_on_and_forgets_at_both_ends(
    server: FaultServer, install: Callable[[], headrace.Headrace]
) -> None:
    def state(hr: headrace.Headrace) -> object:
        return hr.status()["upstreams"]["billing"]["circuit_breaker"]["state"]

    with install() as hr:
        open_circuit(server)
        with isolated():
            assert state(hr) == "closed"
            assert requests.get(server.url).headrace.reason == "success"  # type: ignore[attr-defined]
            open_circuit(server)
        assert state(hr) == "closed"
        assert is_governed(server.url)
        assert server.connections == 1, "connections are kept"


def test_a_middleware_starts_again_with_its_next_request(
    server: FaultServer, install: Callable[[], headrace.Headrace]
) -> None:
    with install() as hr:
        files = hr.files
    seen: list[bool] = []

    def app(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
        seen.append(is_governed(server.url))
        start_response("200 OK", [])
        return [b""]

    served = headrace.WSGIMiddleware(app, files, registry=CollectorRegistry())
    for _ in range(2):
        with isolated():
            served({"REQUEST_METHOD": "GET"}, lambda *_: lambda _: None)
        assert not is_governed(server.url)

    assert seen == [True, True]


def test_the_inbound_request_of_outside_is_not_seen_inside_and_bound_again_after(
    server: FaultServer, install: Callable[[], headrace.Headrace]
) -> None:
    from headrace.runtime.inbound import inbound_var

    bound: Any = object()
    token = inbound_var.set(bound)
    try:
        with isolated():
            with pytest.raises(LookupError):
                headrace.current()
            inbound_var.set(None)
        assert inbound_var.get() is bound
    finally:
        inbound_var.reset(token)


def test_nothing_that_code_outside_is_bound_to_is_seen_inside() -> None:
    """Whatever context variables there are: each is what it is outside of everything."""
    ours = {
        variable
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] == "headrace"
        for variable in vars(module).values()
        if isinstance(variable, ContextVar)
    }
    assert len(ours) >= 5
    outside = object()
    context = copy_context()
    for variable in ours:
        context.run(variable.set, outside)

    def seen_inside() -> list[str]:
        with isolated():
            return [variable.name for variable in ours if variable.get() is outside]

    assert context.run(seen_inside) == []
    assert {context[variable] for variable in ours} == {outside}


def test_it_may_be_nested(server: FaultServer, install: Callable[[], headrace.Headrace]) -> None:
    with isolated():
        hr = install()
        with isolated():
            open_circuit(server)
        assert headrace.current() is hr
        assert is_governed(server.url)
    assert not is_governed(server.url)


# Beside responses and requests-mock, in any order


ORDERS = [
    "mock, start, close, unmock",
    "start, mock, unmock, close",
    "start, mock, close, unmock",
    "mock, start, unmock, close",
]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mock", ["responses", "requests_mock"])
@pytest.mark.parametrize("within", [True, False], ids=["isolated", "bare"])
def test_after_a_mock_in_any_order_the_next_start_governs_and_leaves_stock_behind(
    mock: str,
    order: str,
    within: bool,
    server: FaultServer,
    install: Callable[[], headrace.Headrace],
) -> None:
    mocked: Any = responses.RequestsMock(assert_all_requests_are_fired=False)
    if mock == "requests_mock":
        mocked = requests_mock.Mocker()
    mocked.get(server.url, json={"by": "mock"})
    running: list[headrace.Headrace] = []
    do: dict[str, Callable[[], object]] = {
        "mock": mocked.start,
        "unmock": mocked.stop,
        "start": lambda: running.append(install()),
        "close": lambda: running.pop().close(),
    }
    with isolated() if within else contextlib.nullcontext():
        is_mocked = False
        for step in order.split(", "):
            do[step]()
            is_mocked = step == "mock" or (is_mocked and step != "unmock")
            if is_mocked:
                assert requests.get(server.url).json() == {"by": "mock"}
    assert not server.requests

    with install() as hr:
        assert requests.get(server.url).headrace.upstream == "billing"  # type: ignore[attr-defined]
        assert hr.status()["upstreams"]["billing"]["requests"] == {"2xx": 1}
    assert not is_governed(server.url)
    assert len(server.requests) == 2
    assert (HTTPAdapter.send, HTTPAdapter.get_connection_with_tls_context) == STOCK


def test_an_instance_whose_patch_a_mock_has_thrown_out_is_in_force_again_inside(
    server: FaultServer, install: Callable[[], headrace.Headrace]
) -> None:
    with contextlib.ExitStack() as stack:
        mocked = responses.RequestsMock()
        mocked.start()
        stack.enter_context(install())
        mocked.stop(allow_assert=False)
        assert not is_governed(server.url), "responses has put back what it found"

        with isolated():
            assert is_governed(server.url)
        assert is_governed(server.url)


def test_a_start_over_a_mock_over_a_layer_of_ours_governs_and_counts_once(
    server: FaultServer, install: Callable[[], headrace.Headrace]
) -> None:
    first = install()
    with FaultServer() as other, responses.RequestsMock() as mocked:
        mocked.add_passthru(server.url)
        mocked.add_passthru(other.url)
        first.close()
        with install() as hr:
            assert is_governed(server.url)
            assert not is_governed(other.url)
            assert hr.status()["upstreams"]["billing"]["requests"] == {"2xx": 1}
            assert [host["calls"] for host in hr.status()["unknown_hosts"]] == [1]
        assert (len(server.requests), len(other.requests)) == (1, 1)
    with install():
        assert is_governed(server.url)
    assert (HTTPAdapter.send, HTTPAdapter.get_connection_with_tls_context) == STOCK


def test_a_mock_that_came_before_us_is_governed(server: FaultServer, tmp_path: Path) -> None:
    with responses.RequestsMock() as mocked:
        mocked.get(server.url, status=503)
        mocked.get(server.url, body="second")
        with running(tmp_path, rules(server.url)):
            answer = requests.get(server.url)

    assert answer.text == "second"
    assert [one.outcome for one in answer.headrace.attempts] == ["5xx", "2xx"]  # type: ignore[attr-defined]
