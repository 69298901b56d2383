"""Deadlines in headers, and when one that is past is not believed."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.policy.deadline_header import ExpiryGuard, allowed_s, format_remaining, parse_remaining_s
from headrace.policy.plan import InboundDeadlinePlan

SECONDS = [
    pytest.param("2", 2.0, id="whole"),
    pytest.param("2.5", 2.5, id="decimal"),
    pytest.param("0.001", 0.001, id="a millisecond"),
    pytest.param("250ms", 0.25, id="ms"),
    pytest.param("0.5ms", 0.0005, id="decimal ms"),
    pytest.param("007", 7.0, id="zeros before"),
    pytest.param("0", 0.0, id="zero"),
    pytest.param("0ms", 0.0, id="zero ms"),
    pytest.param("-0.000", 0.0, id="a rounded overrun"),
    pytest.param("-0", 0.0, id="minus zero"),
    pytest.param("99999999999999999999999999999999", 1e32, id="32 digits"),
    pytest.param("9" * 33, None, id="33 digits"),
    pytest.param("1" * 10_240, None, id="10 KB"),
    pytest.param("-1", None, id="negative"),
    pytest.param("-0.001", None, id="a little negative"),
    pytest.param("nan", None, id="nan"),
    pytest.param("inf", None, id="inf"),
    pytest.param("Infinity", None, id="infinity"),
    pytest.param("1e3", None, id="exponent"),
    pytest.param("+1", None, id="plus"),
    pytest.param("1_000", None, id="underscore"),
    pytest.param("0x10", None, id="hex"),
    pytest.param("1,5", None, id="comma"),
    pytest.param("1,2", None, id="two headers joined"),
    pytest.param(".5", None, id="no digit before the point"),
    pytest.param("5.", None, id="no digit behind the point"),
    pytest.param("5s", None, id="a unit of the file"),
    pytest.param("5S", None, id="a unit of gRPC"),
    pytest.param("5 ms", None, id="space"),
    pytest.param("5\n", None, id="line feed"),
    pytest.param("٣", None, id="another script's digit"),
    pytest.param("", None, id="empty"),
    pytest.param("soon", None, id="word"),
]

GRPC = [
    pytest.param("1H", 3600.0, id="H"),
    pytest.param("2M", 120.0, id="M"),
    pytest.param("3S", 3.0, id="S"),
    pytest.param("4m", 0.004, id="m"),
    pytest.param("5u", 5e-6, id="u"),
    pytest.param("6n", 6e-9, id="n"),
    pytest.param("99999999S", 99_999_999.0, id="8 digits"),
    pytest.param("0m", 0.0, id="zero"),
    pytest.param("100000000S", None, id="9 digits"),
    pytest.param("1.5S", None, id="decimal"),
    pytest.param("-1S", None, id="negative"),
    pytest.param("5", None, id="no unit"),
    pytest.param("5ms", None, id="not a unit of gRPC"),
    pytest.param("5s", None, id="small s"),
    pytest.param("S", None, id="no number"),
    pytest.param("5S\n", None, id="line feed"),
]


@pytest.mark.parametrize(("text", "seconds"), SECONDS)
def test_what_a_header_says_in_seconds(text: str, seconds: float | None) -> None:
    assert parse_remaining_s(text, is_grpc=False) == seconds


@pytest.mark.parametrize(("text", "seconds"), GRPC)
def test_what_grpc_timeout_says(text: str, seconds: float | None) -> None:
    assert parse_remaining_s(text, is_grpc=True) == pytest.approx(seconds)


@given(st.text(max_size=40), st.booleans())
def test_whatever_a_header_says_is_a_time_from_now_or_nothing(text: str, is_grpc: bool) -> None:
    seconds = parse_remaining_s(text, is_grpc=is_grpc)
    assert seconds is None or 0.0 <= seconds <= 1e32


@pytest.mark.parametrize(
    ("left_s", "seconds", "grpc"),
    [
        pytest.param(2.5, "2.500", "2500m", id="plain"),
        pytest.param(1.9999, "1.999", "1999m", id="never rounded up"),
        pytest.param(0.0004, "0.001", "1m", id="never zero"),
        pytest.param(-1.0, "0.001", "1m", id="just over"),
        pytest.param(86_400.0, "86400.000", "86400000m", id="a day"),
        pytest.param(100_000.0, "100000.000", "100000S", id="too many milliseconds for gRPC"),
        pytest.param(1e9, "1000000000.000", "99999999S", id="too many seconds for gRPC"),
    ],
)
def test_what_is_left_is_told_in_the_headers_own_way(left_s: float, seconds: str, grpc: str) -> None:
    assert format_remaining(left_s, is_grpc=False) == seconds
    assert format_remaining(left_s, is_grpc=True) == grpc


@given(st.floats(0.001, 86_400.0), st.booleans())
def test_what_is_told_is_read_back_as_no_more_and_hardly_less(left_s: float, is_grpc: bool) -> None:
    read = parse_remaining_s(format_remaining(left_s, is_grpc=is_grpc), is_grpc=is_grpc)
    assert read is not None
    assert left_s - 0.0010001 <= read <= max(left_s, 0.001) + 1e-9


# --- the guard ----------------------------------------------------------------------------------


def refusals(requests: str, *, seconds_between: float) -> str:
    """What becomes of *requests* (p: past, .: not), as a word of r (refused) and s (served)."""
    guard = ExpiryGuard()
    now, fates = 1000.0, ""
    for one in requests:
        guard.count(now)
        fates += "r" if one == "p" and guard.may_refuse(now) else "s"
        now += seconds_between
    return fates


@pytest.mark.parametrize(
    ("requests", "seconds_between", "fates"),
    [
        pytest.param("p", 1.0, "s", id="one alone is no reason to believe it"),
        pytest.param("....p", 0.1, "ssssr", id="one in five"),
        pytest.param("...p", 0.1, "ssss", id="one in four is too many"),
        pytest.param("pppppppppp", 0.1, "ssssrssssr", id="all of them: a fifth is refused"),
        pytest.param("........pppp", 0.1, "ssssssssrrss", id="two of ten, then no more"),
        pytest.param("....p", 3.0, "sssss", id="five in fifteen seconds are too few"),
    ],
)
def test_a_fifth_of_the_requests_is_refused_at_most(
    requests: str, seconds_between: float, fates: str
) -> None:
    assert refusals(requests, seconds_between=seconds_between) == fates


@given(st.lists(st.tuples(st.floats(0, 4), st.booleans()), max_size=300))
def test_over_the_ten_seconds_before_any_refusal_at_most_a_fifth_was_refused(
    steps: list[tuple[float, bool]],
) -> None:
    guard = ExpiryGuard()
    now = 12_345.6
    past: deque[tuple[float, bool]] = deque()  # exactly the last 10 s
    for step_s, is_past in steps:
        now += step_s**4 / 256  # mostly small, some of seconds
        guard.count(now)
        refused = is_past and guard.may_refuse(now)
        past.append((now, refused))
        while past[0][0] <= now - 10.0:
            past.popleft()
        if refused:
            assert sum(one for _, one in past) <= 0.2 * len(past)


def test_an_exhausted_guard_is_told_from_one_that_has_seen_too_little() -> None:
    guard = ExpiryGuard()
    for _ in range(4):
        guard.count(0.0)
        assert not guard.may_refuse(0.0)
        assert not guard.is_exhausted
    guard.count(0.0)
    assert guard.may_refuse(0.0)
    guard.count(0.0)
    assert not guard.may_refuse(0.0)
    assert guard.is_exhausted


@pytest.mark.parametrize(
    ("plan", "said_s", "allowed"),
    [
        pytest.param(None, None, None, id="nobody says anything"),
        pytest.param(None, 7.0, 7.0, id="without a rule what the caller says holds"),
        pytest.param(
            InboundDeadlinePlan("X-T", 5.0, 60.0), None, 5.0, id="the default, for want of a header"
        ),
        pytest.param(InboundDeadlinePlan("X-T", None, 60.0), None, None, id="no default"),
        pytest.param(
            InboundDeadlinePlan("X-T", 5.0, 60.0), 7.0, 7.0, id="the header, longer than the default"
        ),
        pytest.param(InboundDeadlinePlan("X-T", 5.0, 60.0), 61.0, 60.0, id="cut to the longest"),
    ],
)
def test_how_long_a_caller_waits(
    plan: InboundDeadlinePlan | None, said_s: float | None, allowed: float | None
) -> None:
    assert allowed_s(plan, said_s) == allowed
