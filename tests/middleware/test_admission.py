"""The one decision of both middlewares, asked without either: no server, no clock, no random id."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.middleware.admission import Answer, admit
from headrace.middleware.problems import too_late
from headrace.policy.deadline_header import allowed_s
from headrace.policy.plan import InboundDeadlinePlan, RequestIdPlan, ServicePlan
from headrace.policy.retry import RetryAllowance
from headrace.policy.trace_context import Trace
from headrace.runtime.inbound import NO_STREAMS, Inbound, inbound_var
from headrace.runtime.service import ServiceCounters
from support.gateways import (
    CONFIGURATION,
    AsgiGateway,
    FakeHeadrace,
    Gateway,
    Headers,
    Seen,
    WsgiGateway,
)
from support.plans import upstream_plan

CALLERS_TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACE: Trace = (("traceparent", f"00-{CALLERS_TRACE_ID}-00f067aa0ba902b7-01"), ("tracestate", "a=1"))
SPANS_TRACE_ID = "5" * 32
NOW = 1000.0


class Service:
    """What an admission counts, noted in order; refuses what is past if told so."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.refuses = refuses
        self.noted: list[Any] = []

    def deadline_came(self, now: float) -> None:
        """Note it."""
        self.noted.append(("came", now))

    def deadline_unreadable(self) -> None:
        """Note it."""
        self.noted.append("unreadable")

    def refuses_past_deadline(self, header: str, now: float) -> bool:
        """Note it, and answer as told."""
        self.noted.append(("past", header, now))
        return self.refuses


class Span:
    """The tracing context around a request; *trace_id* None: nothing but baggage."""

    def __init__(self, trace_id: str | None) -> None:
        self._trace_id = trace_id
        self.met: list[Inbound] = []

    def has_context(self) -> bool:
        """There is one."""
        return True

    def trace_id(self) -> str | None:
        """Its id."""
        return self._trace_id

    def meet(self, inbound: Inbound) -> None:
        """Note it."""
        self.met.append(inbound)


class NoSpan(Span):
    """Tracing is on, and nothing is around the request: it must be asked nothing more."""

    def has_context(self) -> bool:
        """There is none."""
        return False

    def trace_id(self) -> str | None:
        """Not to be called."""
        raise AssertionError("there is no context")

    def meet(self, inbound: Inbound) -> None:
        """Not to be called."""
        raise AssertionError("there is no context")


class Ids:
    """Makes ids, numbered."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> str:
        self.made += 1
        return f"made-{self.made}"


def plan_with(
    *,
    accept: bool = True,
    is_trace_id: bool = False,
    deadline: InboundDeadlinePlan | None = None,
    n_retries: int = 10,
) -> ServicePlan:
    return ServicePlan(
        request_id=RequestIdPlan(header="X-Request-ID", accept=accept, is_trace_id=is_trace_id),
        max_retries_per_request=n_retries,
        error_responses="propagate",
        deadline=deadline,
    )


class Asked:
    """One admission, with everything that it was given."""

    def __init__(
        self,
        plan: ServicePlan,
        *,
        now: float = NOW,
        given_id: str | None = "given",
        trace: Trace = (),
        deadlines: tuple[str, ...] = (),
        tracing: Span | None = None,
        refuses: bool = False,
    ) -> None:
        self.service = Service(refuses=refuses)
        self.headrace: Any = SimpleNamespace(service=self.service)
        self.snapshot: Any = SimpleNamespace(configuration=SimpleNamespace(service=plan), tracing=tracing)
        self.ids = Ids()
        self.result = admit(self.headrace, self.snapshot, now, given_id, trace, deadlines, new_id=self.ids)


# --- the id ---------------------------------------------------------------------------------------


SPANS = [
    pytest.param(lambda: None, None, id="tracing off"),
    pytest.param(lambda: NoSpan(SPANS_TRACE_ID), None, id="no context"),
    pytest.param(lambda: Span(None), None, id="a context without a span"),
    pytest.param(lambda: Span(SPANS_TRACE_ID), SPANS_TRACE_ID, id="a span"),
]


@pytest.mark.parametrize(("make_span", "spans_id"), SPANS)
@pytest.mark.parametrize(
    ("is_trace_id", "accept", "given_id", "trace"),
    list(product([False, True], [False, True], [None, "", "given"], [(), TRACE])),
)
def test_the_first_id_that_the_file_allows_is_taken_and_only_without_any_is_one_made(
    is_trace_id: bool, accept: bool, given_id: str | None, trace: Trace, make_span: Any, spans_id: str | None
) -> None:
    """The span's trace goes before the caller's, and a trace before an id, where the id is to be the trace's."""
    candidates = [
        spans_id if is_trace_id else None,
        CALLERS_TRACE_ID if is_trace_id and accept and trace else None,
        given_id,
    ]
    expected = next(filter(None, candidates), "made-1")

    asked = Asked(
        plan_with(accept=accept, is_trace_id=is_trace_id), given_id=given_id, trace=trace, tracing=make_span()
    )

    assert asked.result.request_id == expected
    assert asked.ids.made == (expected == "made-1")


def test_the_span_around_an_admitted_request_meets_it_and_one_around_a_refused_does_not() -> None:
    admitted = Span(None)
    assert admitted.met == [Asked(plan_with(), tracing=admitted).result]
    refused = Span(None)
    late = plan_with(deadline=InboundDeadlinePlan(header="X-Timeout", default_s=None, max_s=60.0))
    assert isinstance(Asked(late, tracing=refused, deadlines=("0",), refuses=True).result, Answer)
    assert refused.met == []


# --- the deadline -----------------------------------------------------------------------------------

PLAIN, GRPC = "X-Request-Timeout", "Grpc-Timeout"
CAME, UNREADABLE = ("came", NOW), "unreadable"


def past(header: str) -> tuple[str, str, float]:
    return "past", header, NOW


@pytest.mark.parametrize("default_s", [None, 30.0])
@pytest.mark.parametrize(
    ("header", "deadlines", "refuses", "expected", "noted"),
    [
        pytest.param(None, ("1",), True, "default", [], id="no header is read"),
        pytest.param(PLAIN, (), True, "default", [CAME], id="absent"),
        pytest.param(PLAIN, ("2.5",), True, 2.5, [CAME], id="seconds"),
        pytest.param(PLAIN, ("2500ms",), True, 2.5, [CAME], id="milliseconds"),
        pytest.param(PLAIN, ("61",), True, 60.0, [CAME], id="cut to max"),
        pytest.param(PLAIN, ("3S",), True, "default", [CAME, UNREADABLE], id="gRPC's units elsewhere"),
        pytest.param(PLAIN, ("-1",), True, "default", [CAME, UNREADABLE], id="negative"),
        pytest.param(PLAIN, ("1", "1"), True, "default", [CAME, UNREADABLE], id="two"),
        pytest.param(PLAIN, ("",), True, "default", [CAME, UNREADABLE], id="empty"),
        pytest.param(GRPC, ("3S",), True, 3.0, [CAME], id="gRPC"),
        pytest.param(GRPC, ("3",), True, "default", [CAME, UNREADABLE], id="gRPC without a unit"),
        pytest.param(PLAIN, ("0",), True, "refused", [CAME, past(PLAIN)], id="past"),
        pytest.param(PLAIN, ("-0.000",), True, "refused", [CAME, past(PLAIN)], id="past, rounded"),
        pytest.param(GRPC, ("0n",), True, "refused", [CAME, past(GRPC)], id="past, gRPC"),
        pytest.param(PLAIN, ("0",), False, "default", [CAME, past(PLAIN)], id="past, and not believed"),
    ],
)
def test_what_becomes_of_a_request_by_its_deadline(
    header: str | None,
    deadlines: tuple[str, ...],
    refuses: bool,
    expected: float | str,
    noted: list[Any],
    default_s: float | None,
) -> None:
    plan = plan_with(deadline=InboundDeadlinePlan(header=header, default_s=default_s, max_s=60.0))

    asked = Asked(plan, deadlines=deadlines, refuses=refuses)

    assert asked.service.noted == noted
    if expected == "refused":
        assert asked.result == Answer("given", too_late("given"))
        return
    assert isinstance(asked.result, Inbound)
    allowed = default_s if expected == "default" else expected
    assert asked.result.deadline_at == (None if allowed is None else NOW + float(allowed))


def test_without_a_rule_nothing_is_read_counted_or_refused() -> None:
    asked = Asked(plan_with(deadline=None), deadlines=("0",), refuses=True)
    assert isinstance(asked.result, Inbound)
    assert asked.result.deadline_at is None
    assert asked.service.noted == []


def test_what_becomes_of_past_deadlines_is_counted_and_said_once_for_each_header(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "headrace")
    service = ServiceCounters()
    verdicts = []
    for header in ("X-A", "X-B", "X-A"):
        for _ in range(10):
            service.deadline_came(NOW)
            verdicts.append(service.refuses_past_deadline(header, NOW))
    assert verdicts.count(True) == 6
    assert service.inbound_deadlines == {"refused": 6, "excused": 24}
    said = [record.getMessage() for record in caplog.records]
    assert (
        sorted(line.partition(":")[0] for line in said)
        == ["deadline.distrusted"] * 2 + ["deadline.refused"] * 2
    )
    assert [sum(header in line for line in said) for header in ("X-A", "X-B")] == [2, 2]


# --- all of it ------------------------------------------------------------------------------------

SAID: dict[str, float | None] = {
    "2.5": 2.5,
    "250ms": 0.25,
    "90": 90.0,
    "0": 0.0,
    "-0": 0.0,
    "soon": None,
    "": None,
}

deadline_plans = st.none() | st.builds(
    InboundDeadlinePlan,
    header=st.none() | st.just(PLAIN),
    default_s=st.none() | st.floats(0.001, 100.0),
    max_s=st.floats(0.001, 100.0),
)
service_plans = st.builds(
    plan_with,
    accept=st.booleans(),
    is_trace_id=st.booleans(),
    deadline=deadline_plans,
    n_retries=st.integers(0, 20),
)


@given(
    plan=service_plans,
    now=st.floats(0.0, 1e9),
    given_id=st.sampled_from([None, "", "given"]),
    trace=st.sampled_from([(), TRACE[:1], TRACE]),
    deadlines=st.lists(st.sampled_from(sorted(SAID)), max_size=2),
    spans_id=st.sampled_from([None, SPANS_TRACE_ID]),
    has_span=st.booleans(),
    refuses=st.booleans(),
)
def test_a_request_is_refused_for_one_reason_and_otherwise_its_inbound_is_complete(
    plan: ServicePlan,
    now: float,
    given_id: str | None,
    trace: Trace,
    deadlines: list[str],
    spans_id: str | None,
    has_span: bool,
    refuses: bool,
) -> None:
    """Complete: equal to one made by its constructor, so that no field is forgotten and none is made up."""
    asked = Asked(
        plan,
        now=now,
        given_id=given_id,
        trace=trace,
        deadlines=tuple(deadlines),
        tracing=Span(spans_id) if has_span else None,
        refuses=refuses,
    )

    is_read = plan.deadline is not None and plan.deadline.header is not None
    said_s = SAID[deadlines[0]] if is_read and len(deadlines) == 1 else None
    request_id = asked.result.request_id
    assert request_id in (given_id, CALLERS_TRACE_ID, SPANS_TRACE_ID, "made-1")
    if said_s == 0.0 and refuses:
        assert asked.result == Answer(request_id, too_late(request_id))
        return
    allowed = None if plan.deadline is None else allowed_s(plan.deadline, said_s or None)
    assert asked.result == Inbound(
        asked.headrace,
        asked.snapshot,
        request_id,
        RetryAllowance([None] * plan.max_retries_per_request),
        None if allowed is None else now + allowed,
        trace,
    )


def test_two_requests_share_nothing_that_changes() -> None:
    plan = plan_with(n_retries=2)
    one, two = Asked(plan).result, Asked(plan).result
    assert isinstance(one, Inbound)
    assert isinstance(two, Inbound)
    assert one.allowance.take()
    assert len(two.allowance) == 2
    token: Any = object()
    one.cover(token, Any)
    assert (list(one.streams), list(two.streams), len(NO_STREAMS)) == ([token], [], 0)


# --- both scans ---------------------------------------------------------------------------------------

PARENT = TRACE[0][1]
values = st.text(st.characters(max_codepoint=255), max_size=12)


def padded(*some: str) -> st.SearchStrategy[str]:
    """One of *some*, perhaps with blanks around it, or anything."""
    blanks = st.text(" \t", max_size=2)
    return st.builds("{}{}{}".format, blanks, st.sampled_from(some), blanks) | values


@given(
    headers=st.fixed_dictionaries(
        {},
        optional={
            "X-Request-ID": padded("an-id", "x" * 200, "x" * 201, "two words"),
            "traceparent": padded(PARENT, PARENT.upper(), f"{PARENT}, {PARENT}"),
            "tracestate": padded("a=1", "a=1, b=2", "nonsense"),
            PLAIN: padded("5", "2500ms", "0", "5, 5", "soon"),
            "X-Other": values,
        },
    ),
    is_trace_id=st.booleans(),
    accept=st.booleans(),
    passes_trace=st.booleans(),
)
def test_both_scans_find_the_same(
    headers: dict[str, str], is_trace_id: bool, accept: bool, passes_trace: bool
) -> None:
    upstream = upstream_plan()
    configuration = replace(
        CONFIGURATION,
        service=plan_with(
            accept=accept,
            is_trace_id=is_trace_id,
            deadline=InboundDeadlinePlan(header=PLAIN, default_s=None, max_s=60.0),
        ),
        upstreams={
            "billing": replace(upstream, propagate=replace(upstream.propagate, traceparent=passes_trace))
        },
    )
    found = []
    for gateway in (AsgiGateway, WsgiGateway):
        seen: list[Inbound] = []

        def handler(_: Seen, seen: list[Inbound] = seen) -> tuple[int, Headers, Iterator[bytes]]:
            inbound = inbound_var.get()
            assert inbound is not None
            seen.append(inbound)
            return 200, [], iter([b"fine"])

        headrace = FakeHeadrace(configuration)
        serving: Gateway = gateway(handler, headrace)
        (answered,) = serving.request(headers).all("X-Request-ID")
        (inbound,) = seen
        assert answered == inbound.request_id
        is_theirs = any(answered in value for value in headers.values())
        found.append(
            (
                answered if is_theirs else None,
                inbound.trace,
                inbound.deadline_at is None,
                headrace.service.inbound_deadlines,
            )
        )
    assert found[0] == found[1]


def test_the_allowance_is_made_by_the_first_who_asks_and_is_one_for_all() -> None:
    """Nearly every request ends without a retry, and most without a call."""
    for _ in range(50):
        inbound = Asked(plan_with(n_retries=20)).result
        assert isinstance(inbound, Inbound)
        with pytest.raises(AttributeError):
            object.__getattribute__(inbound, "allowance")
        start = threading.Barrier(8)

        def look(inbound: Inbound = inbound, start: threading.Barrier = start) -> bool:
            start.wait(20)
            return inbound.allowance.take()

        with ThreadPoolExecutor(8) as pool:
            taken = [pool.submit(look) for _ in range(8)]
        assert all(one.result() for one in taken)
        assert len(inbound.allowance) == 12
