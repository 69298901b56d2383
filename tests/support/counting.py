"""Everything that counts, filled: what a test asks of one total it can ask of all."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from types import MethodWrapperType
from typing import Any

import headrace
from headrace.policy.counters import Histogram, Ticker, UpstreamCounters, add
from headrace.runtime.service import ServiceCounters

KEEPERS: Mapping[str, type[Any]] = {"upstream": UpstreamCounters, "service": ServiceCounters}

_KEYS: Mapping[str, tuple[str, ...]] = {"transitions": ("closed", "open")}
"""Keys of totals that have several labels; those of the others are one word."""


TAKEN_IN: Mapping[str, str] = {
    "ended": "its requests are in the totals of every copy, and readers have copies",
    "tick": "its calls are among `hits` from the next look on",
    "answered": "its calls are in the totals of every copy, and readers have copies",
}
"""What is kept for a while and is no total by itself, with the reason."""


def totals_in(kind: type[Any]) -> list[str]:
    """Names of the totals that *kind* keeps."""
    return [name for name in kind.__slots__ if not name.startswith("_") and name not in ("lock", *TAKEN_IN)]


TOTALS = [(keeper, name) for keeper, kind in KEEPERS.items() for name in totals_in(kind)]


def keeper_of(instance: headrace.Headrace, keeper: str) -> Any:
    """The live counters of *instance*, or of its first upstream."""
    if keeper == "service":
        return instance.service
    return next(iter(instance.snapshot.upstreams.values())).learned.counters


def fill(counters: Any, name: str, amount: int) -> None:
    """Add *amount* to the total *name*, whatever its shape. Mutates."""
    total = getattr(counters, name)
    match total:
        case int() | float():
            setattr(counters, name, total + amount)
        case Histogram():
            for _ in range(amount):
                total.observe(0.02)
        case dict() if total and all(isinstance(one, Ticker) for one in total.values()):
            for ticker in total.values():
                for _ in range(amount):
                    ticker.tick()
        case dict():
            add(total, _KEYS.get(name, "word"), amount)
        case deque() | list():
            total.extend([0.02] * amount)
        case MethodWrapperType():  # of a ticker
            for _ in range(amount):
                total()
        case _:
            raise TypeError(f"{name}: say here how to fill a {type(total).__name__}")


def fill_all(instance: headrace.Headrace) -> None:
    """Give each total an amount of its own. Mutates."""
    for number, (keeper, name) in enumerate(TOTALS):
        fill(keeper_of(instance, keeper), name, 2 + number)


def plain(value: Any) -> Any:
    """What *value* stands at: numbers, apart from it, that can be compared."""
    match value:
        case Ticker():
            return value.total()
        case Histogram():
            return [*value.counts, value.sum, *value.exemplars.values()]
        case dict():
            return {key: plain(one) for key, one in value.items()}
        case _:
            return value
