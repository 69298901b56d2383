"""Events reach stdlib logging, and only as far as the application lets them."""

from __future__ import annotations

import json
import logging
import logging.config
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from headrace.config.check.problems import Problem, render_problems
from headrace.context import inbound_var
from headrace.observe import events
from headrace.observe.logs import RequestIdFilter, emit

OPENED = events.CircuitChanged(
    upstream="billing",
    from_state="closed",
    to_state="open",
    reason="failure_rate",
    failure_rate=0.62,
    calls=40,
    failures=25,
    consecutive_failures=3,
    threshold=0.5,
    open_for_s=5.2,
)

EVERY_EVENT: list[events.Event] = [
    events.LeaseLeaked(upstream="billing", call_site="app.py:7"),
    events.LeaseHeld(upstream="billing", call_site="app.py:7", held_s=31.04),
    events.HeadraceStarted(files=("/etc/u.yaml",), digest="abc123", upstreams=1, mode_override="observe"),
    events.HeadraceStopped(files=("/etc/u.yaml",)),
    events.ModeOverridden(mode="off"),
    events.ConfigApplied(
        files=("/etc/u.yaml",),
        digest="abc123",
        added=("a",),
        removed=(),
        changed=tuple(f"u{n}" for n in range(12)),
        unchanged=3,
        duration_s=0.012,
    ),
    events.ConfigRejected(
        files=("/etc/u.yaml",),
        problems="u.yaml:3:5: upstreams.a\n    no such key\nu.yaml:9:1: upstreams.b\n    100 % wrong",
        problem_count=2,
        digest_in_force="abc123",
        loaded_at="14:02:11",
    ),
    events.ConfigHeld(files=("/etc/u.yaml",), removed=("a", "b", "c"), upstreams=4, hold_s=5.0),
    OPENED,
    events.CircuitChanged(
        upstream="billing", from_state="open", to_state="half_open", reason="open_for elapsed"
    ),
    events.UpstreamReset(upstream="billing", state="half_open", tokens=0.0),
    events.PoolResized(
        upstream="billing",
        from_size=10,
        to_size=14,
        reason="waiting",
        waiting=12,
        peak_inuse=10,
        rate_rps=40.0,
        baseline_rps=20.7,
    ),
    events.CallUngoverned(reason="tls", upstream="billing", call_site="app.py:12"),
    events.RetriesDelegated(upstream="billing", call_site="app.py:12"),
    events.PredicateFailed(upstream="billing", function="shop.billing:is_error", error="KeyError"),
    events.RetriesWithheld(
        upstream="billing",
        method="POST",
        reason="method",
        why="not retried: POST may have arrived",
        call_site="app.py:12",
    ),
    events.CallOnEventLoop(upstream="billing", wanted="wait for a connection", call_site="app.py:12"),
    events.PoolFault(upstream="billing", error="TypeError: no", raised_at="lease.py:1"),
    events.PoolSuspect(upstream="billing", misses=3, closed=2),
    events.WatchDegraded(reason="inotify: too many watches"),
    events.DeadlineRefused(header="X-Request-Timeout"),
    events.DeadlinesDistrusted(header="X-Request-Timeout"),
    events.ErrorMapped(upstream="billing", status=503, error="CircuitOpenError", request_id="r-1"),
    events.TlsVerificationDisabled(upstream="billing"),
    events.ConfigWarning(text="HEADRACE_MOED is not a variable of headrace; did you mean HEADRACE_MODE?"),
]


@pytest.mark.parametrize("event", EVERY_EVENT, ids=lambda event: event.name)
def test_an_event_is_one_readable_line_and_its_fields_are_on_the_record(
    event: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="headrace"):
        emit(event)

    (record,) = caplog.records
    assert record.getMessage() == f"{event.name}: {event.line}"
    assert "\n" not in record.getMessage()
    assert (record.name, record.levelno) == ("headrace", event.level)
    assert vars(record)["event"] == event.name
    for field in fields(event):
        value = getattr(event, field.name)
        assert vars(record)[field.name] == value
        json.dumps(value)  # plain: any pipeline can keep it


def test_every_event_type_is_exercised_here() -> None:
    types = {
        value
        for value in vars(events).values()
        if isinstance(value, type) and value.__module__ == events.__name__
    }

    assert types - {events.Event} == {type(event) for event in EVERY_EVENT}


@pytest.mark.parametrize(
    ("to_state", "name", "level"),
    [
        pytest.param("open", "breaker.opened", logging.WARNING, id="opened"),
        pytest.param("half_open", "breaker.half_open", logging.INFO, id="half-open"),
        pytest.param("closed", "breaker.closed", logging.INFO, id="closed"),
    ],
)
def test_a_circuit_event_is_named_by_the_state_it_leads_to(to_state: Any, name: str, level: int) -> None:
    event = events.CircuitChanged(upstream="billing", from_state="half_open", to_state=to_state, reason="…")

    assert (event.name, event.level) == (name, level)


def test_an_opened_circuit_says_the_numbers_that_caused_it() -> None:
    assert OPENED.line == (
        'upstream "billing": circuit open for 5.2 s, was closed: failure_rate '
        "(failure rate 0.62 over 40 calls, 3 failed in a row, threshold 0.5)"
    )


def test_in_one_line_too_it_can_be_seen_where_the_fix_begins() -> None:
    problems = [
        Problem("u.yaml", 3, 5, "upstreams.a", "no such key", "write: retry:"),
        Problem("u.yaml", 9, 1, "upstreams.b", "names nothing"),
    ]

    line = events.ConfigWarning(text=render_problems(problems)).line

    assert line == (
        "u.yaml:3:5: upstreams.a no such key; write: retry: | u.yaml:9:1: upstreams.b names nothing | 2 problems."
    )


def test_all_problems_of_a_rejected_file_are_in_the_line_and_in_full_on_the_record(
    caplog: pytest.LogCaptureFixture,
) -> None:
    event = next(event for event in EVERY_EVENT if isinstance(event, events.ConfigRejected))
    emit(event)

    assert "u.yaml:3:5: upstreams.a no such key | u.yaml:9:1: upstreams.b 100 % wrong" in caplog.text
    assert vars(caplog.records[0])["problems"] == event.problems


def test_a_record_names_the_line_that_emitted_it(caplog: pytest.LogCaptureFixture) -> None:
    emit(events.WatchDegraded(reason="a test"))

    assert (caplog.records[0].filename, caplog.records[0].funcName) == (
        "test_logs.py",
        "test_a_record_names_the_line_that_emitted_it",
    )


def test_a_disabled_level_renders_nothing() -> None:
    class Unrenderable:
        name = "test.unrenderable"
        level = logging.DEBUG

        @property
        def line(self) -> str:
            raise AssertionError("rendered although DEBUG is disabled")

    logger = logging.getLogger("headrace")
    before = logger.level
    logger.setLevel(logging.INFO)
    try:
        emit(Unrenderable())
    finally:
        logger.setLevel(before)


def test_the_applications_structlog_configuration_is_neither_touched_nor_obeyed(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> Any:
        raise AssertionError("a processor of the application ran")

    structlog.configure(
        processors=[refuse], wrapper_class=structlog.BoundLogger, cache_logger_on_first_use=False
    )
    try:
        before = structlog.get_config()
        emit(OPENED)
        assert structlog.get_config() == before
    finally:
        structlog.reset_defaults()

    assert "breaker.opened" in caplog.text
    assert capsys.readouterr().out == ""


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60, check=True
    )


UNCONFIGURED = """
from headrace.observe import events
from headrace.context import inbound_var
from headrace.observe.logs import RequestIdFilter, emit
emit(events.HeadraceStarted(files=("u.yaml",), digest="d", upstreams=1))
emit(events.CircuitChanged(upstream="billing", from_state="open", to_state="closed", reason="…"))
"""


def test_an_app_that_configured_nothing_prints_nothing_below_warning() -> None:
    done = _run(UNCONFIGURED)

    assert (done.stdout, done.stderr) == ("", "")


def test_an_app_that_configured_nothing_sees_a_warning_on_stderr_and_nothing_on_stdout() -> None:
    done = _run(UNCONFIGURED + "emit(events.ModeOverridden(mode='off'))")

    assert done.stdout == ""
    assert done.stderr == (
        "headrace.mode_overridden: HEADRACE_MODE=off overrides every mode of the file: "
        "no call is governed; unset it to end that\n"
    )


def test_importing_leaves_structlog_unconfigured() -> None:
    done = _run("import headrace.observe.logs, structlog; print(structlog.is_configured())")

    assert done.stdout.strip() == "False"


# --- the inbound request ------------------------------------------------------------------------


@pytest.fixture
def bound() -> Iterator[None]:
    token = inbound_var.set(SimpleNamespace(request_id="of-100%s"))
    yield
    inbound_var.reset(token)


@pytest.mark.usefixtures("bound")
@pytest.mark.parametrize("event", EVERY_EVENT, ids=lambda event: event.name)
def test_an_event_of_an_ininbound_var_carries_its_id(event: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="headrace"):
        emit(event)

    (record,) = caplog.records
    if isinstance(event, events.ErrorMapped):  # has one of its own
        assert vars(record)["request_id"] == event.request_id
        assert record.getMessage() == f"{event.name}: {event.line}"
    else:
        assert vars(record)["request_id"] == "of-100%s"
        assert record.getMessage() == f"{event.name}: {event.line} [request of-100%s]"


def test_an_event_outside_of_a_request_has_no_id(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="headrace"):
        emit(events.WatchDegraded(reason="…"))
    assert not hasattr(caplog.records[0], "request_id")


def filtered(request_filter: RequestIdFilter, name: str = "app") -> logging.LogRecord:
    record = logging.LogRecord(name, logging.INFO, __file__, 1, "hello", None, None)
    assert request_filter.filter(record)
    return record


@pytest.mark.usefixtures("bound")
def test_the_filter_puts_the_id_on_the_applications_records() -> None:
    formatted = logging.Formatter("%(request_id)s %(message)s").format(filtered(RequestIdFilter()))
    assert formatted == "of-100%s hello"


def test_outside_of_a_request_the_filter_puts_a_dash() -> None:
    assert vars(filtered(RequestIdFilter()))["request_id"] == "-"
    assert vars(filtered(RequestIdFilter(outside="none")))["request_id"] == "none"


@pytest.mark.usefixtures("bound")
def test_an_id_that_a_record_has_is_kept() -> None:
    record = logging.LogRecord("app", logging.INFO, __file__, 1, "hello", None, None)
    record.request_id = "its own"
    assert RequestIdFilter().filter(record)
    assert record.request_id == "its own"


@pytest.mark.usefixtures("bound")
def test_a_filter_for_one_logger_leaves_the_others_alone_and_drops_nothing() -> None:
    request_filter = RequestIdFilter("app")
    assert vars(filtered(request_filter, "app.views"))["request_id"] == "of-100%s"
    assert not hasattr(filtered(request_filter, "other"), "request_id")


@pytest.mark.usefixtures("bound")
def test_dict_config_finds_the_filter_by_its_public_name(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("tests.request_id_filter")
    configuration: dict[str, Any] = {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"request": {"()": "headrace.RequestIdFilter"}},
        "formatters": {"line": {"format": "%(request_id)s %(message)s"}},
        "handlers": {"out": {"class": "logging.StreamHandler", "filters": ["request"], "formatter": "line"}},
        "loggers": {logger.name: {"handlers": ["out"], "level": "INFO", "propagate": False}},
    }
    logging.config.dictConfig(configuration)
    try:
        logger.info("hello")
    finally:
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
    assert capsys.readouterr().err == "of-100%s hello\n"
