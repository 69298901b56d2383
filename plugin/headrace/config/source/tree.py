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

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

from headrace.config.check.problems import Path, Problem, dotted
from headrace.policy.printable import printable

ScalarValue: TypeAlias = str | int | float | bool | None
Plain: TypeAlias = "ScalarValue | list[Plain] | dict[str, Plain]"
MASK = "***"


_LINE_BITS: Final = 24
"""Enough for a file of 16 MiB, be it one line, or nothing but line breaks; MAX_DOCUMENT_BYTES is a quarter of that."""
_LINE: Final = 1 << _LINE_BITS
_FILE_SHIFT: Final = 2 * _LINE_BITS

_file_names: dict[int, str] = {}
_file_numbers: dict[str, int] = {}
_next_file_number = itertools.count().__next__
"""What marks call their files. Names stay: a process has few of them. Without a lock: each step is one on a dict."""


class Mark(int):
    """Where something is written. Line and column count from 1; 0 where there is none.

    One number, of which the file's is the front part. Nodes keep it as a plain one, and make a mark of it when they are
    asked. A file of 10,000 upstreams has half a million of them: as objects, they were what the garbage collector spent
    most of a load on.
    """

    __slots__ = ()

    def __new__(cls, file: str, line: int = 0, column: int = 0) -> Mark:
        return int.__new__(cls, number_at(base_of(file), line, column))

    @property
    def file(self) -> str:
        return _file_names[self >> _FILE_SHIFT]

    @property
    def line(self) -> int:
        return (self >> _LINE_BITS) & (_LINE - 1)

    @property
    def column(self) -> int:
        return self & (_LINE - 1)

    def __repr__(self) -> str:
        return f"Mark({self.file!r}, {self.line}, {self.column})"


def base_of(file: str) -> int:
    """The number of the mark of *file* that has no line."""
    number = _file_numbers.get(file)
    if number is None:
        _file_names[new := _next_file_number()] = file
        number = _file_numbers.setdefault(file, new)
    return number << _FILE_SHIFT


def number_at(base: int, line: int, column: int) -> int:
    """The number of the mark of a line and column in the file of which *base* is the `base_of`."""
    return base + line * _LINE + column


def below(number: int, lines: int) -> int:
    """The number of the mark so many *lines* further down in the file."""
    return number + lines * _LINE


def mark_at(number: int) -> Mark:
    """The mark that has this *number*."""
    return int.__new__(Mark, number)


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

    __slots__ = ("as_text", "at", "plain", "secret", "text", "value")

    def __init__(
        self,
        value: ScalarValue,
        text: str,
        mark: int,
        plain: bool = True,
        secret: bool = False,
        as_text: bool = False,
    ) -> None:
        self.value = value
        self.text = text
        self.at = int(mark)
        self.plain = plain
        self.secret = secret
        self.as_text = as_text

    @property
    def mark(self) -> Mark:
        return mark_at(self.at)

    def __repr__(self) -> str:
        return f"Scalar({MASK if self.secret else repr(self.value)}, {self.mark})"


class Listing:
    """A YAML sequence."""

    __slots__ = ("at", "items")

    def __init__(self, items: list[Node], mark: int) -> None:
        self.items = items
        self.at = int(mark)

    @property
    def mark(self) -> Mark:
        return mark_at(self.at)


class Table(dict[str, "Node"]):
    """A YAML mapping; `key_marks` holds the number of where each key is written, if not where its value is.

    Attributes:
        may_refer: A `${` may stand below it; False: none does.
    """

    __slots__ = ("at", "key_marks", "may_refer")
    __repr__ = object.__repr__  # a header's value may be a secret although it is written in the file

    def __init__(self, entries: Mapping[str, Node], key_marks: Mapping[str, int], mark: int) -> None:
        super().__init__(entries)
        self.key_marks = key_marks
        self.at = int(mark)
        self.may_refer = True

    @property
    def mark(self) -> Mark:
        return mark_at(self.at)

    def copy(self) -> Table:
        """A table of the same nodes. pydantic-settings lays the stronger source's on such a copy of the weaker's."""
        return Table(self, self.key_marks, self.at)


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
        if isinstance(node, Table):
            below = node.get(part)  # type: ignore[arg-type]  # a number is no key of it
            if below is None:
                return None
            node = below
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
        return mark_at(table.key_marks[str(path[-1])])
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
