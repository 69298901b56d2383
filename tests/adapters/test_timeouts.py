"""What an explicit `timeout=` makes of the limits of a call, by who wrote them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.util.timeout import Timeout

from headrace.adapters.timeouts import timeouts_of_call
from headrace.config import load
from headrace.policy.plan import NO_LIMIT_S, TimeoutPlan
from support.faultserver import Answer, FaultServer
from support.governed import rules, running
from support.surfaces import (
    INSTALL,
    SESSION,
    SURFACES,
    Surface,
    across,
    body_of,
    read,
    retrying_adapter,
    retrying_manager,
    status_of,
)

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
        pytest.param(Timeout(None, None, None), NO, NO, NO, None, id="no limit, three times"),
        pytest.param(Timeout.DEFAULT_TIMEOUT, 2.0, 4.0, 4.0, 15.0, id="urllib3's word for: not given"),
        pytest.param(Timeout(total=1), 1.0, 1.0, 1.0, 15.0, id="a total lowers"),
        pytest.param(Timeout(total=10), 10.0, 10.0, 10.0, 15.0, id="a total is connecting and reading"),
        pytest.param(Timeout(total=50), 50.0, 50.0, 50.0, 50.5, id="a total above the default deadline"),
        pytest.param(Timeout(20, connect=5, read=60), 5.0, 20.0, 20.0, 20.5, id="a total of parts"),
        pytest.param(Timeout(20, connect=5), 5.0, 20.0, 20.0, 20.5, id="a total, and connecting"),
    ],
)
def test_a_default_gives_way_to_what_a_call_asks_for_and_is_never_lowered(
    tmp_path: Path, timeout: Any, connect_s: float, read_s: float, attempt_s: float, deadline_s: float | None
) -> None:
    """failures.md 89."""
    found = limits(tmp_path, under(), timeout)

    assert (found.connect_s, found.read_s) == (connect_s, read_s)
    assert (found.attempt_s, found.deadline_s) == (attempt_s, deadline_s)
    if found.asked is not None and found.asked.total_s is None:
        assert found.tls_handshake_s == (2.0 if found.asked.connect_s is None else connect_s)
        assert found.write_s == (4.0 if found.asked.read_s is None else read_s)


WRITTEN = "attempt: 3s, deadline: 10s"


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
                "HEADRACE_UPSTREAMS__BILLING__TIMEOUTS__ATTEMPT": "3s",
                "HEADRACE_UPSTREAMS__BILLING__TIMEOUTS__DEADLINE": "10s",
            },
            id="by variables",
        ),
    ],
)
@pytest.mark.parametrize(
    ("timeout", "attempt_s"),
    [
        pytest.param(1, 3.0, id="less than the attempt"),
        pytest.param(5, 10.0, id="more"),
        pytest.param(60, 120.0, id="more than the deadline"),
        pytest.param((1, None), NO, id="no limit"),
        pytest.param(Timeout(total=30), 30.0, id="a total"),
    ],
)
def test_a_call_raises_an_attempt_that_somebody_wrote_and_never_the_deadline(
    tmp_path: Path, text: str, env: dict[str, str], timeout: Any, attempt_s: float
) -> None:
    """`timeout=` is how long the caller bears silence, and the file's `attempt` says nothing about that.

    failures.md 89.
    """
    found = limits(tmp_path, text, timeout, env)

    assert (found.attempt_s, found.deadline_s) == (attempt_s, 10.0)


def test_each_of_the_two_gives_way_by_itself(tmp_path: Path) -> None:
    attempt = limits(tmp_path, under("attempt: 1s"), 60)
    deadline = limits(tmp_path, under("deadline: 10s"), 60)
    unbounded = limits(tmp_path, under("deadline: null"), 60)

    assert (attempt.attempt_s, attempt.deadline_s) == (120.0, 120.5)
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
    body = "    timeouts: {attempt: 80ms, read: 80ms}\n    retry: {max_attempts: 1}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body, more=INSTALL)) as hr:
        server.always(Answer(delay_s=0.8))
        with pytest.raises((requests.Timeout, urllib3.exceptions.HTTPError)):
            call(hr, server.url, timeout=None)
        began = time.monotonic()
        assert status_of(call(hr, server.url, timeout=timeout)) == 200
        assert time.monotonic() - began >= 0.7


STEADY, NO_LIMIT = Answer(body=b"x" * 18, drip_body_s=0.1), (None, None)


@ON_EACH
@pytest.mark.parametrize(
    ("limits", "timeout", "answer", "stream"),
    [
        pytest.param(
            "attempt: 1m, deadline: 10m", 1, STEADY, False, id="a steady download, longer than its silence"
        ),
        pytest.param("attempt: 1m, deadline: 10m", 1, STEADY, True, id="the same, streamed"),
        pytest.param(
            "attempt: 80ms, deadline: 20s", (5, None), Answer(delay_s=0.8), False, id="ten attempts long"
        ),
        pytest.param(
            "attempt: 80ms, read: 80ms", 30, Answer(delay_s=0.8), True, id="more than all that is written"
        ),
        pytest.param(
            "read: 50ms", NO_LIMIT, Answer(body=b"xyz", drip_body_s=0.4), False, id="silent during the body"
        ),
        pytest.param(
            "read: 50ms", NO_LIMIT, Answer(body=b"xyz", drip_body_s=0.4), True, id="the same, streamed by us"
        ),
    ],
)
def test_what_the_caller_bears_is_borne(
    tmp_path: Path, call: Surface, limits: str, timeout: Any, answer: Answer, stream: bool
) -> None:
    """failures.md 89."""
    body = f"    timeouts: {{{limits}}}\n    retry: {{max_attempts: 1}}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body, more=INSTALL)) as hr:
        server.always(answer)
        got = call(hr, server.url, timeout=timeout, stream=stream)
        assert status_of(got) == 200
        assert (read(got) if stream else body_of(got)) == answer.body


@ON_EACH
def test_a_streamed_body_is_silent_for_no_longer_than_the_call_bears(tmp_path: Path, call: Surface) -> None:
    body = "    timeouts: {read: 1m, attempt: 1m, deadline: 10m}\n    retry: {max_attempts: 1}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body, more=INSTALL)) as hr:
        server.always(Answer(body=b"xyz", drip_body_s=6.0))
        got = call(hr, server.url, timeout=0.3, stream=True)
        began = time.monotonic()
        with pytest.raises(call.error):
            read(got)
        assert time.monotonic() - began < 4.0


@ON_EACH
@pytest.mark.parametrize("timeout", [80, (1, None)], ids=["80 s", "no limit"])
def test_a_written_deadline_holds_whatever_a_call_bears(tmp_path: Path, call: Surface, timeout: Any) -> None:
    """An SDK passes its built-in 80 s with every call.

    failures.md 89.
    """
    body = "    timeouts: {deadline: 300ms}\n    retry: {max_attempts: 1}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body, more=INSTALL)) as hr:
        server.always(Answer(delay_s=6.0))
        began = time.monotonic()
        with pytest.raises((requests.Timeout, urllib3.exceptions.HTTPError)):
            call(hr, server.url, timeout=timeout)
        assert time.monotonic() - began < 4.0


@ON_EACH
@pytest.mark.parametrize("timeout", [80, (1, None), 0.05], ids=["80 s", "no limit", "less"])
def test_a_file_that_ignores_callers_keeps_its_limits(tmp_path: Path, call: Surface, timeout: Any) -> None:
    body = "    timeouts: {attempt: 1s, caller: ignore}\n    retry: {max_attempts: 1}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body, more=INSTALL)) as hr:
        server.at("/late", Answer(delay_s=0.3))
        server.always(Answer(delay_s=20.0))
        assert status_of(call(hr, server.url, path="/late", timeout=timeout)) == 200
        began = time.monotonic()
        with pytest.raises((requests.Timeout, urllib3.exceptions.HTTPError)):
            call(hr, server.url, timeout=timeout)
        assert time.monotonic() - began < 10.0
        assert hr.status()["upstreams"]["billing"]["own_timeouts"] == 0


@across(*SURFACES, SESSION, retrying_adapter(2), retrying_manager(2))
@pytest.mark.parametrize("mode", ["enforce", "observe"])
def test_calls_with_limits_of_their_own_are_counted_once_each(
    tmp_path: Path, call: Surface, mode: str
) -> None:
    with (
        FaultServer() as server,
        running(tmp_path, rules(server.url, f"    mode: {mode}\n", more=INSTALL)) as hr,
    ):
        server.next(Answer(503))
        for timeout in (30, (1, 30), None):
            call(hr, server.url, timeout=timeout)
        assert hr.status()["upstreams"]["billing"]["own_timeouts"] == 2


def test_a_reload_says_whose_limits_hold(tmp_path: Path) -> None:
    body = "    timeouts: {attempt: 10s, caller: %s}\n    retry: {max_attempts: 1}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body % "ignore")) as hr:
        server.always(Answer(delay_s=0.8))
        assert requests.get(server.url, timeout=0.05).status_code == 200
        (tmp_path / "upstreams.yaml").write_text(rules(server.url, body % "honour"))
        hr.reload()
        with pytest.raises(requests.Timeout):
            requests.get(server.url, timeout=0.05)


def _mounted(url: str, timeout: Any) -> int:
    """By an adapter that passes its own timeout with every call: the usual recipe."""

    class Patient(HTTPAdapter):
        def send(self, request: Any, *args: Any, **kw: Any) -> requests.Response:
            return super().send(request, *args, **{**kw, "timeout": timeout})

    with requests.Session() as session:
        session.mount(url, Patient())
        return session.get(url).status_code


@pytest.mark.parametrize(
    "call_with",
    [
        pytest.param(_mounted, id="an adapter"),
        pytest.param(
            lambda url, t: urllib3.PoolManager(timeout=t).request("GET", url).status, id="a manager"
        ),
        pytest.param(
            lambda url, t: (
                urllib3.PoolManager(timeout=t).request("GET", url, timeout=Timeout.DEFAULT_TIMEOUT).status
            ),
            id="a manager, where the call says: not given",
        ),
        pytest.param(
            lambda url, t: urllib3.PoolManager(timeout=0.1).request("GET", url, timeout=t).status,
            id="a call, above its manager",
        ),
        pytest.param(
            lambda url, t: (
                urllib3.PoolManager().connection_from_url(url).urlopen("GET", "/", timeout=t).status
            ),
            id="a call of a manager's pool",
        ),
    ],
)
@pytest.mark.parametrize(
    "timeout",
    [
        pytest.param(30, id="a number"),
        pytest.param(Timeout(connect=5, read=None), id="no limit of silence"),
        pytest.param(Timeout(total=30), id="a total"),
        pytest.param(Timeout(connect=None, read=None), id="no limit, twice"),
        pytest.param(None, id="no limit"),
    ],
)
def test_a_timeout_is_heard_wherever_a_library_takes_one(
    tmp_path: Path, call_with: Any, timeout: Any
) -> None:
    """failures.md 89."""
    if call_with is _mounted and timeout is None:
        pytest.skip("in requests it says nothing: `Session.request` passes it with every call")
    body = "    timeouts: {read: 80ms, attempt: 80ms, deadline: 20s}\n    retry: {max_attempts: 1}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body, more=INSTALL)):
        server.always(Answer(delay_s=0.8))
        assert call_with(server.url, timeout) == 200


@pytest.mark.parametrize(
    "get",
    [
        pytest.param(lambda hr, url: requests.get(url), id="requests"),
        pytest.param(lambda hr, url: requests.get(url, timeout=None), id="requests, by name"),
        pytest.param(lambda hr, url: hr.upstream("billing").get("/", timeout=None), id="a handle"),
        pytest.param(lambda hr, url: urllib3.PoolManager().request("GET", url), id="urllib3"),
        pytest.param(lambda hr, url: urllib3.request("GET", url), id="urllib3.request"),
        pytest.param(lambda hr, url: hr.upstream("billing").urlopen("GET", "/"), id="urlopen"),
    ],
)
@pytest.mark.parametrize("is_requests_governed", [True, False])
def test_what_a_library_passes_when_nobody_has_said_anything_changes_nothing(
    tmp_path: Path, get: Any, is_requests_governed: bool
) -> None:
    body = "    timeouts: {read: 80ms, attempt: 80ms}\n    retry: {max_attempts: 1}\n"
    install = f"install: {{urllib3: true, requests: {str(is_requests_governed).lower()}}}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body, more=install)) as hr:
        server.always(Answer(delay_s=6.0))
        began = time.monotonic()
        with pytest.raises((requests.Timeout, urllib3.exceptions.HTTPError)):
            get(hr, server.url)
        assert time.monotonic() - began < 4.0


def test_no_limit_at_a_call_by_name_is_none(tmp_path: Path) -> None:
    """`urlopen` is in the words of urllib3, where None is no limit."""
    body = "    timeouts: {read: 80ms, attempt: 80ms, deadline: 20s}\n    retry: {max_attempts: 1}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        server.always(Answer(delay_s=0.8))
        assert hr.upstream("billing").urlopen("GET", "/", timeout=None).status == 200


def test_a_fallback_holds_to_its_own_written_deadline_and_to_what_the_call_asked_for(tmp_path: Path) -> None:
    with FaultServer() as server:
        body = (
            "    circuit_breaker: {mode: forced_open}\n    fallback: {upstream: spare}\n"
            f"  spare:\n    base_url: {server.url}\n    timeouts: {{deadline: 300ms}}\n"
            "    retry: {max_attempts: 1}\n"
        )
        with running(tmp_path, rules("http://127.0.0.1:9", body)) as hr:
            server.always(Answer(delay_s=6.0))
            began = time.monotonic()
            with pytest.raises(requests.Timeout):
                hr.upstream("billing").get("/", timeout=80)
            assert time.monotonic() - began < 4.0


def test_the_longest_limits_there_are_can_be_waited_for(tmp_path: Path) -> None:
    """Thirty days are more milliseconds than an int of C holds."""
    names = ("deadline", "attempt", "connect", "tls_handshake", "read", "write", "acquire")
    text = f"    timeouts: {{{', '.join(f'{name}: 720h' for name in names)}}}\n"
    with FaultServer() as server:
        with running(tmp_path, rules(server.url, text)):
            assert requests.get(server.url).status_code == 200
            assert requests.post(server.url, data=b"x" * 3_000_000).status_code == 200
