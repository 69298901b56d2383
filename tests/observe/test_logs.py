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

from headrace.config.check.problems import Problem, render_problems
from headrace.context import inbound_var
from headrace.observe import events
from headrace.observe.logs import RequestIdFilter, emit
from support.every_event import EVERY_EVENT, OPENED


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
