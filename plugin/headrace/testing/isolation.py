"""One test's headrace is no other test's: what it starts ends with it, what it teaches is forgotten."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from headrace import app
from headrace.adapters import install
from headrace.adapters.owner import call_by_name
from headrace.adapters.urllib3.patch import settled
from headrace.engine.notices import passing
from headrace.observe.isolation import each
from headrace.runtime.inbound import inbound_var
from headrace.transport.attempt import current_attempt

_BOUND: tuple[tuple[ContextVar[Any], Any], ...] = (
    (inbound_var, None),
    (current_attempt, None),
    (settled, False),
    (passing, None),
    (call_by_name, None),
)
"""Each context variable of ours, with what it holds outside of everything."""


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Inside, no inbound request is bound and no circuit or budget knows anything; afterwards all is as it was.

    Instances started inside are closed; one that a middleware serves from starts again with
    the next request. Instances that ran before run on, and forget at both ends what they
    have learned; their connections and counts stay. Patches that a mock has thrown out
    or brought back are put right, in whatever order it was entered and left.

    Not for tests that run side by side in the threads of one process: all of it is process-wide.
    """
    before = install.owners()
    outside = [(variable, variable.get()) for variable, _ in _BOUND]
    _forget()
    install.repair()
    for variable, nothing in _BOUND:
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
