"""What an explicit `timeout=` makes of the limits of a call, by who wrote them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3
from urllib3.util.timeout import Timeout

from headrace.adapters.timeouts import timeouts_of_call
from headrace.config import load
from headrace.policy.plan import NO_LIMIT_S, TimeoutPlan
from support.faultserver import Answer, FaultServer
from support.governed import rules, running
from support.surfaces import INSTALL, SESSION, SURFACES, Surface, across, status_of

NO = NO_LIMIT_S


def limits(tmp_path: Path, written: str, timeout: Any, env: dict[str, str] | None = None) -> TimeoutPlan:
    file = tmp_path / "u.yaml"
    file.write_text(written)
    return timeouts_of_call(load(file, env=env or {}).upstreams["billing"].timeouts, timeout)


def under(timeouts: str = "", *, more: str = "") -> str:
    body = f"    timeouts: {{{timeouts}}}\n" if timeouts else ""
    return rules("https://billing.internal", body, more=more)


@pytest.mark.parametrize(
    ("timeout", "connect_s", "read_s", "attempt_s", "deadline_s"),
    [
        pytest.param(None, 2.0, 4.0, 4.0, 15.0, id="none given"),
        pytest.param(0.1, 0.1, 0.1, 4.0, 15.0, id="less than the defaults: they are not lowered"),
        pytest.param(3, 3.0, 3.0, 6.0, 15.0, id="a number"),
        pytest.param(60, 60.0, 60.0, 120.0, 120.5, id="more than the default deadline"),
        pytest.param((1, 30), 1.0, 30.0, 31.0, 31.5, id="a pair"),
        pytest.param((1, None), 1.0, NO, NO, None, id="no limit of silence"),
        pytest.param((None, 5), NO, 5.0, NO, None, id="no limit of connecting"),
        pytest.param((None, None), NO, NO, NO, None, id="no limit at all"),
        pytest.param(Timeout(connect=1, read=None), 1.0, NO, NO, None, id="the same in urllib3's words"),
        pytest.param(Timeout(connect=1), 1.0, 4.0, 5.0, 15.0, id="reading not mentioned"),
        pytest.param(Timeout(read=9), 2.0, 9.0, 11.0, 15.0, id="connecting not mentioned"),
        pytest.param(Timeout(), 2.0, 4.0, 4.0, 15.0, id="nothing mentioned"),
        pytest.param(Timeout(None, None, None), 2.0, 4.0, 4.0, 15.0, id="what requests makes of no timeout"),
        pytest.param(Timeout(total=1), 1.0, 1.0, 1.0, 15.0, id="a total lowers"),
        pytest.param(Timeout(total=50), 2.0, 4.0, 6.0, 15.0, id="a total bounds what is not mentioned"),
        pytest.param(Timeout(20, connect=5, read=60), 5.0, 20.0, 20.0, 20.5, id="a total of parts"),
    ],
)
def test_a_default_gives_way_to_what_a_call_asks_for_and_is_never_lowered(
    tmp_path: Path, timeout: Any, connect_s: float, read_s: float, attempt_s: float, deadline_s: float | None
) -> None:
    """failures.md 89."""
    found = limits(tmp_path, under(), timeout)

    assert (found.connect_s, found.read_s) == (connect_s, read_s)
    assert (found.attempt_s, found.deadline_s) == (attempt_s, deadline_s)
    if timeout is not None and found.asked is not None and found.asked.total_s is None:
        assert found.tls_handshake_s == (2.0 if found.asked.connect_s is None else connect_s)
        assert found.write_s == (4.0 if found.asked.read_s is None else read_s)


WRITTEN = "attempt: 1s, deadline: 10s"


@pytest.mark.parametrize(
    ("text", "env"),
    [
        pytest.param(under(WRITTEN), {}, id="under the upstream"),
        pytest.param(under(more=f"defaults: {{timeouts: {{{WRITTEN}}}}}\n"), {}, id="under defaults"),
        pytest.param(
            "upstreams:\n  other:\n    base_url: https://other.internal\n    timeouts: {" + WRITTEN + "}\n"
            "  billing:\n    base_url: https://billing.internal\n    extends: other\n",
            {},
            id="extended",
        ),
        pytest.param(
            under(),
            {
                "HEADRACE_UPSTREAMS__BILLING__TIMEOUTS__ATTEMPT": "1s",
                "HEADRACE_UPSTREAMS__BILLING__TIMEOUTS__DEADLINE": "10s",
            },
            id="by variables",
        ),
    ],
)
@pytest.mark.parametrize("timeout", [60, (1, None), Timeout(total=30)], ids=["60", "no limit", "a total"])
def test_a_limit_that_somebody_wrote_stays_whatever_a_call_asks_for(
    tmp_path: Path, text: str, env: dict[str, str], timeout: Any
) -> None:
    """failures.md 89."""
    found = limits(tmp_path, text, timeout, env)

    assert (found.attempt_s, found.deadline_s) == (1.0, 10.0)


def test_each_of_the_two_gives_way_by_itself(tmp_path: Path) -> None:
    attempt = limits(tmp_path, under("attempt: 1s"), 60)
    deadline = limits(tmp_path, under("deadline: 10s"), 60)
    unbounded = limits(tmp_path, under("deadline: null"), 60)

    assert (attempt.attempt_s, attempt.deadline_s) == (1.0, 120.5)
    assert (deadline.attempt_s, deadline.deadline_s) == (120.0, 10.0)
    assert (unbounded.attempt_s, unbounded.deadline_s) == (120.0, None)


def test_a_total_bounds_a_written_attempt_from_below(tmp_path: Path) -> None:
    assert limits(tmp_path, under("attempt: 10s"), Timeout(total=1)).attempt_s == 1.0


ON_EACH = across(*SURFACES, SESSION)


@ON_EACH
@pytest.mark.parametrize("timeout", [30, (5, None)], ids=["a number", "no limit of silence"])
def test_an_answer_later_than_the_defaults_comes_where_the_call_waits_for_it(
    tmp_path: Path, call: Surface, timeout: Any
) -> None:
    """failures.md 89."""
    body = "    timeouts: {connect: 200ms, read: 300ms}\n    retry: {max_attempts: 1}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body, more=INSTALL)) as hr:
        server.always(Answer(delay_s=1.2))
        with pytest.raises((requests.Timeout, urllib3.exceptions.HTTPError)):
            call(hr, server.url, timeout=None)
        began = time.monotonic()
        assert status_of(call(hr, server.url, timeout=timeout)) == 200
        assert time.monotonic() - began >= 1.0


@ON_EACH
def test_a_written_attempt_holds_against_a_longer_timeout_of_the_call(tmp_path: Path, call: Surface) -> None:
    """An SDK passes its built-in 80 s with every call.

    failures.md 89.
    """
    body = "    timeouts: {attempt: 300ms}\n    retry: {max_attempts: 1}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body, more=INSTALL)) as hr:
        server.always(Answer(delay_s=6.0))
        began = time.monotonic()
        with pytest.raises((requests.Timeout, urllib3.exceptions.HTTPError)):
            call(hr, server.url, timeout=80)
        assert time.monotonic() - began < 4.0


def test_a_fallback_holds_to_its_own_written_limits_and_to_what_the_call_asked_for(tmp_path: Path) -> None:
    with FaultServer() as server:
        body = (
            "    circuit_breaker: {mode: forced_open}\n    fallback: {upstream: spare}\n"
            f"  spare:\n    base_url: {server.url}\n    timeouts: {{attempt: 300ms}}\n"
            "    retry: {max_attempts: 1}\n"
        )
        with running(tmp_path, rules("http://127.0.0.1:9", body)) as hr:
            server.always(Answer(delay_s=6.0))
            began = time.monotonic()
            with pytest.raises(requests.Timeout):
                hr.upstream("billing").get("/", timeout=80)
            assert time.monotonic() - began < 4.0
