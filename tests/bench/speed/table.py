"""What a row of the table is, what its factory is given, and what it answers. It is read where there is no library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

CALLS = "Python calls"
"""What a target speaks of when it bounds the number of Python-level calls of one turn."""

UNITS = {"µs": 1e6, "ms": 1e3, "µs/upstream": 1e6, "KiB": 1 / 1024, "MiB": 1 / 1024**2, "%": 100.0}
"""By its name, what a value in seconds, bytes or shares is multiplied with."""


@dataclass(slots=True)
class Lab:
    """What a factory may use. One for each process that measures.

    Attributes:
        http, https: Where nginx listens, without a slash at the end; https may be empty.
        ca: File of the authority that signed nginx' certificate, or empty.
        fresh: By kind of TLS, where an nginx listens that closes each connection after its answer; may be empty.
        fresh_ca: File of the authorities of those, or empty.
        folder: For files of the process's own.
        stack: Closed at the end of the process.
    """

    http: str
    https: str
    ca: str
    folder: Path
    fresh: Mapping[str, str] = field(default_factory=dict)
    fresh_ca: str = ""
    stack: ExitStack = field(default_factory=ExitStack)
    _shared: dict[object, Any] = field(default_factory=dict)

    def once(self, make: Callable[[Lab], AbstractContextManager[T]]) -> T:
        """What *make* makes, made by the first who asks, and closed at the end of the process."""
        if make not in self._shared:
            self._shared[make] = self.stack.enter_context(make(self))
        made: T = self._shared[make]
        return made


@dataclass(frozen=True, slots=True)
class Many:
    """Work that is asked for several turns at once (threads, an event loop); its CPU time counts.

    Attributes:
        step: Turns are asked for in multiples of it.
    """

    run: Callable[[int], object]
    step: int = 1


@dataclass(frozen=True, slots=True)
class Gauge:
    """Work that says itself what it found: seconds, bytes, a share. One reading a round."""

    read: Callable[[], float]


Work = Callable[[], object] | Many | Gauge
"""A plain function is one turn; the CPU seconds of the whole process per turn count, background threads included."""

Factory = Callable[[Lab], AbstractContextManager[Work]]


@dataclass(frozen=True, slots=True)
class Target:
    """A bound that the project has set itself.

    Attributes:
        of: Name of the row to which it is a ratio; CALLS; empty: the value itself, in the row's unit.
        aim: What was hoped for beyond it, or None.
    """

    at_most: float
    of: str = ""
    aim: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One thing that is measured.

    Attributes:
        group, name: Together its key.
        make: Makes the work, in the process that measures it; what cannot be imported there is told as left out.
        room: Rows of one room share a process. `governed` and the like hold one Headrace each.
        peer: Name of the row of the group that this one is there to be compared with, or None.
        floor: Name of the row that shows what no client can be below, or None.
        minus: Name of the row that is subtracted, round by round: this one is around it. Or None.
        needs: What has to be importable that neither headrace nor its tests bring.
        is_counted: Whether Python-level calls are counted: it works in the calling thread alone.
        is_quick: Whether --quick has it, too.
    """

    group: str
    name: str
    make: Factory
    room: str
    peer: str | None = None
    floor: str | None = None
    minus: str | None = None
    targets: tuple[Target, ...] = ()
    needs: tuple[str, ...] = ()
    unit: str = "µs"
    is_counted: bool = False
    is_quick: bool = True

    @property
    def key(self) -> str:
        """Unique in the table."""
        return f"{self.group}: {self.name}"

    def shown(self, value: float) -> float:
        """*value*, which is in seconds, bytes or a share, in the row's unit."""
        return value * UNITS[self.unit]


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that are measured together, by turns.

    Attributes:
        note: What the columns mean here: floor, peer, what a turn is.
        most_s: No round begins later (of the wall): on a busy machine there are fewer, and the run keeps its time.
        rounds, block_s: How often each row is measured, and for how long (CPU) each time; `quick_…` with --quick.
    """

    name: str
    title: str
    note: str
    most_s: float
    rounds: int = 15
    block_s: float = 0.05
    quick_rounds: int = 3
    quick_block_s: float = 0.01
