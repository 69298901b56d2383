"""W3C Trace Context: what of a caller's headers is passed on."""

from __future__ import annotations

import pytest

from headrace.policy.trace_context import joined_tracestate, trace_id_of

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


@pytest.mark.parametrize(
    "traceparent",
    [
        pytest.param(f"00-{TRACE}-{PARENT}-01", id="of the specification"),
        pytest.param(f"00-{TRACE}-{PARENT}-ff", id="flags of the future"),
        pytest.param(f"cc-{TRACE}-{PARENT}-01", id="version of the future"),
        pytest.param(f"cc-{TRACE}-{PARENT}-01-what-the-future-will-be-like", id="longer in the future"),
        pytest.param(f"01-{TRACE}-{PARENT}-01-", id="nothing behind the dash"),
    ],
)
def test_a_valid_traceparent_has_its_trace_id(traceparent: str) -> None:
    assert trace_id_of(traceparent) == TRACE


@pytest.mark.parametrize(
    "traceparent",
    [
        pytest.param("", id="empty"),
        pytest.param(f"00-{TRACE.upper()}-{PARENT}-01", id="capitals"),
        pytest.param(f"00-{'0' * 32}-{PARENT}-01", id="trace id of zeros"),
        pytest.param(f"00-{TRACE}-{'0' * 16}-01", id="parent id of zeros"),
        pytest.param(f"ff-{TRACE}-{PARENT}-01", id="version ff"),
        pytest.param(f"00-{TRACE}-{PARENT}-01-more", id="version 00 with more"),
        pytest.param(f"cc-{TRACE}-{PARENT}-01.more", id="no dash before more"),
        pytest.param(f"00-{TRACE}-{PARENT}", id="no flags"),
        pytest.param(f"00-{TRACE[1:]}-{PARENT}-01", id="short trace id"),
        pytest.param(f"00-{TRACE}-{PARENT}-0g", id="not hex"),
        pytest.param(f"00-{TRACE}-{PARENT}-01,00-{TRACE}-{PARENT}-01", id="two, joined"),
        pytest.param(f"00-{TRACE}-{PARENT}-01\r\nX-Evil: 1", id="CR LF"),
        pytest.param(f"00-{TRACE}-{PARENT}-01\n", id="LF"),
        pytest.param(f"cc-{TRACE}-{PARENT}-01-a\r\nX-Evil: 1", id="CR LF in the future"),
        pytest.param(f"cc-{TRACE}-{PARENT}-01-{'a' * 10_240}", id="10 KB of the future"),
    ],
)
def test_an_invalid_traceparent_has_none(traceparent: str) -> None:
    assert trace_id_of(traceparent) is None


LONG = "long=" + "x" * 200


@pytest.mark.parametrize(
    ("values", "joined"),
    [
        pytest.param(["rojo=00f067aa0ba902b7"], "rojo=00f067aa0ba902b7", id="one"),
        pytest.param(["a=1,b=2", "c=3"], "a=1,b=2,c=3", id="two headers"),
        pytest.param(["a=1 , \tb=2", ""], "a=1,b=2", id="spaces and empty ones"),
        pytest.param(["1t@v=a b"], "1t@v=a b", id="a tenant, and a space in the value"),
        pytest.param([], None, id="none"),
        pytest.param([" , "], None, id="nothing in it"),
        pytest.param(["a=1,nonsense"], None, id="a member that is none"),
        pytest.param(["A=1"], None, id="capital key"),
        pytest.param(["a=1\r\nX-Evil: 2"], None, id="CR LF"),
        pytest.param(["a=\xe9"], None, id="not ASCII"),
        pytest.param(
            [",".join(f"k{n}=v" for n in range(32))], ",".join(f"k{n}=v" for n in range(32)), id="32"
        ),
        pytest.param([",".join(f"k{n}=v" for n in range(33))], None, id="33"),
        pytest.param(["a=" + "x" * 10_240], None, id="10 KB"),
    ],
)
def test_tracestates_become_one_or_are_dropped_as_a_whole(values: list[str], joined: str | None) -> None:
    assert joined_tracestate(values) == joined


def test_a_long_tracestate_loses_its_long_members_first() -> None:
    assert joined_tracestate([f"a=1,{LONG},b=2,{LONG},c=3,{LONG}"]) == "a=1,b=2,c=3"


def test_a_tracestate_that_is_still_too_long_loses_its_last_members_whole() -> None:
    members = [f"k{n:02}=" + "v" * 96 for n in range(8)]  # 100 bytes each
    assert joined_tracestate([",".join(members)]) == ",".join(members[:5])


def test_512_bytes_are_kept() -> None:
    text = "a=" + "x" * 253 + ",b=" + "y" * 254
    assert len(text) == 512
    assert joined_tracestate([text]) == text
    assert joined_tracestate([text + "z"]) is None  # both members are long
