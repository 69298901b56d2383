"""Chains of upstreams that name one another, by `extends` or `fallback`: how long they may be, how they are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

MAX_LINKS = 8
"""How many may follow one another. Nobody could think through more, and recursion would bear far more.
Symlinks have a limit for the same reason (path_resolution(7): 40)."""


def links_of(named: Mapping[str, str]) -> tuple[dict[str, int], list[list[str]]]:
    """How many links follow from each name on, and the circles. Linear time, no recursion.

    Args:
        named: The name that each one points to, if it points to any.

    Returns:
        Links by name, without the names that run into a circle; and each circle, begun at its first name.
    """
    links: dict[str, int] = {}
    circles: list[list[str]] = []
    done: set[str] = set()
    for name in named:
        walked: dict[str, int] = {}  # each name with its place
        current: str | None = name
        while current is not None and current not in walked and current not in done:
            walked[current] = len(walked)
            current = named.get(current)
        if current in walked:
            circles.append(list(walked)[walked[current] :])
        elif current is None or current in links:
            following = -1 if current is None else links[current]
            for one in reversed(walked):
                following += 1
                links[one] = following
        done.update(walked)
    return links, circles


def in_a_row(first: str, named: Mapping[str, str]) -> list[str]:
    """*first* and the names that follow it, one more than allowed: they show what makes the chain too long."""
    row = [first]
    while len(row) <= MAX_LINKS + 1 and row[-1] in named:
        row.append(named[row[-1]])
    return row


def arrows(names: Sequence[str]) -> str:
    """*names* as a line. Of many names, only the first ones and the last, with their number."""
    if len(names) <= MAX_LINKS + 2:
        return " -> ".join(names)
    return f"{' -> '.join(names[:3])} -> … -> {names[-1]}, {len(names) - 1} links"
