"""Loops that serve many: one element that raises is skipped, said once, and costs the others nothing (failures.md 59).

Every loop over upstreams, leases, attempts, states, instances or listeners goes by `each` or `answers`. A broken
element would otherwise end the loop for all elements behind it, on every round.
"""

from __future__ import annotations

import logging
import os
import threading
from _thread import start_new_thread
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

E = TypeVar("E")
R = TypeVar("R")

_MOST_KINDS = 1000
"""A bound, in case the names of elements are generated."""

_PATIENCE_S = 1.0
"""Seconds to wait for a step that an interrupt has overtaken. It takes milliseconds, unless it was never begun."""

_MOST_LOOKS = 10_000
"""How often it is looked for a thread that is about to end: every 100 µs. It takes one look or two."""

_TASKS = "/proc/self/task/"
"""The threads of this process, as Linux knows them; not there elsewhere."""

_log = logging.getLogger("headrace")
_logged_kinds: dict[tuple[str, type[BaseException]], object] = {}


def each(
    elements: Iterable[E],
    act: Callable[[E], object],
    *,
    doing: str,
    of: Callable[[E], str] | None = None,
) -> None:
    """Do *act* to each of *elements*. Where it raises, go on with the next.

    Args:
        doing: What is done, for the log: "could not …".
        of: Answers the name of an element, for the log. A kind of error is logged once for each name.
    """
    for _ in answers(elements, act, doing=doing, of=of):
        pass


def answers(
    elements: Iterable[E],
    act: Callable[[E], R],
    *,
    doing: str,
    of: Callable[[E], str] | None = None,
) -> Iterator[tuple[E, R]]:
    """Each of *elements* with what *act* answers. Those it raises for are left out. Lazy; arguments as `each`."""
    for element in elements:
        try:
            answer = act(element)
        except Exception as error:
            stumbled(doing if of is None else f"{doing} ({of(element)})", error)
        else:
            yield element, answer


def carry_out(steps: Iterable[Callable[[], object]], *, doing: str) -> None:
    """Do all of *steps*, in order, whatever one of them raises. Each must bear being done more than once.

    A step that raises is skipped and logged once. A step that is interrupted (KeyboardInterrupt, SystemExit) is done
    again, and the interrupt is raised when all steps are done. A second interrupt is raised at once.
    """
    left = list(steps)
    interrupt: BaseException | None = None
    while left:
        try:
            while left:
                left[0]()
                del left[0]
        except Exception as error:
            stumbled(doing, error)
            del left[0]
        except BaseException as error:
            if interrupt is not None:
                raise
            interrupt = error
    if interrupt is not None:
        raise interrupt


def undisturbed(act: Callable[[], object]) -> None:
    """Do *act* where no signal's handler can break it off: not on the main thread. Blocks; raises what *act* raises.

    It is for foreign code that does not bear an interrupt: a thread's start, a registry. An interrupt that comes
    meanwhile is raised when *act* is over. On Linux the thread that it was done on has gone, too: a server that loads
    the application and then forks (`gunicorn --preload`) is told of each thread there is, by a DeprecationWarning.
    """
    if threading.current_thread() is not threading.main_thread():
        act()
        return
    raised: list[BaseException] = []
    task = here = threading.get_native_id()
    gate = threading.Lock()  # not an Event: it does not bear an interrupt either
    gate.acquire()

    def run() -> None:
        nonlocal task
        try:
            task = threading.get_native_id()
            act()
        except BaseException as error:
            raised.append(error)
        finally:
            gate.release()

    try:
        try:
            start_new_thread(run, ())
        except RuntimeError:  # no thread can be had, or the interpreter is ending
            run()
        gate.acquire()
    except BaseException:
        gate.acquire(timeout=_PATIENCE_S)
        raise
    for _ in range(_MOST_LOOKS):
        if task == here or not os.path.exists(f"{_TASKS}{task}"):
            break
        gate.acquire(timeout=_PATIENCE_S / _MOST_LOOKS)  # nobody gives it any more
    if raised:
        raise raised[0]


def is_ending(error: BaseException) -> bool:
    """Whether *error* says that the interpreter is ending, so that no thread can be had: then nothing is wrong.

    Python 3.12 says so from the end of the program on, before the functions of `atexit` run. Of its RuntimeError only
    the words tell it from that of a machine that has no threads left. 3.13 says it later, with the same words in a
    class of its own; 3.11 never says it.
    """
    return isinstance(error, RuntimeError) and str(error).endswith("at interpreter shutdown")


def stumbled(doing: str, error: BaseException) -> None:
    """Log *error* with its trace, the first time its type comes up in *doing*. Never raises; takes no lock.

    Not where the interpreter `is_ending`.
    """
    me = object()
    try:
        if is_ending(error):
            return
        # setdefault() is one atomic step, with and without the GIL: of many threads, one logs.
        if len(_logged_kinds) < _MOST_KINDS and _logged_kinds.setdefault((doing, type(error)), me) is me:
            _log.error("could not %s; the rest goes on, and this is said once", doing, exc_info=error)
    except Exception:
        pass  # raised by a filter or handler of the application, and there is nobody left to tell
