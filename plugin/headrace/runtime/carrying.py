"""Where the record of a call is kept: on the answer or exception, or beside it where that refuses (failures.md 73).

What passes through may be the caller's own: an exception that is a frozen dataclass raises at every
attribute that is set, a response of a mock may have slots. It leaves as it came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from weakref import ref

from headrace.policy.record import Record

_beside: dict[int, tuple[ref[object], Record]] = {}
"""By id, of what refuses: it may not be hashable, or equal to another. An entry goes with its object.
Single steps on a dict and a deque only: no lock."""

_last: deque[tuple[object, Record]] = deque(maxlen=4)
"""Of what cannot even be referred to weakly (a frozen exception with slots): the latest few, kept alive."""


def carry(record: Record, *, on: object) -> None:
    """Make *record* the one of *on*, an answer or exception. Never raises; Mutates *on*, if it lets that happen."""
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


def record_of(carrier: object) -> Record | None:
    """What became of the governed call that ended with *carrier*, an answer or an exception; else None.

    It is `carrier.headrace` wherever the object takes attributes, and found here where it does not: an
    exception of your own that is frozen, say, which left a call through a body or a signal handler.
    """
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


def add_notes(error: BaseException, notes: Iterable[str]) -> None:
    """Add *notes* to *error*, as far as it takes them. Never raises; Mutates *error*."""
    try:
        for note in notes:
            error.add_note(note)
    except Exception:
        pass
