"""Events into the application's logs: through its structlog where it has configured one, else into stdlib logging.

An event goes one way, never both. After `structlog.configure` it passes the application's level filter,
processors, bound context and renderer, from a logger named `headrace`. The configuration is read at every event
and never set. Before that, structlog wraps the stdlib logger `headrace` with our own processor, and stdlib logging
decides where the lines go and from which level on. An application that has configured nothing sees warnings on
stderr (logging's last resort) and nothing on stdout.
"""

from __future__ import annotations

import logging
from dataclasses import fields
from typing import Any

import structlog
from structlog.typing import EventDict

from headrace.context import inbound_var
from headrace.observe.events import Event
from headrace.observe.isolation import stumbled
from headrace.policy.printable import printable, printable_lines

_LOGGER = logging.getLogger("headrace")

_STACK_DEPTH = 4
"""Frames from `emit`'s caller to logging (emit, log, structlog's proxy), so that records name the caller."""


def _as_record(
    _logger: object, _method: str, event_dict: EventDict
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """One line as the message, every field beside it on the record. No args: a `%` in a text stays a `%`."""
    fact: Event = event_dict["event"]
    values = _values_of(fact)
    line = printable(f"{fact.name}: {fact.line}")
    bound = inbound_var.get()
    if bound is not None and "request_id" not in values:
        values["request_id"] = bound.request_id
        line += f" [request {bound.request_id}]"
    return (fact.level, line), {"extra": {"event": fact.name, **values}, "stacklevel": _STACK_DEPTH}


def _values_of(fact: Event) -> dict[str, object]:
    return {field.name: _printable_value(getattr(fact, field.name)) for field in fields(fact)}  # type: ignore[arg-type]  # a dataclass


def _printable_value(value: object) -> object:
    """*value*, safe for any formatter to print. The line breaks of our own texts stay."""
    if isinstance(value, str):
        return printable_lines(value)
    return tuple(map(_printable_value, value)) if type(value) is tuple else value


class _EventLogger(structlog.BoundLoggerBase):
    def log(self, event: Event) -> None:
        self._proxy_to_logger("log", event)  # type: ignore[arg-type]  # structlog passes any object through as `event`


_bound: _EventLogger = structlog.wrap_logger(
    _LOGGER,
    processors=[_as_record],
    wrapper_class=_EventLogger,
    context_class=dict,
    cache_logger_on_first_use=True,
).bind()


_METHODS = {logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warning", logging.ERROR: "error"}
"""Not by `logging.getLevelName`: applications give levels names of their own."""


def _log_as_the_application_does(event: Event) -> None:
    """*event* under its name, its fields and `line` beside it. Raises what a processor of the application raises."""
    values = {**_values_of(event), "line": printable(event.line)}
    bound = inbound_var.get()
    if bound is not None and "request_id" not in structlog.contextvars.get_contextvars():
        values.setdefault(
            "request_id", bound.request_id
        )  # one that the application has bound is in its other lines
    # Made anew: a logger that was kept would not hear of the next `structlog.configure`.
    wrapper = structlog.get_config()["wrapper_class"]
    if isinstance(wrapper, type) and issubclass(wrapper, structlog.stdlib.AsyncBoundLogger):
        wrapper = structlog.stdlib.BoundLogger  # its coroutines nobody here could await
    logger = structlog.wrap_logger(None, wrapper_class=wrapper, logger_factory_args=(_LOGGER.name,))
    getattr(logger, _METHODS[event.level])(event.name, **values)


class RequestIdFilter(logging.Filter):
    """Puts `request_id` on the application's own log records, for `%(request_id)s` in a format. Drops none.

    Put on a handler (`handler.addFilter(…)`, or `filters` of dictConfig), it sees every record that the
    handler gets. A record that has the attribute already keeps it.

    Args:
        name: As `logging.Filter` has it: only records below that logger get the id; "": all of them.
        outside: What a record gets that belongs to no inbound request.
    """

    def __init__(self, name: str = "", *, outside: str = "-") -> None:
        super().__init__(name)
        self._outside = outside

    def filter(self, record: logging.LogRecord) -> bool:
        """Set it; always True."""
        if super().filter(record) and not hasattr(record, "request_id"):
            bound = inbound_var.get()
            record.request_id = self._outside if bound is None else bound.request_id
        return True


def emit(event: Event) -> None:
    """Log *event* with its name, its line and its fields (`record.event`, `record.upstream`, …).

    Cheap when the level is disabled: nothing is rendered. Never call it with a lock held.
    Never raises: an error in a filter or processor of the application is no concern of the call at hand. An event
    that the application's structlog stumbled over goes to stdlib logging, so that it is not lost.
    """
    if structlog.is_configured():
        if event.level < _LOGGER.level:  # a level that somebody gave this one logger holds in either case
            return
        try:
            _log_as_the_application_does(event)
            return
        except Exception as error:
            stumbled(f"pass the event {event.name} through the application's structlog", error)
    if _LOGGER.isEnabledFor(event.level):
        try:
            _bound.log(event)
        except Exception as error:
            stumbled(f"log the event {event.name}", error)
