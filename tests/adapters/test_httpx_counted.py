"""Calls of httpx to a URL that a rule names: sent as they are, counted as ungoverned, and said once per call site."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import httpx
import httpx2
import pytest

from support.faultserver import FaultServer
from support.governed import rules, running


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture(params=[httpx, httpx2], ids=lambda module: module.__name__)
def library(request: pytest.FixtureRequest) -> ModuleType:
    return request.param  # type: ignore[no-any-return]


def test_a_call_is_sent_and_counted_and_said_once_with_its_line(
    tmp_path: Path, server: FaultServer, library: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    with running(tmp_path, rules(server.url)) as hr, library.Client(trust_env=False) as client:
        for _ in range(3):
            assert client.get(f"{server.url}/x").status_code == 200

        assert hr.status()["ungoverned"] == {"httpx": 3}
        (said,) = [one for one in caplog.records if one.__dict__.get("event") == "call.ungoverned"]
        assert said.levelno == logging.WARNING
        assert Path(__file__).name in said.__dict__["call_site"]
        assert "does not govern httpx" in said.getMessage()


def test_a_call_of_asyncio_is_counted(tmp_path: Path, server: FaultServer, library: ModuleType) -> None:
    async def call() -> int:
        async with library.AsyncClient(trust_env=False) as client:
            return (await client.get(f"{server.url}/x")).status_code  # type: ignore[no-any-return]

    with running(tmp_path, rules(server.url)) as hr:
        assert asyncio.run(call()) == 200
        assert hr.status()["ungoverned"] == {"httpx": 1}


def test_no_other_call_is_counted(tmp_path: Path, server: FaultServer, library: ModuleType) -> None:
    with (
        running(tmp_path, rules(f"{server.url}/v2", "    mode: 'off'\n")) as hr,
        library.Client(trust_env=False) as client,
    ):
        client.get(f"{server.url}/v1/x")
        client.get(f"{server.url}/v2/x")  # mode: off

        assert hr.status()["ungoverned"] == {}


def test_close_puts_back_what_was_there(tmp_path: Path, server: FaultServer, library: ModuleType) -> None:
    before = library.HTTPTransport.handle_request, library.AsyncHTTPTransport.handle_async_request
    with running(tmp_path, rules(server.url)):
        assert library.HTTPTransport.handle_request is not before[0]
    assert (library.HTTPTransport.handle_request, library.AsyncHTTPTransport.handle_async_request) == before


def test_a_mock_that_is_laid_over_ours_stays_on_top(
    tmp_path: Path, server: FaultServer, library: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path, rules(server.url)) as hr, library.Client(trust_env=False) as client:
        monkeypatch.setattr(
            library.HTTPTransport, "handle_request", lambda self, request: library.Response(299)
        )
        hr.reload()
        hr._housekeeping._tasks[-1](0.0)

        assert client.get(server.url).status_code == 299
        assert hr.status()["ungoverned"] == {}


@pytest.mark.parametrize("name", ["httpx", "httpx2"])
def test_it_is_not_imported_and_noticed_when_the_application_does(
    tmp_path: Path, server: FaultServer, name: str
) -> None:
    (tmp_path / "upstreams.yaml").write_text(rules(server.url))
    program = f"""
        import sys, time
        import headrace
        with headrace.install() as hr:
            assert "httpx" not in sys.modules and "httpx2" not in sys.modules
            import {name}
            ends_at = time.monotonic() + 30
            while not hasattr({name}.HTTPTransport.handle_request, "headrace_original"):
                assert time.monotonic() < ends_at
                time.sleep(0.01)
            {name}.get("{server.url}/x", trust_env=False)
            assert hr.status()["ungoverned"] == {{"httpx": 1}}, hr.status()["ungoverned"]
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
