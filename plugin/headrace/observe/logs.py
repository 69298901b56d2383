"""Events into stdlib logging, under the logger `headrace`.

structlog wraps that one logger with our own processors. Everything that decides
how wrapped loggers behave is given here, so the application's
`structlog.configure` is neither read nor set; where the lines go and from which
level on is stdlib logging's business alone. An application that configured
nothing sees warnings on stderr (logging's last resort) and nothing on stdout.
"""

from __future__ import annotations

import logging
from dataclasses import fields
from typing import Any

import structlog
from structlog.typing import EventDict

from headrace.observe.events import Event

_LOGGER = logging.getLogger("headrace")

_STACK_DEPTH = 4
"""Frames from `emit`'s caller to logging (emit, log, structlog's proxy), so that records name the caller."""


def _as_record(
    _logger: object, _method: str, event_dict: EventDict
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """One line as the message, every field beside it on the record. No args: a `%` in a text stays one."""
    fact: Event = event_dict["event"]
    values = {field.name: getattr(fact, field.name) for field in fields(fact)}  # type: ignore[arg-type]  # a dataclass
    return (fact.level, f"{fact.name}: {fact.line}"), {
        "extra": {"event": fact.name, **values},
        "stacklevel": _STACK_DEPTH,
    }


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


def emit(event: Event) -> None:
    """Log *event* with its name, its line and its fields (`record.event`, `record.upstream`, …).

    Cheap when the level is disabled: nothing is rendered. Never call it with a lock held.
    """
    if _LOGGER.isEnabledFor(event.level):
        _bound.log(event)
