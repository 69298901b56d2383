"""Keys that have got another name: the old one is read as the new one for a time, and told of.

`docs/versions.md` promises that time. `keys.RENAMED` is the one list of them; the day a key goes, its row moves on to
`keys.GONE`, where its name is refused with a reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from headrace.config.check.problems import Path, Problem, dotted
from headrace.config.explain import keys
from headrace.config.source.tree import Table, key_mark_of, node_at, problem_at


def with_new_names(tree: Table, trees: Sequence[Table]) -> tuple[Table, list[Problem], list[Problem]]:
    """*tree* with each old name replaced by the new one; problems, where both are given; and what is deprecated.

    A value keeps the mark of where it was written. *tree* is not changed.

    Args:
        trees: Those of all sources, as they were: the new name may be given in another one.
    """
    problems: list[Problem] = []
    deprecated: list[Problem] = []
    for pattern, renamed in keys.RENAMED.items():
        old = str(pattern[-1])
        for path in tuple(_sections(tree, pattern[:-1])):
            table = node_at(tree, path)
            if not isinstance(table, Table) or old not in table:
                continue
            at, new = key_mark_of(tree, (*path, old)), (*path, renamed.to)
            giving = next((one for one in (tree, *trees) if node_at(one, new) is not None), None)
            if giving is not None:
                mark = key_mark_of(giving, new)
                where = f" at line {mark.line}" if mark.line and mark.file == at.file else ""
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


def settled(path: Path) -> Path:
    """*path* by the new names."""
    done: Path = ()
    for part in path:
        done = (*done, new_name(done, part) if isinstance(part, str) else part)
    return done


def _pattern_of(path: Path) -> Path:
    if path[:1] == ("defaults",):
        return ("upstreams", "<name>", *path[1:])
    return ("upstreams", "<name>", *path[2:]) if path[:1] == ("upstreams",) and len(path) > 1 else path


def _sections(tree: Table, pattern: Path) -> Iterator[Path]:
    """The paths that *pattern* may mean in *tree*: for `<name>` those of every upstream, and `defaults`."""
    if pattern[:2] != ("upstreams", "<name>"):
        yield pattern
        return
    upstreams = tree.get("upstreams")
    yield ("defaults", *pattern[2:])
    for name in upstreams if isinstance(upstreams, Table) else ():
        yield ("upstreams", name, *pattern[2:])


def _with_new_name(table: Table, old: str, new: str) -> Table:
    """*table* with *new* in the place of *old*; where it has both, without *old*."""
    has_both = new in table
    names = {name: new if name == old else name for name in table if not (has_both and name == old)}
    return Table(
        {names[name]: table[name] for name in names},
        {names[name]: mark for name, mark in table.key_marks.items() if name in names},
        table.mark,
    )


def _replaced(tree: Table, path: Path, table: Table) -> Table:
    """*tree* with *table* at *path*."""
    if not path:
        return table
    first = str(path[0])
    below = tree[first]
    assert isinstance(below, Table)
    return Table({**tree, first: _replaced(below, path[1:], table)}, tree.key_marks, tree.mark)
