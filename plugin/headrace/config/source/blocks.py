"""What a file said about each upstream, for the next time that it is read: what says the same is not parsed anew.

Of a file with a thousand upstreams an edit changes one. To parse the others again is two thirds of a reload, and the
calls under way wait for it. So the text is cut where the block of an upstream begins, and `Blocks` keeps for each the
nodes, by a digest of its text. A block that has moved gets nodes with its new lines.

**When a part may stand for itself.** The parser is in the same state at the begin of each block: it is about to read a
key of the map `upstreams`. What comes of a block is then decided by its text alone. This holds where each place at
which the text was cut is one at which the whole text had its keys (`kept_of` compares the marks), and where nothing
refers across blocks: no anchor, no alias. A new block is parsed alone, so an open bracket or quote is an error at
its end. For any error and for any doubt the answer is None, and the whole text is parsed: no message is made here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import NamedTuple, TypeAlias

from headrace.config.source.tree import Listing, Node, Scalar, Table, below, key_mark_of, mark_at

_HEAD = re.compile(r"^upstreams: *(?:#.*)?\n(?: *(?:#.*)?\n)*(?= +[a-z])", re.MULTILINE)
_KEY = re.compile(r"( +)([a-z][a-z0-9_]*):(?=[ \n]|\Z)")
_END = re.compile(r"^[^ #\n]", re.MULTILINE)
_OTHER_BREAKS = re.compile("[\r\x85\u2028\u2029]")
"""Line breaks to YAML as well. Lines are counted here by the usual one, so a text with these is read as a whole."""
_FEWEST = 50
"""Upstreams below which a file is parsed as a whole each time: that takes less than 10 ms."""
_MOST_NEW = 50
"""New blocks beyond which the whole text is parsed: a file that is another one has nothing to keep."""


class Block(NamedTuple):
    """What one upstream's block has come to.

    Attributes:
        digest: Of its text.
        line: Where it begins, from 1.
        nodes: Keys and values in it; count.
    """

    digest: bytes
    line: int
    key_mark: int
    node: Node
    nodes: int


Blocks: TypeAlias = "Mapping[str, Block]"
"""By name, in the order of the file."""


class _Cut(NamedTuple):
    """A text and where the blocks in it are.

    Attributes:
        head: Where `upstreams:` begins.
        indent: Columns before each name.
        starts: Where the block of each name begins.
        end: Where the last one ends.
    """

    text: str
    head: int
    indent: int
    starts: Mapping[str, int]
    end: int

    def pieces(self) -> dict[str, str]:
        edges = pairwise([*self.starts.values(), self.end])
        return {name: self.text[a:b] for name, (a, b) in zip(self.starts, edges, strict=True)}

    def lines(self) -> dict[str, int]:
        """The line at which each begins."""
        line, at, found = 1, 0, {}
        for name, start in self.starts.items():
            line += self.text.count("\n", at, start)
            at, found[name] = start, line
        return found

    def without(self) -> str:
        """The text with empty lines in place of the blocks."""
        first = next(iter(self.starts.values()))
        return self.text[:first] + "\n" * self.text.count("\n", first, self.end) + self.text[self.end :]


def _cut(text: str) -> _Cut | None:
    head = _HEAD.search(text)
    if head is None or _OTHER_BREAKS.search(text):
        return None
    first = _KEY.match(text, head.end())
    if first is None:
        return None
    indent = len(first[1])
    end = over.start() if (over := _END.search(text, first.start())) else len(text)
    starts: dict[str, int] = {}
    # Each line that is indented so or less; comments are part of the block above them.
    for line in re.finditer(rf"^ {{1,{indent}}}(?=[^ #\n])", text[:end], re.MULTILINE):
        if line.start() < first.start():
            continue
        key = _KEY.match(text, line.start())
        if key is None or len(key[1]) != indent or key[2] in starts:
            return None
        starts[key[2]] = line.start()
    return _Cut(text, head.start(), indent, starts, end) if len(starts) >= _FEWEST else None


def kept_of(text: str, root: Table) -> Blocks:
    """The blocks of *text*, which was parsed as a whole to *root*, without an anchor; none where that is in doubt."""
    upstreams, cut = root.get("upstreams"), _cut(text)
    if cut is None or not isinstance(upstreams, Table) or list(upstreams) != list(cut.starts):
        return {}
    lines = cut.lines()
    if any(
        (mark := mark_at(at)).line != lines[name] or mark.column != cut.indent + 1
        for name, at in upstreams.key_marks.items()
    ):
        return {}
    return {
        name: Block(
            _digest(piece),
            lines[name],
            upstreams.key_marks[name],
            upstreams[name],
            1 + _size_of(upstreams[name]),
        )
        for name, piece in cut.pieces().items()
    }


def read_with(
    kept: Blocks, text: str, *, parse: Callable[[str, int, int], tuple[Table, int] | None], most_nodes: int
) -> tuple[Table, Blocks] | None:
    """The tree of *text*, with the nodes of *kept* where a block says the same, and its own blocks. None: parse it.

    Args:
        parse: A part of the text, its first line, and how deep it stands, to its map and the number of nodes; None
            where it has a problem or an anchor.
        most_nodes: In all of the text.
    """
    cut = _cut(text) if kept else None
    if cut is None:
        return None
    pieces, lines = cut.pieces(), cut.lines()
    digests = {name: _digest(piece) for name, piece in pieces.items()}
    new = [name for name in pieces if name not in kept or kept[name].digest != digests[name]]
    if len(new) > _MOST_NEW or (outer := parse(cut.without(), 1, 0)) is None:
        return None
    root, total = outer
    named, at = root.get("upstreams"), key_mark_of(root, ("upstreams",))
    if not isinstance(named, Scalar) or named.value is not None or named.text:
        return None
    if (at.line, at.column) != (text.count("\n", 0, cut.head) + 1, 1):
        return None  # inside of a text that goes over lines
    blocks: dict[str, Block] = {}
    for name, line in lines.items():
        if name in new:
            parsed = parse(pieces[name], line, 1)
            if parsed is None:
                return None
            table, nodes = parsed
            block = Block(digests[name], line, table.key_marks[name], table[name], nodes)
        else:
            block = _moved(kept[name], line)
        blocks[name] = block
        total += block.nodes
    if total > most_nodes:
        return None
    key_marks = {name: block.key_mark for name, block in blocks.items()}
    entries = {name: block.node for name, block in blocks.items()}
    upstreams = Table(entries, key_marks, next(iter(key_marks.values())))
    return Table({**root, "upstreams": upstreams}, root.key_marks, root.mark), blocks


def _size_of(node: Node) -> int:
    """Keys and values in *node*, itself counted."""
    if isinstance(node, Scalar):
        return 1
    if isinstance(node, Table):
        return 1 + len(node) + sum(map(_size_of, node.values()))
    return 1 + sum(map(_size_of, node.items))


def _digest(piece: str) -> bytes:
    return hashlib.sha256(piece.encode()).digest()


def _moved(block: Block, line: int) -> Block:
    """*block* as it stands from *line* on."""
    by = line - block.line
    if not by:
        return block

    def node(old: Node) -> Node:
        if isinstance(old, Scalar):
            return Scalar(old.value, old.text, below(old.at, by), old.plain)
        if isinstance(old, Listing):
            return Listing([node(child) for child in old.items], below(old.at, by))
        key_marks = {key: below(one, by) for key, one in old.key_marks.items()}
        moved = Table({key: node(child) for key, child in old.items()}, key_marks, below(old.at, by))
        moved.may_refer = old.may_refer
        return moved

    return block._replace(line=line, key_mark=below(block.key_mark, by), node=node(block.node))
