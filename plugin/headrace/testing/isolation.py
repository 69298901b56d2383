"""One test's headrace is no other test's. What a test starts ends with it, and what it teaches is forgotten."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from headrace import app
from headrace.adapters import install
from headrace.adapters.owner import call_by_name
from headrace.adapters.urllib3.patch import settled
from headrace.adapters.urllib3.pools import ready_var
from headrace.config.settings import reading_var
from headrace.engine.notices import passing
from headrace.observe.isolation import each
from headrace.runtime.inbound import inbound_var
from headrace.transport.attempt import current_attempt

_VARIABLES: tuple[tuple[ContextVar[Any], Any], ...] = (
    (inbound_var, None),
    (current_attempt, None),
    (settled, False),
    (ready_var, None),
    (passing, None),
    (call_by_name, None),
    (reading_var, None),
)
"""Each context variable of ours, with its value outside of any request or call."""


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Inside, no inbound request is bound and no circuit or budget knows anything. Afterwards all is as it was.

    Instances started inside are closed. One that a middleware serves from starts again with
    the next request. Instances that ran before run on. They forget at both ends what they
    have learned; their connections and counts stay. Patches that a mock has thrown out
    or brought back are put right, in whatever order the mock was entered and left.

    It is not for tests that run side by side in threads of one process: all of it is process-wide.
    """
    before = install.owners()
    outside = [(variable, variable.get()) for variable, _ in _VARIABLES]
    _forget()
    install.repair()
    for variable, nothing in _VARIABLES:
        variable.set(nothing)
    try:
        yield
    finally:
        for variable, value in outside:
            variable.set(value)
        owners = install.owners()
        started_inside = [one for one in app.instances() if one in owners and one not in before]
        each(started_inside, _end, doing="close an instance that a test has started")
        install.repair()
        _forget()


def _end(instance: app.Headrace) -> None:
    instance.close()
    instance.started_in = 0


def _forget() -> None:
    each(app.instances(), app.Headrace.forget, doing="forget what an instance has learned")
