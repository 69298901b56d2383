"""An application that has configured structlog gets the events as it gets its own: filtered, bound, rendered."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from headrace.context import inbound_var
from headrace.observe import events, isolation
from headrace.observe.logs import emit
from support.every_event import EVERY_EVENT, OPENED


@pytest.fixture(autouse=True)
def unconfigured() -> Iterator[None]:
    isolation._logged_kinds.clear()
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def configure(out: io.StringIO, *first: Any, **options: Any) -> None:
    processors = [structlog.contextvars.merge_contextvars, structlog.processors.add_log_level, *first]
    structlog.configure(
        **{
            "processors": [*processors, structlog.processors.JSONRenderer()],
            "wrapper_class": structlog.make_filtering_bound_logger(logging.DEBUG),
            "logger_factory": structlog.PrintLoggerFactory(out),
            **options,
        }
    )


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


@pytest.mark.parametrize("event", EVERY_EVENT, ids=lambda event: event.name)
def test_an_event_has_its_name_its_fields_and_its_line_and_is_told_once(
    event: Any, caplog: pytest.LogCaptureFixture
) -> None:
    configure(out := io.StringIO())
    caplog.set_level(logging.NOTSET)

    emit(event)

    (told,) = lines(out)
    assert (told["event"], told["line"]) == (event.name, event.line)
    assert told["level"] == logging.getLevelName(event.level).lower()
    for name in (field.name for field in fields(event)):
        value = getattr(event, name)
        assert told[name] == (list(value) if isinstance(value, tuple) else value)
    assert caplog.records == []


def test_what_the_application_has_bound_is_in_the_event() -> None:
    configure(out := io.StringIO())

    with structlog.contextvars.bound_contextvars(tenant="acme"):
        emit(OPENED)
    emit(OPENED)

    assert [told.get("tenant") for told in lines(out)] == ["acme", None]


def test_the_event_has_the_id_of_the_inbound_request_unless_the_application_has_bound_its_own() -> None:
    configure(out := io.StringIO())
    token = inbound_var.set(SimpleNamespace(request_id="ours"))  # type: ignore[arg-type]
    try:
        emit(OPENED)
        with structlog.contextvars.bound_contextvars(request_id="the application's"):
            emit(OPENED)
    finally:
        inbound_var.reset(token)

    assert [told["request_id"] for told in lines(out)] == ["ours", "the application's"]


def test_the_level_of_its_filter_holds() -> None:
    configure(out := io.StringIO(), wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))

    emit(events.HeadraceStopped(files=("u.yaml",)))
    emit(OPENED)

    assert [told["event"] for told in lines(out)] == ["breaker.opened"]


def test_a_level_that_was_given_to_the_stdlib_logger_holds_as_well() -> None:
    configure(out := io.StringIO())
    logger = logging.getLogger("headrace")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        emit(OPENED)
    finally:
        logger.setLevel(before)

    assert out.getvalue() == ""


def test_an_event_that_a_processor_drops_is_told_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    def drop(*_: object) -> Any:
        raise structlog.DropEvent

    configure(out := io.StringIO(), drop)

    emit(OPENED)

    assert (out.getvalue(), caplog.records) == ("", [])


def test_a_processor_that_raises_breaks_no_call_is_said_once_and_loses_no_event(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> Any:
        raise LookupError("no such processor")

    configure(out := io.StringIO(), fail)

    emit(OPENED)
    emit(OPENED)

    assert out.getvalue() == ""
    told = [record.getMessage() for record in caplog.records]
    assert [text.partition(":")[0] for text in told] == [
        (
            "could not pass the event breaker.opened through the application's structlog; "
            "the rest goes on, and this is said once"
        ),
        "breaker.opened",
        "breaker.opened",
    ]


def test_over_stdlib_loggers_an_event_is_one_record_of_the_logger_headrace() -> None:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
            foreign_pre_chain=[structlog.stdlib.add_logger_name],
        )
    )
    logger = logging.getLogger("headrace")
    logger.addHandler(handler)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    try:
        with structlog.contextvars.bound_contextvars(tenant="acme"):
            emit(OPENED)
            emit(events.ConfigWarning(text="100 %s"))
    finally:
        logger.removeHandler(handler)

    first, second = lines(out)
    assert (first["event"], first["logger"], first["tenant"]) == ("breaker.opened", "headrace", "acme")
    assert second["line"] == "100 %s"


@pytest.mark.parametrize(
    "event", EVERY_EVENT, ids=lambda event: event.name
)  # a field of the name of one of a record's own would raise
def test_every_event_can_be_rendered_to_the_extra_of_a_stdlib_record(
    event: Any, caplog: pytest.LogCaptureFixture
) -> None:
    structlog.configure(
        processors=[structlog.stdlib.render_to_log_kwargs],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    caplog.set_level(logging.DEBUG, logger="headrace")

    emit(event)

    (record,) = caplog.records
    assert (record.name, record.levelno, record.getMessage()) == ("headrace", event.level, event.name)
    assert vars(record)["line"] == event.line


@pytest.mark.parametrize(
    "wrapper_class",
    [
        pytest.param(structlog.BoundLogger, id="generic"),
        pytest.param(structlog.stdlib.BoundLogger, id="stdlib"),
        pytest.param(structlog.stdlib.AsyncBoundLogger, id="async"),
        pytest.param(structlog.make_filtering_bound_logger(logging.INFO), id="filtering"),
    ],
)
def test_any_wrapper_class_of_structlog_passes_the_event_on(wrapper_class: Any) -> None:
    configure(out := io.StringIO(), wrapper_class=wrapper_class, cache_logger_on_first_use=True)

    emit(OPENED)

    assert [told["event"] for told in lines(out)] == ["breaker.opened"]


def test_a_later_configuration_is_heard_of() -> None:
    configure(first := io.StringIO(), cache_logger_on_first_use=True)
    emit(OPENED)
    configure(second := io.StringIO(), cache_logger_on_first_use=True)
    emit(OPENED)

    assert (len(lines(first)), len(lines(second))) == (1, 1)


def test_the_configuration_is_never_set() -> None:
    configure(io.StringIO())
    before = structlog.get_config()

    emit(OPENED)

    assert structlog.get_config() == before


APPLICATION = """
import pathlib, sys, structlog, headrace
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.JSONRenderer(),
    ],
    logger_factory=structlog.PrintLoggerFactory(),
)
structlog.contextvars.bind_contextvars(service="shop")
file = pathlib.Path(sys.argv[1])
file.write_text('''
upstreams:
  billing:
    base_url: http://127.0.0.1:9
    headers: {Authorization: "Bearer hunter2"}
''')
hr = headrace.Headrace(file)
hr.start()
hr.close()
"""


def test_an_applications_json_lines_have_the_events_and_no_secret(tmp_path: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", APPLICATION, str(tmp_path / "u.yaml")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["event"], line["service"]) for line in told] == [
        ("headrace.started", "shop"),
        ("headrace.stopped", "shop"),
    ]
    assert "hunter2" not in done.stdout + done.stderr
    assert done.stderr == ""


def test_levels_may_have_names_of_the_applications_own() -> None:
    configure(out := io.StringIO())
    logging.addLevelName(logging.WARNING, "loud")
    try:
        emit(events.ModeOverridden(mode="off"))
    finally:
        logging.addLevelName(logging.WARNING, "WARNING")
    assert [told["event"] for told in lines(out)] == [events.ModeOverridden.name]
