"""KeyboardInterrupt at a chosen point: Ctrl-C, Celery's soft time limit, a greenlet that is killed."""

from __future__ import annotations

import contextlib
import gc
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import requests

from headrace.errors import PoolRejected, PoolTimeout
from headrace.transport.attempt import current_attempt
from support.faultserver import FaultServer
from support.governed import running


def let_children_be_interrupted() -> None:
    """Have processes that are started from now on hear SIGINT, also where the tests run in the background of a shell.

    A shell starts those with the signal ignored. A child inherits that, and Python then sets no handler of its own.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


STORM = """version: 1
upstreams:
  refused: {{base_url: '{0}/refused', pool: {{max_connections: 1, when_full: reject}}}}
  waiting: {{base_url: '{0}/waiting', pool: {{max_connections: 1}}, timeouts: {{acquire: 2ms}}}}
  going:   {{base_url: '{0}/going', pool: {{max_connections: 2}}}}
"""

_FINALIZERS = ("weakref.py", "_weakrefset.py", "hypothesis/internal/conjecture/junkdrawer.py")
"""What these raise, CPython swallows: their callbacks run as part of whatever is under way.

The last one has a callback of the collector, which Hypothesis leaves there once one of its tests has run.
"""


def interrupted_at(point: int, act: Callable[[], object]) -> bool:
    """Run *act*, raising KeyboardInterrupt at its *point*-th; whether it got that far.

    The points are those where CPython looks for signals: the beginning of a Python
    function, and the return from a C function. After a plain store it does not look.
    """
    left = point

    def note(frame: FrameType, event: str, _: object) -> None:
        nonlocal left
        if event in ("call", "c_return"):
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

    sys.setprofile(note)
    try:
        act()
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(None)
    return left <= 0


def interrupted_within(files: tuple[str, ...], point: int, act: Callable[[], object]) -> tuple[bool, bool]:
    """As `interrupted_at`, of the points in *files* (by how their names end) and of what they call.

    Returns:
        Whether it got that far, and whether the interrupt came out of *act*.
    """
    left = point

    def note(frame: FrameType, event: str, _: object) -> None:
        nonlocal left
        if event not in ("call", "c_return"):
            return
        if not frame.f_code.co_filename.endswith(files):
            caller = frame.f_back if event == "call" else None
            if caller is None or not caller.f_code.co_filename.endswith(files):
                return
        if _is_in_finalizer(frame):
            return
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    came_out = False
    sys.setprofile(note)
    try:
        act()
    except KeyboardInterrupt:
        came_out = True
    finally:
        sys.setprofile(None)
    return left <= 0, came_out


def _is_in_finalizer(frame: FrameType) -> bool:
    """Whether *frame* runs below a callback that the collector, too, may have begun at any point."""
    above: FrameType | None = frame
    while above is not None:
        if above.f_code.co_filename.endswith(_FINALIZERS):
            return True
        above = above.f_back
    return False


def points_of(act: Callable[[], object]) -> int:
    """How many points *act* has."""
    count = 0

    def note(frame: FrameType, event: str, _: object) -> None:
        nonlocal count
        count += event in ("call", "c_return")

    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(None)
    return count


def interrupt_storm(folder: Path, seed: int, *, interrupts: int) -> list[str]:
    """*interrupts* at random points of calls that are refused, that wait in vain, and that run; what is wrong then."""
    dice = random.Random(seed)
    with FaultServer() as server, running(folder, STORM.format(server.url)) as hr:

        def call(name: str) -> Callable[[], object]:
            def one() -> None:
                with contextlib.suppress(PoolRejected, PoolTimeout):
                    requests.get(f"{server.url}/{name}")

            return one

        calls = {name: call(name) for name in ("refused", "waiting", "going")}
        pools = {name: hr.snapshot.upstream(name).endpoint.pool.leases for name in calls}
        held = [requests.get(f"{server.url}/{name}", stream=True) for name in ("refused", "waiting")]
        points = {name: points_of(act) for name, act in calls.items()}
        for _ in range(interrupts):
            name = dice.choice(tuple(calls))
            interrupted_at(dice.randint(1, points[name]), calls[name])
            current_attempt.set(None)
        wrong = []
        for answer in held:
            answer.close()
        gc.collect()
        for name, pool in pools.items():
            view = pool.view()
            if view.inuse or view.waiting or view.one_off or pool._lock.locked():
                wrong.append(f"seed {seed}: {name} is {pool!r}")
            if faults := [repr(report) for report in pool.reports() if not hasattr(report, "held_s")]:
                wrong.append(f"seed {seed}: {name} told {faults}")
        hr.status()
        hr.reload()
        for name in calls:
            status = requests.get(f"{server.url}/{name}").status_code
            if status != 200:
                wrong.append(f"seed {seed}: {name} answered {status}")
    return wrong
