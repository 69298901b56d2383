"""Keys that have got another name: the old one is read as the new one for a time, and told of.

`docs/versions.md` promises that time. `keys.RENAMED` is the one list of them; the day a key goes, its row moves on to
`keys.GONE`, where its name is refused with a reason.
"""

from __future__ import annotations

from collections.abc import Iterator

from headrace.config.check.problems import Path, Problem, dotted
from headrace.config.explain import keys
from headrace.config.source.tree import Node, Table, problem_at


def with_new_names(tree: Table) -> tuple[Table, list[Problem], list[Problem]]:
    """*tree* with each old name replaced by the new one; problems, where both are given; and what is deprecated.

    A value keeps the mark of where it was written. *tree* is not changed.
    """
    problems: list[Problem] = []
    deprecated: list[Problem] = []
    for pattern, renamed in keys.RENAMED.items():
        for path in tuple(_sections(tree, pattern[:-1])):
            old = str(pattern[-1])
            table = _table_at(tree, path)
            if old not in table.entries:
                continue
            at, new = table.key_marks[old], (*path, renamed.to)
            if renamed.to in table.entries:
                line = table.key_marks[renamed.to].line
                where = f" at line {line}" if line and table.key_marks[renamed.to].file == at.file else ""
                told = f"is the old name of {dotted(new)}, which is given{where}, too"
                problems.append(problem_at(at, (*path, old), told, "remove it"))
            else:
                told = f"is the old name of {dotted(new)}; it is read until version {renamed.goes}"
                deprecated.append(problem_at(at, (*path, old), told, f"write: {renamed.to}:"))
            tree = _replaced(tree, path, _with_new_name(table, old, renamed.to))
    return tree, problems, deprecated


def new_name(path: Path, word: str) -> str:
    """*word* below *path*, or the new name if it is an old one."""
    renamed = keys.RENAMED.get((*_pattern_of(path), word))
    return word if renamed is None else renamed.to


def _pattern_of(path: Path) -> Path:
    if path[:1] == ("defaults",):
        return ("upstreams", "<name>", *path[1:])
    return ("upstreams", "<name>", *path[2:]) if path[:1] == ("upstreams",) and len(path) > 1 else path


def _sections(tree: Table, pattern: Path) -> Iterator[Path]:
    """The paths of *pattern* that *tree* has a table at: for `<name>` those of every upstream, and `defaults`."""
    starts: list[tuple[Path, Path]] = [((), pattern)]
    if pattern[:2] == ("upstreams", "<name>"):
        upstreams = tree.entries.get("upstreams")
        names = upstreams.entries if isinstance(upstreams, Table) else ()
        starts = [(path, pattern[2:]) for path in (("defaults",), *(("upstreams", name) for name in names))]
    for start, rest in starts:
        node: Node | None = tree
        for part in (*start, *rest):
            node = node.entries.get(str(part)) if isinstance(node, Table) else None
        if isinstance(node, Table):
            yield (*start, *rest)


def _table_at(tree: Table, path: Path) -> Table:
    """The table at *path*, which there is."""
    node: Node = tree
    for part in path:
        assert isinstance(node, Table)
        node = node.entries[str(part)]
    assert isinstance(node, Table)
    return node


def _with_new_name(table: Table, old: str, new: str) -> Table:
    """*table* with *new* in the place of *old*; where it has both, without *old*."""
    has_both = new in table.entries
    names = {name: new if name == old else name for name in table.entries if not (has_both and name == old)}
    return Table(
        {names[name]: table.entries[name] for name in names},
        {names[name]: table.key_marks[name] for name in names},
        table.mark,
    )


def _replaced(tree: Table, path: Path, table: Table) -> Table:
    """*tree* with *table* at *path*."""
    if not path:
        return table
    first = str(path[0])
    below = tree.entries[first]
    assert isinstance(below, Table)
    return Table({**tree.entries, first: _replaced(below, path[1:], table)}, tree.key_marks, tree.mark)
