"""Where the record of a call is kept: on its answer or exception, or beside an object that refuses (failures.md 73).

The answer or exception may be the caller's own. An exception that is a frozen dataclass raises at every attribute
that is set; a response of a mock may have slots. Such an object leaves the call as it came.

The two tables below own the records that no object carries. They need no lock: each use is a single step on a dict
or a deque.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from weakref import ref

from headrace.policy.record import Record

_beside: dict[int, tuple[ref[object], Record]] = {}
"""Records of objects that refuse attributes, by id: such an object may not be hashable, or may be equal to another. An
entry goes with its object."""

_last: deque[tuple[object, Record]] = deque(maxlen=4)
"""Records of objects that cannot be referred to weakly (a frozen exception with slots): the latest few, kept alive."""


def carry(record: Record, *, on: object) -> None:
    """Make *record* the one of *on*, an answer or exception. Never raises. Mutates *on*, if *on* takes attributes."""
    try:
        on.headrace = record  # type: ignore[attr-defined]
        if getattr(on, "headrace", None) is record:
            return
    except Exception:
        pass
    key = id(on)
    try:
        _beside[key] = (ref(on, lambda _: _beside.pop(key, None)), record)
    except TypeError:
        _last.append((on, record))


def carried_by(carrier: object) -> Record | None:
    """The record that *carrier* itself carries, an answer or an exception; None: it carries none."""
    try:
        found = getattr(carrier, "headrace", None)
    except Exception:
        found = None
    if isinstance(found, Record):
        return found
    beside = _beside.get(id(carrier))
    if beside is not None and beside[0]() is carrier:
        return beside[1]
    return next((record for one, record in reversed(tuple(_last)) if one is carrier), None)


def record_of(carrier: object) -> Record | None:
    """What became of the governed call that ended with *carrier*, an answer or an exception; else None.

    The record is `carrier.headrace` where the object takes attributes. Where it does not, this function finds it: for
    an exception of your own that is frozen, say, and that left a call through a body or a signal handler. It also
    finds the record where an exception came after the call: in what requests has wrapped when a streamed body broke,
    and on the answer that `raise_for_status()` was called on.
    """
    found = carried_by(carrier)
    if found is None and isinstance(carrier, BaseException):
        found = next(filter(None, map(carried_by, and_what_it_wraps(carrier))), None)
        if found is None:
            found = carried_by(_response_of(carrier))
    return found


def and_what_it_wraps(error: BaseException) -> list[BaseException]:
    """*error* and what requests (in `args`) and urllib3 (as `reason`) have wrapped in it."""
    found: list[BaseException] = []
    todo: list[object] = [error]
    while todo and len(found) < 16:  # a cycle is legal Python
        one = todo.pop()
        if isinstance(one, BaseException) and not any(one is other for other in found):
            found.append(one)
            todo += [*one.args, getattr(one, "reason", None)]
    return found


def _response_of(error: BaseException) -> object:
    try:
        return getattr(error, "response", None)
    except Exception:  # a property of somebody's own exception
        return None


def add_notes(error: BaseException, notes: Iterable[str]) -> None:
    """Add *notes* to *error*, as far as it takes them. Never raises. Mutates *error*."""
    try:
        for note in notes:
            error.add_note(note)
    except Exception:
        pass
