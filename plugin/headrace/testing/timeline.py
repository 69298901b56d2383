"""What happened, and when. It is compared with what was expected, and read when the two differ."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from difflib import ndiff
from typing import NamedTuple


class Moment(NamedTuple):
    """One thing that happened. Equal to the plain tuple, which is also its repr: it may be pasted into a test.

    Attributes:
        at_s: Seconds since the simulation began, rounded to the microsecond.
        what: In words.
    """

    at_s: float
    what: str

    def __repr__(self) -> str:
        return repr((self.at_s, self.what))


class Timeline(list[Moment]):
    """Moments in the order of time; `str()` is a line for each."""

    def note(self, at_s: float, what: str) -> None:
        """Add a moment at its place in time: time alone may have decided something before it was noticed. Mutates."""
        insort(self, Moment(round(at_s, 6), what), key=_at)

    def __str__(self) -> str:
        return "\n".join(_lines(self)) or "nothing happened"


def differences(happened: Timeline, expected: Iterable[object]) -> list[str]:
    """Both, line by line. `-` was expected and did not happen, `+` happened and was not expected."""
    return [line for line in ndiff(_lines(expected), _lines(happened)) if line[0] != "?"]


def _at(moment: Moment) -> float:
    return moment.at_s


def _lines(moments: Iterable[object]) -> list[str]:
    return [
        f"{one[0]:12.6f} s  {one[1]}" if isinstance(one, tuple) and len(one) == 2 else repr(one)
        for one in moments
    ]
