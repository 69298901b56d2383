"""How a name becomes a connection: in which order its addresses are tried, and when; when a name may be looked up.

RFC 8305, "Happy Eyeballs": a dead address costs a quarter of a second and not the whole limit. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import zip_longest
from math import inf
from typing import Final, TypeVar

A = TypeVar("A", bound=object)

STAGGER_S: Final = 0.25
"""Seconds that an address has for itself before the next one is tried beside it: RFC 8305 §8, as browsers do."""

YOUNG_S: Final = 1.0
"""A look-up that takes longer than this hangs, and no longer counts towards MOST_YOUNG. Answers take milliseconds."""

MOST_YOUNG: Final = 8
"""Look-ups that may run side by side while none of them hangs."""

MOST_LOOK_UPS: Final = 64
"""Look-ups that may run at all. Each has a thread, and with resolv.conf's defaults a dead server holds it for 10 s."""


def interleaved(addresses: Sequence[A], *, family_of: Callable[[A], object]) -> list[A]:
    """*addresses*, the families in turn, as many of each as there are; the order within a family stays.

    The first stays first: the system has sorted them (RFC 6724). Without this a host with a broken IPv6 would
    wait for all of a name's IPv6 addresses before the first one of IPv4.

    Source: RFC 8305 §4, with a First Address Family Count of 1.
    """
    families: dict[object, list[A]] = {}
    for address in addresses:
        families.setdefault(family_of(address), []).append(address)
    if len(families) < 2:
        return list(addresses)
    return [one for turn in zip_longest(*families.values()) for one in turn if one is not None]


class Turns:
    """When each of several addresses is tried. Mutable; owned by one thread.

    Args:
        addresses: How many there are, at least 1.
        limit_s: Seconds that they have together; inf: no limit.

    Attributes:
        stagger_s: Seconds from one turn to the next. With many addresses and a short limit it is shorter than
            STAGGER_S: even the last one has a turn, and as long as the others to answer.
        next_at: When the next one's turn is, on the clock of the caller; inf: each has had its turn.
    """

    __slots__ = ("_left", "next_at", "stagger_s")

    def __init__(self, addresses: int, *, limit_s: float) -> None:
        self._left = addresses
        self.stagger_s = min(STAGGER_S, limit_s / (addresses + 1))
        self.next_at = -inf

    def begun(self, now: float) -> None:
        """The next one is being tried from *now* on."""
        self._left -= 1
        self.next_at = now + self.stagger_s if self._left else inf

    def failed(self, now: float) -> None:
        """One of those that were tried has failed: nothing is gained by waiting for the next one's turn."""
        if self._left:
            self.next_at = now


def share_s(left_s: float, addresses: int) -> float:
    """Seconds for the next one of *addresses*, of *left_s*, where they can only be tried one after the other."""
    return left_s / addresses


def may_begin_at(begun: Collection[float], now: float) -> float:
    """When one more name may be looked up beside those that were *begun*: *now*, or later; inf: once one has ended.

    Names that hang must not keep others from being looked up. So those that have run for YOUNG_S count
    towards the hard limit only, which keeps the number of threads finite.

    Args:
        begun: When each of those under way began, seconds.
    """
    if len(begun) >= MOST_LOOK_UPS:
        return inf
    young = sorted(at for at in begun if now - at < YOUNG_S)
    if len(young) < MOST_YOUNG:
        return now
    return young[-MOST_YOUNG] + YOUNG_S
