"""The tree that a configuration is until it is validated: plain values that know where they were written.

There are three kinds of node: `Scalar`, `Listing`, `Table`. Each has a `Mark`, which is the place where it was
written. A plain dict would do for the values, but not for the messages: an error names the line of the author, and
that line may be in another file, in `defaults`, in the upstream that this one extends, or in a variable, which has no
line. A `Table` is a dict all the same: pydantic-settings merges the sources, and merges nothing but dicts.

Nodes are never changed once they are built. Merging makes new tables and shares the leaves, so a value keeps the
place where it was written, however often it is inherited, and two trees can stand side by side (`Written`). The marks
are the identity of a value, too: whether a value is inherited is seen by comparing marks, not values.

`Scalar.secret` is set where a value came from outside, and merging keeps it. The functions that put a value
into words for people (`found`, `Written.shown`) mask it then.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeAlias

from headrace.config.check.problems import Path, Problem, dotted
from headrace.policy.printable import printable

ScalarValue: TypeAlias = str | int | float | bool | None
Plain: TypeAlias = "ScalarValue | list[Plain] | dict[str, Plain]"
MASK = "***"


class Mark(NamedTuple):
    """Where something is written. Line and column count from 1; 0 where there is none."""

    file: str
    line: int = 0
    column: int = 0


class Scalar:
    """A single value.

    Attributes:
        value: As YAML 1.2 reads it.
        text: As it was written (after interpolation).
        secret: Came, at least in part, from outside the file; never shown.
        as_text: Its type was guessed from text of outside, and its key wants text.
            So `text` is what counts: a password of digits is not a number.
        plain: Written without quotes.
    """

    __slots__ = ("as_text", "mark", "plain", "secret", "text", "value")

    def __init__(
        self,
        value: ScalarValue,
        text: str,
        mark: Mark,
        plain: bool = True,
        secret: bool = False,
        as_text: bool = False,
    ) -> None:
        self.value = value
        self.text = text
        self.mark = mark
        self.plain = plain
        self.secret = secret
        self.as_text = as_text

    def __repr__(self) -> str:
        return f"Scalar({MASK if self.secret else repr(self.value)}, {self.mark})"


class Listing:
    """A YAML sequence."""

    __slots__ = ("items", "mark")

    def __init__(self, items: list[Node], mark: Mark) -> None:
        self.items = items
        self.mark = mark


class Table(dict[str, "Node"]):
    """A YAML mapping; `key_marks` holds where each key is written, if not where its value is."""

    __slots__ = ("key_marks", "mark")
    __repr__ = object.__repr__  # a header's value may be a secret although it is written in the file

    def __init__(self, entries: Mapping[str, Node], key_marks: Mapping[str, Mark], mark: Mark) -> None:
        super().__init__(entries)
        self.key_marks = key_marks
        self.mark = mark

    def copy(self) -> Table:
        """A table of the same nodes. pydantic-settings lays the stronger source's on such a copy of the weaker's."""
        return Table(self, self.key_marks, self.mark)


Node: TypeAlias = Scalar | Listing | Table


def merge(under: Node, over: Node) -> Node:
    """*over* laid on *under*: maps merge, lists and single values replace. Neither is changed."""
    if not (isinstance(under, Table) and isinstance(over, Table)):
        return over
    if not over:
        return under
    # A variable has no line. The file is the better answer to "where is this map?".
    mark = over.mark if over.mark.line or not under.mark.line else under.mark
    merged = Table(under, {**under.key_marks, **over.key_marks}, mark)
    for key, node in over.items():
        below = under.get(key)
        merged[key] = node if below is None else merge(below, node)
    return merged


def plain(node: Node) -> Plain:
    """*node* without its marks."""
    if isinstance(node, Scalar):
        return node.text if node.as_text else node.value
    if isinstance(node, Table):
        return {key: plain(child) for key, child in node.items()}
    return [plain(child) for child in node.items]


def node_at(root: Node, path: Path) -> Node | None:
    """What is written at *path*, or None when nothing is."""
    node: Node = root
    for part in path:
        if isinstance(node, Table) and part in node:
            node = node[str(part)]
        elif isinstance(node, Listing) and isinstance(part, int) and part < len(node.items):
            node = node.items[part]
        else:
            return None
    return node


def mark_of(root: Node, path: Path) -> Mark:
    """Where *path* is written, or the nearest thing around it that is written."""
    while path and node_at(root, path) is None:
        path = path[:-1]
    node = node_at(root, path)
    return root.mark if node is None else node.mark


def key_mark_of(root: Node, path: Path) -> Mark:
    """Where the key at the end of *path* is written."""
    table = node_at(root, path[:-1])
    if isinstance(table, Table) and path and path[-1] in table.key_marks:
        return table.key_marks[str(path[-1])]
    return mark_of(root, path)


def leaves(node: Node, path: Path = ()) -> Iterator[tuple[Path, Scalar]]:
    """Every single value below *node* with its path."""
    if isinstance(node, Scalar):
        yield path, node
    elif isinstance(node, Table):
        for key, child in node.items():
            yield from leaves(child, (*path, key))
    else:
        for index, child in enumerate(node.items):
            yield from leaves(child, (*path, index))


def found(node: Node | None, *, hide: bool = False) -> str:
    """Words for what stands at a place, as error messages use them; masked when it is a secret."""
    if node is None:
        return "nothing"
    if isinstance(node, Table):
        return "a map"
    if isinstance(node, Listing):
        return "a list"
    if hide and not node.secret and isinstance(node.value, bool | int | float):
        return f"a number or a truth value ({MASK})"
    if node.secret or (hide and node.value is not None):
        return MASK
    value = node.value
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {node.text if len(node.text) <= 40 else node.text[:37] + '...'}"
    shown = value if len(value) <= 60 else value[:57] + "..."
    return f'the text "{printable(shown)}"'


def without_user(words: str) -> str:
    """*words*, with everything masked that may be the password of a URL."""
    return re.sub(r"//.*@", f"//{MASK}@", words, flags=re.DOTALL)


def problem_at(mark: Mark, path: Path | str, message: str, fix: str = "") -> Problem:
    """A problem at *mark*."""
    return Problem(
        file=mark.file,
        line=mark.line,
        column=mark.column,
        path=printable(path if isinstance(path, str) else dotted(path)),
        message=message,
        fix=fix,
    )
