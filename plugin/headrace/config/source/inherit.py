"""`defaults:` and `extends:`: what each upstream says once everything it takes over is merged in.

It is a source, too, the weakest: pydantic-settings asks it last, and shows it what the others have come to.
"""

from __future__ import annotations

from typing import Any

from pydantic_settings import InitSettingsSource

from headrace.config.check.problems import Problem, did_you_mean
from headrace.config.source.chains import MAX_LINKS, arrows, in_a_row
from headrace.config.source.tree import Node, Scalar, Table, merge, problem_at
from headrace.config.source.written import Written

NOT_INHERITED = frozenset({"base_url", "match", "headers", "extends"})
NOT_A_DEFAULT = frozenset({"base_url", "match", "extends"})


class Inheritance(InitSettingsSource):
    """The source under all others: upstreams with all that they take over.

    The weakest comes first: `defaults`, then the chain of `extends` from its far end, then the upstream's own keys.
    All that the other sources say is in the answer. So the state in which pydantic-settings has collected it is
    emptied: it would lay it on the answer, which changes nothing and makes each table anew.

    Attributes:
        written: What the others say, and the same complete.
        problems: What is wrong with `extends`.
    """

    def __call__(self) -> dict[str, Any]:
        """The complete tree. Values keep the marks of where they were written."""
        state = self.current_state
        assert isinstance(state, Table)
        original = state.copy()
        state.clear()
        tree = original
        upstreams, defaults = original.get("upstreams"), original.get("defaults")
        self.problems: list[Problem] = []
        if isinstance(upstreams, Table):
            chains = _Chains(upstreams)
            complete = {name: chains.complete(name) for name in upstreams}
            if isinstance(defaults, Table):
                base = _without(defaults, NOT_A_DEFAULT)
                # An upstream that is not a map is left for the validation to refuse.
                complete |= {
                    name: merge(base, own) for name, own in complete.items() if isinstance(own, Table)
                }
            entries = {**original, "upstreams": Table(complete, upstreams.key_marks, upstreams.mark)}
            tree, self.problems = Table(entries, original.key_marks, original.mark), chains.problems
        self.written = Written(tree, original)
        return tree


class _Chains:
    def __init__(self, upstreams: Table) -> None:
        self.upstreams = upstreams
        self.done: dict[str, Node] = {}
        self.problems: list[Problem] = []
        self._links: dict[str, int] = {}  # by name, how many links follow
        self._named: dict[str, str] = {}
        self._circular: set[str] = set()  # reported already, so not reported as too long

    def complete(self, name: str) -> Node:
        """Upstream *name* with all that it extends. No recursion: a chain that is too long must be reported, too."""
        chain: dict[str, None] = {}  # in order
        current: str | None = name
        while current is not None and current not in self.done:
            chain[current] = None
            current = self._extended_by(current, chain)
        following = -1 if current is None else self._links[current]
        is_circular = current in self._circular or not self._circular.isdisjoint(chain)
        for link in reversed(chain):
            own = self.upstreams[link]
            under = None if current is None else self.done[current]
            self._links[link] = following = following + 1
            if following <= MAX_LINKS and isinstance(under, Table):
                own = merge(_without(under, NOT_INHERITED), own)
            if is_circular:
                self._circular.add(link)
            elif following == MAX_LINKS + 1:  # reported where it becomes too long, not at what leads there
                self.problems.append(self._too_long(link))
            self.done[link] = own
            current = link
        return self.done[name]

    def _extended_by(self, name: str, chain: dict[str, None]) -> str | None:
        table = self.upstreams[name]
        node = table.get("extends") if isinstance(table, Table) else None
        if not isinstance(node, Scalar) or not isinstance(node.value, str) or node.secret:
            return None
        target = node.value
        path = ("upstreams", name, "extends")
        if target in chain:
            names = list(chain)
            circle = arrows([*names[names.index(target) :], target])
            self._circular.add(name)
            self.problems.append(
                problem_at(node.mark, path, f"runs in a circle: {circle}", "let one of them stand on its own")
            )
            return None
        if target not in self.upstreams:
            near = did_you_mean(target, list(self.upstreams))
            fix = f"did you mean {near}?" if near and near != name else "name an upstream of this file"
            self.problems.append(problem_at(node.mark, path, f'names "{target}", which is no upstream', fix))
            return None
        self._named[name] = target
        return target

    def _too_long(self, name: str) -> Problem:
        table = self.upstreams[name]
        assert isinstance(table, Table)
        return problem_at(
            table["extends"].mark,
            ("upstreams", name, "extends"),
            f"is the first of more than {MAX_LINKS} in a row: {arrows(in_a_row(name, self._named))}",
            "let one of them stand on its own",
        )


def _without(table: Table, names: frozenset[str]) -> Table:
    if names.isdisjoint(table):
        return table
    entries = {key: node for key, node in table.items() if key not in names}
    return Table(entries, table.key_marks, table.mark)
