"""`retry.retry_after`: what an upstream may say about when to come back, and how much of it is believed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import format_datetime, formatdate
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from urllib3 import HTTPHeaderDict

import headrace
from headrace.engine.retry_after import LONGEST_S, retry_after_s
from headrace.policy.plan import RetryAfterFormat, RetryAfterHeader
from headrace.policy.retry import RetryAllowance
from headrace.runtime.inbound import Inbound, inbound_var
from support.faultserver import Answer, FaultServer
from support.governed import rules, running
from support.surfaces import INSTALL, MANAGER, REQUESTS, URLOPEN
from support.virtual import constant
from support.waiting import is_about

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
NOON = constant(NOW.timestamp())
AUTO = (RetryAfterHeader("Retry-After", "auto"),)


def asked(value: str, *, format: RetryAfterFormat = "auto") -> float | None:
    return retry_after_s(
        HTTPHeaderDict({"retry-after": value}), [RetryAfterHeader("Retry-After", format)], wall_clock=NOON
    )


@pytest.mark.parametrize(
    ("value", "wait_s"),
    [
        pytest.param("7", 7.0, id="seconds"),
        pytest.param(" 7\t", 7.0, id="spaces around"),
        pytest.param("0", 0.0, id="now"),
        pytest.param("1.5", 1.5, id="decimal"),
        pytest.param("007", 7.0, id="leading zeros"),
        pytest.param("Sun, 01 Mar 2026 12:00:09 GMT", 9.0, id="IMF-fixdate"),
        pytest.param("Sunday, 01-Mar-26 12:00:09 GMT", 9.0, id="RFC 850"),
        pytest.param("Sun Mar  1 12:00:09 2026", 9.0, id="asctime is UTC too"),
        pytest.param("Sun, 01 Mar 2026 13:00:09 +0100", 9.0, id="with an offset"),
        pytest.param("Sun, 01 Mar 2026 12:00:09 -0000", 9.0, id="of no known zone"),
        pytest.param("Sun, 01 Mar 2026 11:59:00 GMT", 0.0, id="the time has come"),
        pytest.param("Thu, 01 Jan 1970 00:00:00 GMT", 0.0, id="the epoch"),
        pytest.param("Fri, 31 Dec 9999 23:59:59 GMT", 253402300799 - NOW.timestamp(), id="year 9999"),
        pytest.param("9" * 1_000_000, LONGEST_S, id="a megabyte of digits"),
        pytest.param("5, 11", 11.0, id="several: the most patient one"),
        pytest.param("Sun, 01 Mar 2026 12:00:09 GMT, 5", 9.0, id="a date and seconds"),
        pytest.param("5, Sun, 01 Mar 2026 12:00:09 GMT", 9.0, id="seconds and a date"),
        pytest.param("soon, 5", 5.0, id="garbage and seconds"),
        pytest.param("-5, 5", 5.0, id="negative and seconds"),
    ],
)
def test_seconds_and_the_three_forms_of_a_date_are_understood(value: str, wait_s: float) -> None:
    assert asked(value) == pytest.approx(wait_s)


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "-5",
        "+5",
        "soon",
        "1e3",
        "0x10",
        "inf",
        "nan",
        ".5",
        "5 s",
        "٣",
        "31 Feb 2026 12:00:00 GMT",
        "Sun, 01 Mar 10000 12:00:00 GMT",
        "Sun, 01 Mar 2026 25:61:61 GMT",
        "2026-03-01T12:00:09Z",
        "," * 1_000_000,
        "x" * 1_000_000,
        "31 Dec 9999 23:59:59 -2400",
    ],
    ids=lambda value: value[:30],
)
def test_a_value_that_says_nothing_usable_is_none(value: str) -> None:
    assert asked(value) is None


@settings(deadline=None)  # a loaded machine is not a failure
@given(
    st.one_of(
        st.text(max_size=300),
        st.text(alphabet="0123456789 .,:+-GMTSunMarJa", max_size=300),
        st.datetimes().map(lambda at: format_datetime(at)),
    ),
    st.sampled_from(["auto", "unix_timestamp"]),
    st.floats(allow_nan=False, allow_infinity=False),
)
def test_whatever_an_upstream_says_and_the_clock_shows_the_wait_is_finite_and_not_negative(
    value: str, format: RetryAfterFormat, wall_s: float
) -> None:
    wait_s = retry_after_s(
        {"Retry-After": value}, [RetryAfterHeader("Retry-After", format)], wall_clock=constant(wall_s)
    )

    assert wait_s is None or (0.0 <= wait_s <= LONGEST_S and math.isfinite(wait_s))


@pytest.mark.parametrize(
    ("value", "wait_s"),
    [
        pytest.param(f"{NOW.timestamp() + 4:.0f}", 4.0, id="whole"),
        pytest.param(f"{NOW.timestamp() + 4.25:.2f}", 4.25, id="with a fraction"),
        pytest.param("0", 0.0, id="the epoch"),
        pytest.param("Sun, 01 Mar 2026 12:00:09 GMT", None, id="a date is no timestamp"),
        pytest.param("-1", None, id="negative"),
        pytest.param("9" * 1_000_000, LONGEST_S, id="a megabyte of digits"),
    ],
)
def test_a_unix_timestamp_is_seconds_since_1970(value: str, wait_s: float | None) -> None:
    assert asked(value, format="unix_timestamp") == (None if wait_s is None else pytest.approx(wait_s))


def test_the_first_header_with_a_usable_value_counts() -> None:
    wanted = [RetryAfterHeader("X-Reset", "unix_timestamp"), *AUTO]

    def both(reset: str) -> float | None:
        return retry_after_s({"X-Reset": reset, "Retry-After": "7"}, wanted, wall_clock=NOON)

    assert both(f"{NOW.timestamp() + 3:.0f}") == pytest.approx(3.0)
    assert both("tomorrow") == 7.0
    assert retry_after_s({"Retry-After": "7"}, wanted, wall_clock=NOON) == 7.0
    assert retry_after_s({"Retry-After": "7"}, (), wall_clock=NOON) is None
    assert retry_after_s({}, wanted, wall_clock=NOON) is None


# On real sockets, all surfaces.

Get = Callable[[str], Any]


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture(params=[REQUESTS, MANAGER, URLOPEN], ids=repr)
def get(request: pytest.FixtureRequest) -> Get:
    return lambda url: request.param(headrace.current(), url)


def governed(url: str, retry: str, *, deadline: str = "15s") -> str:
    body = f"    timeouts: {{deadline: {deadline}}}\n    retry: {retry}\n"
    return rules(url, body, more=INSTALL)


def unavailable(*headers: tuple[str, str]) -> Answer:
    return Answer(503, headers=headers)


def timed(get: Get, url: str) -> tuple[Any, float]:
    """The answer, and the seconds it took."""
    began = time.monotonic()
    return get(url), time.monotonic() - began


def pauses_of(answer: Any) -> list[float]:
    """Seconds between the end of each attempt and the start of the next."""
    attempts = answer.headrace.attempts
    ends = [one.started_s + one.wait_s + one.duration_s for one in attempts]
    return [later.started_s - end for end, later in zip(ends, attempts[1:], strict=False)]


def test_what_the_upstream_asks_is_waited_before_the_first_retry(
    tmp_path: Path, server: FaultServer, get: Get
) -> None:
    """failures.md 11."""
    server.next(unavailable(("Retry-After", "0.3")))
    with running(tmp_path, governed(server.url, "{backoff: {base: 1ms, throttled: 1ms}}")):
        answer = get(server.url)

    assert (answer.headrace.reason, len(answer.headrace.attempts)) == ("success", 2)
    assert 0.3 <= pauses_of(answer)[0] < 3.0


def test_blanks_behind_what_the_upstream_asks_are_no_part_of_it(
    tmp_path: Path, server: FaultServer, get: Get
) -> None:
    """failures.md 58. http.client leaves them in."""
    server.next(unavailable(("Retry-After", "0.3 \t")))
    with running(tmp_path, governed(server.url, "{backoff: {base: 1ms, throttled: 1ms}}")):
        answer = get(server.url)

    assert (answer.headrace.reason, len(answer.headrace.attempts)) == ("success", 2)
    assert 0.3 <= pauses_of(answer)[0] < 3.0


@pytest.mark.parametrize("jitter", ["full", "equal", "additive", "decorrelated", "none"])
def test_without_a_word_of_the_upstream_the_first_retry_waits_for_our_own_pause(
    tmp_path: Path, server: FaultServer, get: Get, jitter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """failures.md 11."""
    monkeypatch.setattr("random.random", constant(0.5))
    expected_s = {"full": 0.1, "equal": 0.15, "additive": 0.3, "decorrelated": 0.4, "none": 0.2}[jitter]
    server.next(unavailable())
    with running(tmp_path, governed(server.url, f"{{backoff: {{base: 200ms, jitter: {jitter}}}}}")):
        answer = get(server.url)

    assert is_about(pauses_of(answer)[0], expected_s)


@pytest.mark.parametrize(
    ("asks", "retry_after_s"),
    [
        pytest.param(("Retry-After", "3600"), 3600.0, id="an hour"),
        pytest.param(("Retry-After", "Fri, 31 Dec 9999 23:59:59 GMT"), None, id="year 9999"),
        pytest.param(("Retry-After", "9" * 60_000), LONGEST_S, id="as many digits as a line may have"),
        pytest.param(("X-RateLimit-Reset", "99999999999"), None, id="a timestamp far away"),
    ],
)
def test_more_patience_than_max_ends_the_call_at_once_with_the_wish_on_record(
    tmp_path: Path, server: FaultServer, get: Get, asks: tuple[str, str], retry_after_s: float | None
) -> None:
    """failures.md 11."""
    server.always(unavailable(asks))
    headers = "[{name: Retry-After}, {name: X-RateLimit-Reset, format: unix_timestamp}]"
    with running(tmp_path, governed(server.url, f"{{retry_after: {{headers: {headers}, max: 10s}}}}")):
        answer, took_s = timed(get, server.url)

    assert took_s < 10.0
    assert (answer.status_code if isinstance(answer, requests.Response) else answer.status) == 503
    record = answer.headrace
    assert (record.reason, len(record.attempts)) == ("retry_after", 1)
    assert record.retry_after_s > 10.0
    if retry_after_s is not None:
        assert record.retry_after_s == retry_after_s


def test_a_wait_that_does_not_fit_the_deadline_is_not_begun(
    tmp_path: Path, server: FaultServer, get: Get
) -> None:
    """failures.md 11."""
    server.always(unavailable(("Retry-After", "20")))
    with running(tmp_path, governed(server.url, "{max_attempts: 2}", deadline="15s")):
        answer, took_s = timed(get, server.url)

    assert took_s < 10.0
    assert (answer.headrace.reason, answer.headrace.retry_after_s) == ("deadline", 20.0)
    assert server.first_lines == 1


def test_a_wait_past_the_deadline_of_the_inbound_request_is_not_begun(
    tmp_path: Path, server: FaultServer, get: Get
) -> None:
    """failures.md 11."""
    server.always(unavailable(("Retry-After", "20")))
    with running(tmp_path, governed(server.url, "{max_attempts: 2}", deadline="60s")) as hr:
        allowance = RetryAllowance([None] * 10)
        inbound = Inbound(hr, hr.snapshot, "of-the-caller", allowance, deadline_at=time.monotonic() + 15.0)
        token = inbound_var.set(inbound)
        try:
            answer, took_s = timed(get, server.url)
        finally:
            inbound_var.reset(token)

    assert took_s < 10.0
    assert (answer.headrace.reason, answer.headrace.retry_after_s) == ("deadline", 20.0)
    assert len(allowance) == 10  # nothing was retried, so nothing is used up


@pytest.mark.parametrize("value", ["-5", "soon", "Sun, 99 Mar 2026", "٣".encode().decode("latin-1"), "1e9"])
def test_garbage_is_as_if_nothing_had_been_said(
    tmp_path: Path, server: FaultServer, get: Get, value: str
) -> None:
    server.next(unavailable(("Retry-After", value)))
    with running(tmp_path, governed(server.url, "{backoff: {base: 1ms, throttled: 1ms}}")):
        answer = get(server.url)

    assert (answer.headrace.reason, answer.headrace.retry_after_s) == ("success", None)
    assert pauses_of(answer)[0] < 5.0


def test_of_two_header_lines_the_more_patient_one_counts(
    tmp_path: Path, server: FaultServer, get: Get
) -> None:
    server.always(unavailable(("Retry-After", "1"), ("Retry-After", "3600")))
    with running(tmp_path, governed(server.url, "{}")):
        assert get(server.url).headrace.retry_after_s == 3600.0


@pytest.mark.parametrize("jumped_s", [-1e7, 1e7, -1e12, 1e12], ids=lambda jump: f"{jump:g}")
def test_a_wall_clock_that_has_jumped_costs_no_more_than_max(
    tmp_path: Path, server: FaultServer, get: Get, monkeypatch: pytest.MonkeyPatch, jumped_s: float
) -> None:
    """failures.md 8."""
    server.always(unavailable(("Retry-After", formatdate(time.time() + 1, usegmt=True))))
    jumped = constant(time.time() + jumped_s)
    with running(
        tmp_path,
        governed(
            server.url, "{max_attempts: 2, backoff: {base: 1ms, throttled: 1ms}, retry_after: {max: 12s}}"
        ),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(headrace.engine.call.time, "time", jumped)
            answer, took_s = timed(get, server.url)

    assert took_s < 12.0
    # Set back, it makes the wish a long one; set forward, a thing of the past.
    assert answer.headrace.reason == ("retry_after" if jumped_s < 0 else "attempts")


@pytest.mark.parametrize("value", ["Sun, 01 Mar 2026 12:05:09 GMT", "Sun Mar  1 12:05:09 2026"])
@pytest.mark.parametrize(
    ("date", "wait_s"),
    [
        pytest.param("Sun, 01 Mar 2026 12:05:00 GMT", 9.0, id="a clock ahead of ours"),
        pytest.param("Sun, 01 Mar 2026 12:05:30 GMT", 0.0, id="the time has come"),
        pytest.param("Sunday, 01-Mar-26 12:05:00 GMT", 9.0, id="another form of date"),
        pytest.param("yesterday", 309.0, id="no date: by our clock"),
        pytest.param("", 309.0, id="empty: by our clock"),
        pytest.param(None, 309.0, id="none: by our clock"),
    ],
)
def test_a_date_is_measured_against_the_answers_own(value: str, date: str | None, wait_s: float) -> None:
    """failures.md 72."""
    headers = HTTPHeaderDict({"Retry-After": value})
    if date is not None:
        headers["Date"] = date
    assert retry_after_s(headers, AUTO, wall_clock=NOON) == wait_s


def test_seconds_are_seconds_whatever_the_date() -> None:
    """failures.md 72."""
    headers = HTTPHeaderDict({"Retry-After": "7", "Date": "Sun, 01 Mar 2026 12:05:00 GMT"})
    assert retry_after_s(headers, AUTO, wall_clock=NOON) == 7.0


@pytest.mark.parametrize("off_s", [-300.0, 300.0, 1e8], ids=["behind", "ahead", "years ahead"])
def test_a_server_whose_clock_is_off_is_waited_for_as_long_as_it_asks(
    tmp_path: Path, server: FaultServer, get: Get, off_s: float
) -> None:
    """failures.md 72."""
    there = time.time() + off_s
    dated = ("Date", formatdate(there, usegmt=True)), ("Retry-After", formatdate(there + 2, usegmt=True))
    server.next(unavailable(*dated))
    with running(tmp_path, governed(server.url, "{max_attempts: 2, backoff: {base: 1ms}}")):
        answer = get(server.url)
    assert [one.outcome for one in answer.headrace.attempts] == ["5xx", "2xx"]
    assert 1.9 <= pauses_of(answer)[0] < 20.0
