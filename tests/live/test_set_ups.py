"""Each set-up that `frameworks.md` says yes to, from start to stop: the real server, the page's own application."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from support.faultserver import Answer, Break, FaultServer
from support.governed import rules
from support.set_ups import Cell, Tasks, cells, edit, is_there, program, server, write_application
from support.waiting import wait_until

RULES = "    retry: {max_attempts: 1}\n"
SECOND = RULES + "    headers: {X-Rule: second}\n"

_ALARM = re.compile(r"(?i)warn|error|traceback|exception|never awaited|unclosed|leak")
_SAID = re.compile(
    r"hypercorn\.error - |ERROR:django\.request:Bad Gateway"  # the names of their loggers
    r"|running uWSGI as root|superuser privileges|_warn_or_raise_security_error"
    r"|up to 512 Python threads"  # granian's opinion of its own default
    r"|Error while closing socket \[Errno 9\]"  # gunicorn, where uvicorn has closed it
    # What they listen with and what they have accepted, which gunicorn and waitress leave to the end of the process.
    r"|unclosed <socket\.socket fd=\d+, family=2, type=1, proto=0, laddr=\('127\.0\.0\.1', PORT\)"
    r"|Enable tracemalloc|waitress/wasyncore\.py:\d+: ResourceWarning|unclosed file %r"
)
"""What servers say of themselves, with or without headrace."""


@pytest.fixture
def upstream() -> Iterator[FaultServer]:
    with FaultServer() as upstream:
        upstream.always(Answer(headers=(("Content-Type", "application/json"),), body=b'{"invoice": 7}'))
        upstream.at("/invoices/9", Break())
        yield upstream


@pytest.mark.parametrize(
    "cell",
    [
        one
        for one in cells("ASGI")
        if one.framework == "FastAPI" and one.program in ("fastapi", "hypercorn", "granian")
    ],
    ids=str,
)
def test_a_bad_file_stops_the_start(cell: Cell, tmp_path: Path, upstream: FaultServer) -> None:
    """failures.md 82. The lifespan says so: what was added is built where servers take an error for no lifespan."""
    (tmp_path / "upstreams.yaml").write_text(rules(upstream.url, "    retri: {}\n"))
    application = write_application(tmp_path, cell, upstream)

    with server(cell, tmp_path, application, is_awaited=False) as running:
        running.process.wait(60)
        assert "upstreams.billing.retri" in running.output


@pytest.fixture
def tasks(tmp_path: Path) -> Iterator[Tasks]:
    with Tasks(tmp_path / "broker") as tasks:
        yield tasks


@pytest.fixture(autouse=True)
def is_installed(cell: Cell) -> None:
    """Without its server a set-up is skipped (uWSGI is not to be had everywhere), and fails where CI=true."""
    if not is_there(cell.program):
        text = f"{cell.program} is not installed beside this interpreter"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{text}; with CI=true no test may be skipped for it")
        pytest.skip(text)


@pytest.mark.parametrize("cell", [*cells("ASGI"), *cells("WSGI")], ids=str)
def test_a_set_up_from_start_to_stop(cell: Cell, tmp_path: Path, upstream: FaultServer) -> None:
    """failures.md 82."""
    file = tmp_path / "upstreams.yaml"
    file.write_text(rules(upstream.url, RULES))
    application = write_application(tmp_path, cell, upstream)

    with server(cell, tmp_path, application) as running:

        def get(path: str) -> requests.Response:
            return requests.get(running.url + path, timeout=30)

        answer = get("/invoices/7")
        assert (answer.status_code, answer.json()) == (200, {"invoice": 7})
        assert upstream.requests[-1].header("X-Request-ID") == answer.headers["X-Request-ID"]

        failed = get("/invoices/9")
        assert (failed.status_code, failed.headers["Content-Type"]) == (502, "application/problem+json")
        assert failed.json()["upstream"] == "billing"
        assert 'headrace_pool_target_size{upstream="billing"} ' in get("/metrics").text

        edit(file, rules(upstream.url, SECOND))

        def follows() -> bool:
            assert get("/invoices/7").status_code == 200
            return upstream.requests[-1].header("X-Rule") == "second"

        wait_until(follows, timeout_s=30, what="the second rule in force")
        assert running.stop() == 0

        assert alarms(running.output.replace(running.url.rpartition(":")[2], "PORT")) == []


@pytest.mark.parametrize("cell", cells("Celery"), ids=str)
def test_a_worker_of_celery_from_start_to_stop(
    cell: Cell, tmp_path: Path, upstream: FaultServer, tasks: Tasks
) -> None:
    """failures.md 82. The signal of a forked worker never comes in a pool of threads."""
    file = tmp_path / "upstreams.yaml"
    file.write_text(rules(upstream.url, RULES))
    write_application(tmp_path, cell, upstream)

    alone = "--without-mingle --without-gossip --without-heartbeat"
    with program(f"{cell.command} {alone}", tmp_path, tasks.env) as running:
        tasks.send("orders.invoice", 7)
        upstream.wait_for(lambda: upstream.requests, timeout_s=60)
        assert upstream.requests[0].header("X-Request-ID")  # headrace's: it was in force at the first task

        edit(file, rules(upstream.url, SECOND))

        def follows() -> bool:
            answered = len(upstream.requests)
            tasks.send("orders.invoice", 7)
            upstream.wait_for(lambda: len(upstream.requests) > answered)
            return upstream.requests[-1].header("X-Rule") == "second"

        wait_until(follows, timeout_s=30, what="the second rule in force")
        tasks.send("orders.invoice", 9)
        wait_until(
            lambda: _LAST_NOTE.search(running.output), what="a task that failed, with the notes of headrace"
        )
        assert running.stop() == 0

        before, _, rest = running.output.partition("raised unexpected")
        assert alarms(before.rpartition("\n")[0] + _LAST_NOTE.split(rest)[-1]) == []


_LAST_NOTE = re.compile(r'headrace: upstream "billing" not retried: .*\n')


def alarms(output: str) -> list[str]:
    return [line for line in output.splitlines() if _ALARM.search(line) and not _SAID.search(line)]
