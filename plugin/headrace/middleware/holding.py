"""Which middlewares hold an instance of headrace, and when its life begins and ends with theirs.

An application factory that is called twice wraps the same file twice, and one process has one set of rules for it. So
the middlewares of one file share an instance. It is closed when the last of their lifespans is over, and abandoned
when none of the middlewares exists any more: then the next start of any other instance closes it.

`_shared_lock` guards which instance is shared. What is noted of an instance (`_Held`) has no lock: each use is one step
on a set.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

from headrace import app
from headrace.app import File, Headrace
from headrace.config import mode_override
from headrace.observe.isolation import each
from headrace.observe.metrics import Registry
from headrace.runtime import process


class _Held:
    """What is known of one instance that middlewares have made.

    Attributes:
        holders: The middlewares.
        lifespans: Those of them whose lifespan goes on.
        has_ended_before: A lifespan of it has ended in this process.
    """

    __slots__ = ("has_ended_before", "holders", "lifespans")

    def __init__(self) -> None:
        self.holders: WeakSet[object] = WeakSet()
        self.lifespans: WeakSet[object] = WeakSet()
        self.has_ended_before = False


_shared_lock = threading.Lock()
"""Guards `_shared`. Nothing else happens under it."""

_shared: WeakValueDictionary[tuple[object, ...], Headrace] = WeakValueDictionary()
"""The instances that middlewares have made, by what they were made of."""

_held: WeakKeyDictionary[Headrace, _Held] = WeakKeyDictionary()
"""The same, with what is known of them."""


def hold(
    holder: object, file: File | Sequence[File] | None = None, *, registry: Registry | None = None
) -> Headrace:
    """The instance of these files for *holder*, a middleware: that of the other middlewares, or a new one.

    Raises:
        ConfigError: The files have problems, now; where another middleware has the instance, too.
    """
    key = (app.absolute(file), mode_override(os.environ), registry)
    with _shared_lock:
        found = _shared.get(key)
    made = None
    if found is None:
        made = Headrace(file, registry=registry)
        _held[made] = _Held()
        with _shared_lock:
            found = _shared.setdefault(key, made)
    holders = _held[found].holders
    holders.add(holder)  # before the look: a start elsewhere closes what nobody holds
    try:
        if found is not made:  # that has just read them
            found.reread()
    except BaseException:
        holders.discard(holder)
        raise
    return found


def lifespan_begins(headrace: Headrace, holder: object) -> None:
    """*holder* is going to start *headrace*, and to say when its lifespan is over."""
    _held[headrace].lifespans.add(holder)


def lifespan_ends(headrace: Headrace, holder: object) -> None:
    """Close *headrace*, if no other holder's lifespan goes on. Blocks shortly; idempotent.

    From the second lifespan of the process on, a further one is expected, and idle connections are kept for it.
    """
    held = _held[headrace]
    held.lifespans.discard(holder)
    if held.lifespans:
        return
    if held.has_ended_before:
        headrace.suspend()
    else:
        headrace.close()
    held.has_ended_before = True
    headrace.started_in = 0


def _close_abandoned(starting: Headrace) -> None:
    """Close the instances that nobody holds any more, so that they claim no URL. Blocks shortly."""
    each(
        [
            one
            for one, held in list(_held.items())
            if one is not starting and not held.holders and one.is_open
        ],
        Headrace.close,
        doing="close an instance whose applications are gone",
    )


def _forget_inherited() -> None:
    global _shared_lock
    _shared_lock = threading.Lock()


app.before_start(_close_abandoned)
process.after_fork(_forget_inherited)
