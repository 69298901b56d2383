"""Where a value was written, and by which source: what cross-checks, `explain` and error texts ask.

Two trees answer it: the complete one, with everything inherited, and the one from before. A value that has the same
mark in both is the upstream's own.
"""

from __future__ import annotations

from enum import IntEnum
from functools import cached_property

from headrace.config.check.problems import Path, Problem, dotted
from headrace.config.source.tree import MASK, Mark, Node, Scalar, Table, mark_of, node_at, problem_at

_DEFAULTS, _BUILT_IN = 1_000_000, 1_000_001
"""Distances beyond every chain of `extends`."""


class Rank(IntEnum):
    """How near to an upstream a value was written."""

    BUILT_IN = 0
    INHERITED = 1
    OWN = 2


class Written:
    """A complete tree beside the tree as it was written.

    Attributes:
        tree: With `defaults` and `extends` merged into each upstream.
        original: Before that.
        refused: Paths where the settings do not hold what the file says.
    """

    def __init__(self, tree: Table, original: Table, refused: frozenset[Path] = frozenset()) -> None:
        self.tree = tree
        self.original = original
        self.refused = refused

    def is_usable(self, *paths: Path) -> bool:
        """Whether the settings hold what the file says at all of *paths*."""
        if not self.refused:
            return True
        return not any(path[:length] in self.refused for path in paths for length in range(1, len(path) + 1))

    def is_given(self, path: Path) -> bool:
        """Whether a value is written at *path*, inherited ones included."""
        return node_at(self.tree, path) is not None

    def rank(self, path: Path) -> Rank:
        """How near to the upstream of *path* its value was written."""
        node = node_at(self.tree, path)
        if node is None:
            return Rank.BUILT_IN
        own = node_at(self.original, path)
        return Rank.OWN if own is not None and own.at == node.at else Rank.INHERITED

    def distance(self, path: Path) -> int:
        """How far from its upstream the value at *path* was written: 0 in itself, then along `extends`, `defaults`.

        What does not fit together is told at the nearer value. So heirs that add nothing repeat nothing.
        """
        if not self.is_given(path):
            return _BUILT_IN
        origin = self.origin(path)
        if origin[:2] == path[:2]:
            return 0
        if path[:1] != ("upstreams",) or origin[:1] != ("upstreams",):
            return _DEFAULTS
        name, links = path[1], 0
        while name != origin[1] and links < _DEFAULTS:
            extended = node_at(self.original, ("upstreams", name, "extends"))
            if not isinstance(extended, Scalar):
                break  # an alias: one value stands in several places
            name, links = str(extended.value), links + 1
        return links

    def mark(self, path: Path) -> Mark:
        """Where *path*, or the nearest thing around it, is written."""
        return mark_of(self.tree, path)

    def origin(self, path: Path) -> Path:
        """The path where the value at *path* was written: `defaults.…` or another upstream's, if inherited."""
        node = node_at(self.tree, path)
        if node is None or self.rank(path) is Rank.OWN:
            return path
        return self._paths.get((node.at, len(path) - self._root_length(path)), path)

    def is_secret(self, path: Path) -> bool:
        """Whether the value at *path* must not be shown."""
        node = node_at(self.tree, path)
        return isinstance(node, Scalar) and node.secret

    def shown(self, path: Path, text: str) -> str:
        """*text* of the value at *path*, or the mask."""
        return MASK if self.is_secret(path) else text

    def where(self, path: Path, *, beside: Mark | None = None) -> str:
        """Words for where the value at *path* was written: `at line 20`, `the default`.

        Args:
            beside: Where the reader is already. The same file is not named again.
        """
        if not self.is_given(path):
            return "the default"
        mark = self.mark(path)
        if not mark.line:
            return f"from {mark.file}"
        return (
            f"at line {mark.line}"
            if beside is not None and beside.file == mark.file
            else f"at {mark.file}:{mark.line}"
        )

    def problem(self, path: Path, message: str, fix: str = "") -> Problem:
        """A problem of the value at *path*, told at the place where it was written: heirs do not repeat it."""
        return problem_at(self.mark(path), self.origin(path), message, fix)

    def problem_between(self, path: Path, other: Path, message: str, fix: str = "") -> Problem:
        """As `problem`, but at the value at *other* where that was written nearer to the upstream."""
        if self.distance(other) >= self.distance(path):
            return self.problem(path, message, fix)
        mark = self.mark(other)
        shared = next((n for n, (a, b) in enumerate(zip(path, other, strict=False)) if a != b), 0)
        where = self.where(path, beside=mark)
        where = where if self.is_given(path) else f"({where})"
        message = f"with this, {dotted(path[shared:])} {where}: {message}"
        return problem_at(mark, self.origin(other), message, fix)

    def _root_length(self, path: Path) -> int:
        return 2 if path[:1] == ("upstreams",) else 1

    @cached_property
    def _paths(self) -> dict[tuple[int, int], Path]:
        """By mark and depth below the upstream or `defaults`; an alias puts one mark in several places."""
        paths: dict[tuple[int, int], Path] = {}

        def walk(node: Node, path: Path) -> None:
            paths.setdefault((node.at, len(path) - self._root_length(path)), path)
            if isinstance(node, Table):
                for key, child in node.items():
                    walk(child, (*path, key))
            elif not isinstance(node, Scalar):
                for index, child in enumerate(node.items):
                    walk(child, (*path, index))

        walk(self.original, ())
        return paths
