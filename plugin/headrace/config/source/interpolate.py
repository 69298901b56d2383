"""`${env:NAME}`, `${env:NAME:-default}` and `${file:/run/secrets/x}` in the values of a tree.

What comes from outside is a secret from here on. The nodes that hold it are
marked, and no message ever shows a marked value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from headrace.config.check.problems import Path, Problem
from headrace.config.explain.keys import key_at
from headrace.config.source.document import resolve
from headrace.config.source.files import MAX_SECRET_BYTES, Reader, ReadingError, text_of_secret
from headrace.config.source.renames import settled
from headrace.config.source.tree import Listing, Mark, Node, Scalar, Table, problem_at
from headrace.policy.plan import FilePart

REFERENCE_PATTERN = r"\$\{(env:[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?|file:[^}]+)\}"
"""One reference, for the JSON Schema."""

_TOKEN = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")
_ENV = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)


class _Unresolved(Exception):
    """A reference that leads nowhere. The text never holds a value of outside."""

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix


class Interpolation:
    """Replaces references in one tree. Reads files through *reader*, which remembers them.

    Attributes:
        made_of_files: The parts of each header's value and of each passphrase that a file is a part of, by where it is
            written.
    """

    def __init__(self, env: Mapping[str, str], reader: Reader) -> None:
        self.env = env
        self.reader = reader
        self.problems: list[Problem] = []
        self.made_of_files: dict[Mark, tuple[str | FilePart, ...]] = {}

    def resolve_tree(self, node: Node, path: Path = ()) -> Node:
        """*node* with every reference replaced; subtrees without one are the same objects."""
        if isinstance(node, Scalar):
            if isinstance(node.value, str) and "${" in node.value:
                return self._scalar(node, path)
            return node
        if isinstance(node, Table):
            if not node.may_refer:
                return node
            replaced = {}
            for key, child in node.items():
                new = self.resolve_tree(child, (*path, key))
                if new is not child:
                    replaced[key] = new
            return Table({**node, **replaced}, node.key_marks, node.mark) if replaced else node
        items = [self.resolve_tree(child, (*path, index)) for index, child in enumerate(node.items)]
        return (
            node
            if all(new is old for new, old in zip(items, node.items, strict=True))
            else Listing(items, node.mark)
        )

    def _scalar(self, node: Scalar, path: Path) -> Scalar:
        secret, parts, end = False, list[str | FilePart](), 0
        is_header = path[:1] == ("upstreams",) and path[2:3] == ("headers",)
        is_header = is_header or path[:2] == ("defaults", "headers")
        is_secret = is_header or path[-2:] == ("tls", "key_passphrase")

        def replacement(token: re.Match[str]) -> str:
            nonlocal end
            text = looked_up(token)
            is_file = token.group(1) is not None and token.group(1).startswith("file:")
            name = token.group(1).removeprefix("file:") if is_file else ""
            parts.append(node.text[end : token.start()])
            parts.append(FilePart(self.reader.absolute(name)) if is_file else text)
            end = token.end()
            return text

        def looked_up(token: re.Match[str]) -> str:
            nonlocal secret
            if token.group() == "$${":
                return "${"
            if not token.group(2):
                raise _Unresolved("has ${ without a closing }", "write $${ for the two characters themselves")
            text, from_outside = self._look_up(token.group(1), is_header=is_header)
            secret = secret or from_outside
            return text

        try:
            text = _TOKEN.sub(replacement, node.text)
        except _Unresolved as unresolved:
            self.problems.append(problem_at(node.mark, path, unresolved.message, unresolved.fix))
            return Scalar(None, "", node.mark)
        if is_secret and any(isinstance(part, FilePart) for part in parts):
            self.made_of_files[node.mark] = tuple(part for part in (*parts, node.text[end:]) if part)
        # An escape makes text, whatever it looks like. A reference that is the whole value is read again.
        whole = node.plain and _TOKEN.fullmatch(node.text) is not None and not node.text.startswith("$$")
        value = resolve(text) if whole else text
        as_text = whole and (key := key_at(settled(path))) is not None and key.takes_text(value)
        return Scalar(value, text, node.mark, node.plain, secret=secret, as_text=as_text)

    def _look_up(self, reference: str, *, is_header: bool) -> tuple[str, bool]:
        if reference.startswith("file:"):
            return self._file(reference.removeprefix("file:"), is_header=is_header), True
        if not reference.startswith("env:"):
            scheme = reference.partition(":")[0]
            raise _Unresolved(
                f"has a reference that begins with ${{{scheme[:20]}, which is neither env: nor file:",
                "write ${env:NAME}, ${env:NAME:-default} or ${file:/run/secrets/x}; $${ for a plain ${",
            )
        match = _ENV.fullmatch(reference)
        if match is None:
            raise _Unresolved(
                "has an ${env:…} without a variable's name", "write ${env:NAME} or ${env:NAME:-default}"
            )
        name, default = match.groups()
        value = self.env.get(name)
        if default is not None and not value:  # unset or empty, as in a POSIX shell
            return default, False
        if value is None:
            raise _Unresolved(
                f"needs the environment variable {name}, which is not set",
                f"set {name}, or write ${{env:{name}:-default}}",
            )
        return self.reader.note(name, value), True

    def _file(self, name: str, *, is_header: bool) -> str:
        try:
            content = self.reader.read(name, limit_bytes=MAX_SECRET_BYTES, is_in_header=is_header)
        except ReadingError as error:
            raise _Unresolved(
                f"needs the file {name}, which {error}", "check the path and who may read it"
            ) from None
        try:
            return text_of_secret(content)
        except UnicodeDecodeError:
            raise _Unresolved(f"needs the file {name}, which is not UTF-8 text") from None
