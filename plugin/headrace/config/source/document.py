"""YAML text to a marked tree, read the YAML 1.2 way. The only module that knows PyYAML.

The tree is built from the parser's *events*, not from composed nodes. The
composer of the C loader recurses in C: ten thousand `[` end the process. It expands
nothing, but it also limits nothing, and it resolves the YAML 1.1 way. Events come one
by one, so the limits of depth and aliases hold before memory is spent.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

from headrace.config.check.problems import MAX_PROBLEMS, Path, Problem
from headrace.config.source.blocks import Blocks, kept_of, read_with
from headrace.config.source.files import text_of
from headrace.config.source.tree import (
    Listing,
    Mark,
    Node,
    Scalar,
    ScalarValue,
    Table,
    base_of,
    found,
    mark_at,
    number_at,
    problem_at,
)

if TYPE_CHECKING:  # it reads its examples with `resolve`
    from headrace.config.explain.keys import Key

MAX_DOCUMENT_BYTES = 4 << 20
"""4 MiB: a thousand upstreams with every key spelt out take 2.2."""
MAX_DEPTH = 32
"""Nesting; the deepest key there is has a depth of 6."""
MAX_ALIASED_NODES = 20_000
"""Nodes that all aliases of a file may stand for, in sum."""
MAX_NODES = 600_000
"""Keys and values of one file. A thousand upstreams with every key spelt out have 238,000; 4 MiB of dashes have two
million. Each takes 4 µs to read (20 with the Python loader).
"""

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+", re.ASCII)
_PREFIXED_INT = re.compile(r"0(?:o[0-7]+|x[0-9a-fA-F]+)", re.ASCII)
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", re.ASCII)
_INF_NAN = {
    **{sign + word: float(sign + "inf") for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")},
    **{word: float("nan") for word in (".nan", ".NaN", ".NAN")},
}
_TOO_DEEP = f"is nested more than {MAX_DEPTH} levels deep; no key is"
_TOO_MANY = (
    f"is where reading stopped, after {MAX_NODES:,} keys and values; a configuration has not that many"
)
_NOT_YAML = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ODD_SPACE = re.compile("[\u00a0\u2000-\u200b\u202f\u205f\u2060\u3000\ufeff]")
"""What looks like a space or like nothing, and is neither to YAML: it comes with text from web pages and chats."""
_NO_MARK = "is UTF-16 without a byte order mark, or no text at all"
_MAX_DIGITS = 300  # beyond that int() gets slow, and from 4300 on it refuses


class DocumentError(Exception):
    """Text that is not one readable YAML document.

    Attributes:
        problems: What is wrong, at least one.
        tree: What could be read all the same, so that the rest of the file can be checked as well; or None.
    """

    def __init__(self, problems: list[Problem], tree: Table | None = None) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems
        self.tree = tree


def read_document(content: bytes, file: str, kept: dict[str, Blocks] | None = None) -> Table:
    """The marked tree of one YAML file.

    Args:
        content: The bytes of the file.
        file: Its name in every mark.
        kept: What files have said before, by name: what says the same is not parsed anew. Mutates.

    Raises:
        DocumentError: Too long, not UTF-8, not YAML, empty, several documents,
            not a map, or something of YAML that a configuration must not have.
    """
    if len(content) > MAX_DOCUMENT_BYTES:
        raise _refused(
            Mark(file),
            f"is longer than {MAX_DOCUMENT_BYTES >> 20} MiB; a configuration is not that long",
            "check that this is the file you mean, or split it",
        )
    text = _decode(content, file)
    if kept is not None and (known := _read_with(kept, file, text)) is not None:
        return known
    builder = _Builder(file, text)
    root = builder.build()
    if root is None:
        raise _refused(Mark(file, 1, 1), "is empty; a configuration names at least one upstream", MINIMAL)
    if not isinstance(root, Table):
        raise _refused(root.mark, f"must be a map of keys; found {found(root)}", MINIMAL)
    if kept is not None:
        kept[file] = {} if builder.anchors else kept_of(text, root)
    return root


def _read_with(kept: dict[str, Blocks], file: str, text: str) -> Table | None:
    """The tree of *text* by means of what *file* said before; None: it has to be parsed. Mutates *kept*."""

    def parse(part: str, first_line: int, depth: int) -> tuple[Table, int] | None:
        builder = _Builder(file, part, first_line=first_line, depth=depth)
        try:
            root = builder.build()
        except DocumentError:
            return None
        return (root, builder.node_count) if isinstance(root, Table) and not builder.anchors else None

    known = read_with(kept.get(file, {}), text, parse=parse, most_nodes=MAX_NODES)
    if known is None:
        return None
    root, kept[file] = known
    return root


MINIMAL = "for example: upstreams: {billing: {base_url: https://billing.internal}}"


def read_flow(text: str, file: str, key: Key | None = None) -> Node:
    """*text* of one value as a YAML plain scalar, or as a flow list or map when it begins like one.

    Environment variables and secret files hold such texts.

    Args:
        key: The key that it is the value of, if known: some want text, whatever it looks like.

    Raises:
        DocumentError: A list or map that is not YAML, too deep or too large.
    """
    mark = Mark(file)
    if text[:1] not in ("[", "{"):
        return _marked_secret(Scalar(resolve(text), text, mark), mark, key)
    try:
        node = _Builder(file, _decode(text.encode(errors="surrogateescape"), file)).build()
    except DocumentError as error:
        # Positions inside mean nothing here. The parser may quote a secret; the words of the limits do not.
        limits = [problem.message for problem in error.problems if problem.message in (_TOO_DEEP, _TOO_MANY)]
        raise _refused(mark, *limits or ["begins like a YAML list or map but is not one"]) from None
    return _marked_secret(node, mark, key) if node is not None else Scalar(None, "", mark)


def resolve(text: str) -> ScalarValue:
    """*text* of a plain scalar as the YAML 1.2 core schema reads it.

    `on`, `no`, `1:30` and dates are text, `010` is ten, `0o10` is eight.
    Source: YAML 1.2.2 §10.3.2.
    """
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if text[0] not in "+-.0123456789":
        return text
    if len(text) > _MAX_DIGITS:
        return text
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _PREFIXED_INT.fullmatch(text):
        return int(text, 0)
    return _INF_NAN.get(text, text)


def _decode(content: bytes, file: str) -> str:
    try:
        text = text_of(content)
    except UnicodeDecodeError as error:
        if error.encoding != "utf-8":
            raise _refused(
                Mark(file, 1, 1),
                "begins as UTF-16 or UTF-32, and does not go on so",
                "save the file as UTF-8",
            ) from None
        content = error.object  # without a mark
        if b"\0" in content[:2]:
            raise _refused(Mark(file, 1, 1), _NO_MARK, "save the file as UTF-8") from None
        line = content.count(b"\n", 0, error.start) + 1
        start = content.rfind(b"\n", 0, error.start) + 1
        column = len(content[start : error.start].decode("utf-8")) + 1
        raise _refused(
            Mark(file, line, column),
            f"is not UTF-8; found the byte 0x{content[error.start]:02x}",
            "save the file as UTF-8",
        ) from None
    if "\0" in text[:2]:
        raise _refused(Mark(file, 1, 1), _NO_MARK, "save the file as UTF-8")
    bad = _NOT_YAML.search(text)
    if bad is not None:
        line = text.count("\n", 0, bad.start()) + 1
        column = bad.start() - text.rfind("\n", 0, bad.start())
        raise _refused(
            Mark(file, line, column),
            f"has the character U+{ord(bad.group()):04X}, which YAML does not allow",
            "remove it, or write it as an escape in double quotes",
        )
    return text


class _Builder:
    """Builds the tree of one text from parser events. Goes on after a problem wherever it can."""

    def __init__(self, file: str, text: str, *, first_line: int = 1, depth: int = 0) -> None:
        self.file = file
        self.text = text
        self.base = base_of(file)
        self.first_line = first_line
        self.depth = depth
        self.problems: list[Problem] = []
        self.anchors: dict[str, tuple[Node, int]] = {}
        self.open_anchors: set[str] = set()
        self.aliased_nodes = 0
        self.node_count = 0
        self.references = 0  # values with ${ so far

    def build(self) -> Node | None:
        root: Node | None = None
        try:
            root = self._read()
        except _Stop as stop:
            self.problems.append(stop.problem)
        except yaml.YAMLError as error:
            self.problems.append(self._limit_before(error) or self._syntax_problem(error))
        if self.problems:
            raise DocumentError(self.problems, root if isinstance(root, Table) else None)
        if isinstance(root, Scalar) and root.value is None and root.plain:
            return None
        return root

    def _read(self) -> Node | None:
        loader = LOADER(self.text)
        root: Node | None = None
        documents = 0
        try:
            next_event = loader.get_event
            while True:
                event = next_event()
                kind = type(event)
                if kind is yaml.StreamEndEvent:
                    break
                if kind is yaml.DocumentStartEvent:
                    documents += 1
                    if documents == 2:
                        self._add(
                            event,
                            (),
                            "is the start of a second YAML document",
                            "keep one, or use several files",
                        )
                        break
                elif kind not in (yaml.StreamStartEvent, yaml.DocumentEndEvent):
                    root = self._node(event, next_event, (), self.depth)
        finally:
            loader.dispose()
        return root

    # One function for all kinds: the time of a long file is spent here. It recurses to MAX_DEPTH at most.
    def _node(self, event: Any, next_event: Any, path: Path, depth: int) -> Node:
        self.node_count += 1
        if self.node_count > MAX_NODES:
            raise _Stop(
                self._mark(event), path[:2], _TOO_MANY, "check that this is the file you mean, or split it"
            )
        kind = type(event)
        if kind is yaml.AliasEvent:
            return self._alias(event, path)
        if event.tag is not None:
            self._add(
                event,
                path,
                f"carries the YAML tag {_tag_name(event.tag)}; tags are not read",
                "remove the tag",
            )
        mark = self._number(event)
        if kind is yaml.ScalarEvent:
            value = event.value
            unquoted = event.style is None or event.style == ""
            self.references += "${" in value
            node: Node = Scalar(resolve(value) if unquoted else value, value, mark, unquoted)
            if event.anchor is not None:
                self.anchors[event.anchor] = (node, 1)
            return node
        if depth >= MAX_DEPTH:
            raise _Stop(
                mark_at(mark),
                path[:2],
                _TOO_DEEP,
                "remove the brackets, braces or dashes too many from here on",
            )
        anchor = event.anchor
        before = self.node_count
        if anchor is not None:
            self.open_anchors.add(anchor)
        if kind is yaml.SequenceStartEvent:
            items: list[Node] = []
            while type(event := next_event()) is not yaml.SequenceEndEvent:
                items.append(self._node(event, next_event, (*path, len(items)), depth + 1))
            node = Listing(items, mark)
        else:
            node = self._table(mark, next_event, path, depth)
        if anchor is not None:
            self.open_anchors.discard(anchor)
            self.anchors[anchor] = (node, self.node_count - before + 1)
        return node

    # What is refused here stays in the tree as far as it can be guessed what it should be: the file is refused in any
    # case, and what is missing from the tree would be told as a second problem.
    def _table(self, mark: int, next_event: Any, path: Path, depth: int) -> Table:
        merged: list[Node] = []
        key_marks: dict[str, int] = {}
        table = Table({}, key_marks, mark)
        references = self.references
        while type(event := next_event()) is not yaml.MappingEndEvent:
            key_mark = self._number(event)
            key, is_text = self._key(event, next_event, path, depth)
            child = self._node(next_event(), next_event, (*path, key) if is_text else path, depth + 1)
            if key == "<<":
                merged += child.items if isinstance(child, Listing) else [child]
                self._say(
                    mark_at(key_mark),
                    (*path, key),
                    "merge keys are not read (YAML 1.2 has none)",
                    "use defaults: for what all upstreams share, extends: for what some share",
                )
            elif key in table:
                if not is_text:
                    continue
                self._say(
                    mark_at(key_mark),
                    (*path, key),
                    f"is given twice; it is at line {mark_at(key_marks[key]).line} already",
                    "keep one of the two",
                )
            else:
                table[key] = child
                key_marks[key] = key_mark
        for under in merged:
            if isinstance(under, Table):
                table = Table({**under, **table}, {**under.key_marks, **table.key_marks}, mark)
        table.may_refer = self.references > references
        return table

    def _key(self, event: Any, next_event: Any, path: Path, depth: int) -> tuple[str, bool]:
        """The key that begins with *event*, or its text, and whether it is one."""
        # Nearly every key is a word. A node for each, only to take its text, was a tenth of the time of a long file.
        is_bare = type(event) is yaml.ScalarEvent and event.tag is None and event.anchor is None
        if is_bare and (event.style or type(resolve(event.value)) is str) and self.node_count < MAX_NODES:
            self.node_count += 1
            return event.value, True
        node = self._node(event, next_event, path, depth + 1)
        if isinstance(node, Scalar) and isinstance(node.value, str):
            return node.value, True
        fix = f'write: "{node.text}":' if isinstance(node, Scalar) and node.value is not None else ""
        self._add(event, path, f"keys must be text; found {found(node)} as a key", fix)
        return node.text if isinstance(node, Scalar) else "?", False

    def _alias(self, event: Any, path: Path) -> Node:
        mark = self._mark(event)
        if event.anchor in self.open_anchors:
            self._say(mark, path, f"the alias *{event.anchor} stands inside what it names")
            return Scalar(None, "", mark)
        known = self.anchors.get(event.anchor)
        if known is None:
            self._say(mark, path, f"the alias *{event.anchor} has no anchor &{event.anchor} before it")
            return Scalar(None, "", mark)
        node, size = known
        self.references += 1  # there may be one in it
        # The nodes that an alias stands for count at each use, so that aliases of aliases add up too.
        self.node_count += size
        self.aliased_nodes += size
        if self.aliased_nodes > MAX_ALIASED_NODES:
            raise _Stop(
                mark,
                path,
                f"aliases expand to more than {MAX_ALIASED_NODES} values",
                "use defaults: for what all upstreams share, extends: for what some share",
            )
        return node

    def _number(self, event: Any) -> int:
        start = event.start_mark
        return number_at(self.base, start.line + self.first_line, start.column + 1)

    def _mark(self, event: Any) -> Mark:
        return mark_at(self._number(event))

    def _add(self, event: Any, path: Path, message: str, fix: str = "") -> None:
        self._say(self._mark(event), path, message, fix)

    def _say(self, mark: Mark, path: Path, message: str, fix: str = "") -> None:
        if len(self.problems) >= MAX_PROBLEMS:
            raise _Stop(mark, path, f"is where reading stopped, after {MAX_PROBLEMS} problems")
        self.problems.append(problem_at(mark, path, message, fix))

    def _limit_before(self, error: Any) -> Problem | None:
        """The limit of ours that the text had reached where the parser stopped with *error*, or None.

        A scanner reads up to 1,024 characters ahead of its events: a colon there would make them a key.
        An error that it meets there is raised before our limits are reached. So is the nesting that libyaml
        has refused by itself since 0.2.6. If the text is cut off at that place, the events do come.
        """
        mark = getattr(error, "problem_mark", None)
        if mark is None:
            return None
        try:
            _Builder(self.file, self.text[: mark.index])._read()
        except _Stop as stop:
            return stop.problem
        except yaml.YAMLError:
            pass
        return None

    def _syntax_problem(self, error: Any) -> Problem:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        if mark is None:
            return problem_at(Mark(self.file, 1, 1), (), "is not YAML")
        words = (getattr(error, "problem", None) or "cannot be read").strip()
        context = (getattr(error, "context", None) or "").strip()
        lines = self.text.splitlines() or [""]
        line = lines[min(mark.line, len(lines) - 1)]
        # The mark may be on a line behind the last.
        is_at_end = mark.line >= len(lines) or not any(
            map(str.strip, (line[mark.column :], *lines[mark.line + 1 :]))
        )
        odd = next(
            (
                found
                for one in lines[max(mark.line - 1, 0) : mark.line + 1]
                if (found := _ODD_SPACE.search(one))
            ),
            None,
        )
        if odd is not None:
            fix = f"there is a U+{ord(odd.group()):04X} where a plain space looks the same: write that"
        elif "${" in line and ("{" in line.split("${")[0] or "[" in line.split("${")[0]):
            fix = 'inside [ ] and { } quote it: "${env:NAME}"'
        elif is_at_end and ("expected" in words or "unexpected end" in words):
            fix = "the file may be cut off: check its end"
        elif "\\t" in words or "\t" in line[: mark.column + 1]:
            fix = "indent with spaces, not with tabs"
        else:
            fix = "check the indentation, quotes and brackets here and above"
        message = f"is not YAML: {context + ', ' if context else ''}{words}"
        return problem_at(Mark(self.file, mark.line + 1, mark.column + 1), (), message, fix)


class _Stop(yaml.YAMLError):
    """A limit is reached. Reading on is what that limit is there to prevent."""

    def __init__(self, mark: Mark, path: Path, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.problem = problem_at(mark, path, message, fix)


def _marked_secret(node: Node, mark: Mark, key: Key | None) -> Node:
    if isinstance(node, Scalar):
        as_text = node.plain and key is not None and key.takes_text(node.value)
        return Scalar(node.value, node.text, mark, node.plain, secret=True, as_text=as_text)
    if isinstance(node, Listing):
        return Listing([_marked_secret(child, mark, key and key.item) for child in node.items], mark)
    entries = {name: _marked_secret(child, mark, key and key.child(name)) for name, child in node.items()}
    return Table(entries, {}, mark)


def _tag_name(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!")


def _refused(mark: Mark, message: str, fix: str = "") -> DocumentError:
    return DocumentError([problem_at(mark, (), message, fix)])
