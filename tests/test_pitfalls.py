"""Every failure of a real peer that a closed issue named is claimed by a test: docstring `Pitfall N.`."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent

NAMED_BY_CLOSED_ISSUES = frozenset(
    # The main job, end to end.
    {*range(1, 10), 11, 14, 17, 20, 23, 24, 29, 30, 36, 37, 38, 41, 43, 44, *range(47, 53)}
    # The pool that Python never had.
    | {18, 19, 21, 22, 25, 26}
    # Retry that cannot hurt.
    | {10, 12, 13, 15, 16, 27, 45}
    # Trust first.
    | {*range(53, 75), *range(87, 90)}
)


def test_each_pitfall_that_a_closed_issue_named_is_claimed() -> None:
    claimed: set[int] = set()
    for file in TESTS.rglob("test_*.py"):
        if file != Path(__file__):
            claimed |= {
                int(number) for number in re.findall(r"Pitfall (\d+)\.(?!\.)", file.read_text("utf-8"))
            }

    assert sorted(NAMED_BY_CLOSED_ISSUES - claimed) == []
