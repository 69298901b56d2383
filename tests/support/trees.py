"""Marked trees of all shapes, for Hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from headrace.config.source.tree import Listing, Mark, Node, Scalar, Table


def table(entries: dict[str, Node]) -> Table:
    """A table of *entries*, all at one place."""
    return Table(entries, dict.fromkeys(entries, Mark("f", 1, 1)), Mark("f", 1, 1))


_LEAVES = st.integers(0, 9).map(lambda n: Scalar(n, str(n), Mark("f", n + 1, 1)))
NODES = st.recursive(
    _LEAVES | st.lists(_LEAVES, max_size=2).map(lambda items: Listing(list(items), Mark("f", 1, 1))),
    lambda below: st.dictionaries(st.sampled_from("abc"), below, max_size=3).map(table),
    max_leaves=8,
)
