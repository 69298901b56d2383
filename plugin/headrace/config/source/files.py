"""Files that a configuration is made of: each is read once, with a limit, and remembered."""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path as FilePath

from headrace.bounded import ReadingError as ReadingError
from headrace.bounded import read_bounded
from headrace.policy.secret import is_header_value

MAX_SECRET_BYTES = 64 << 10

_MARKS = (  # UTF-32's first: that of its little-endian form begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks, and how to read what follows (YAML 1.2.2 §5.2). PowerShell's `>` writes UTF-16 with one."""


def text_of(content: bytes) -> str:
    """*content* as text, without a byte order mark: UTF-16 or UTF-32 where it begins with theirs, else UTF-8.

    Raises:
        UnicodeDecodeError: It is none of these.
    """
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    return (
        content.removeprefix(codecs.BOM_UTF8).decode("utf-8")
        if encoding is None
        else content.decode(encoding)
    )


def text_of_secret(content: bytes) -> str:
    """*content* of a file that holds one value, as text.

    Editors and `echo` end it with one newline, which nobody means.

    Raises:
        UnicodeDecodeError: It is no text.
    """
    text = text_of(content)
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


def read_secret(path: str) -> str:
    """What the file *path*, absolute, holds for a header's value, by the rules of a load. Blocks for a small file.

    Raises:
        ReadingError: It cannot be read, is empty, or holds what no header may. While a writer is at work it may be so.
    """
    content = read_bounded(path, MAX_SECRET_BYTES)
    try:
        text = text_of_secret(content)
    except UnicodeDecodeError:
        raise ReadingError("is not UTF-8 text") from None
    if not text or not is_header_value(text):
        raise ReadingError("is empty" if not text else "holds what no header may")
    return text


class Reader:
    """Reads files relative to one working directory and keeps account of what was read.

    Args:
        given: Contents that somebody has read already, by name: they are taken for those of such files.

    Attributes:
        watched: Absolute paths of every file asked for, in order, missing ones
            included: when one appears, that is a change too.
    """

    def __init__(self, cwd: FilePath, given: Mapping[str, bytes] | None = None) -> None:
        self.cwd = cwd
        self._given = {self.absolute(name): content for name, content in (given or {}).items()}
        self.watched: dict[str, None] = {}
        self._contents: dict[str, bytes | ReadingError] = {}
        self._known_by: dict[str, str] = {}
        self._noted: dict[str, bytes] = {}
        self._is_in_headers_only: dict[str, bool] = {}

    def absolute(self, name: str) -> str:
        """*name* against the working directory, symlinks kept: a ConfigMap swaps them. Never raises."""
        try:
            path = FilePath(name).expanduser()
        except (
            RuntimeError,
            ValueError,
        ):  # there is no such home: the name is then like any other, and no file has it
            path = FilePath(name)
        return os.path.normpath(self.cwd / path)

    def read(self, name: str, *, limit_bytes: int, known_by: str = "", is_in_header: bool = False) -> bytes:
        """The content of the regular file *name*, at most *limit_bytes*. No more than that is read.

        Args:
            known_by: What its name says beside its content, for the digest: which key a secret is for.
            is_in_header: It is a part of a header's value.

        Raises:
            ReadingError: Missing, unreadable, not a regular file, or longer.
        """
        path = self.absolute(name)
        self._is_in_headers_only[path] = is_in_header and self._is_in_headers_only.get(path, True)
        content = self._contents.get(path)
        if content is None:
            self._known_by[path] = known_by
            content = self._given.get(path)
            if content is None:
                self.watched[path] = None
                content = _content(path, limit_bytes)
            self._contents[path] = content
        if isinstance(content, ReadingError):
            raise content
        return content

    def prints(self) -> dict[str, bytes]:
        """SHA-256 of the content of each watched file that could be read: what the watcher takes one for (a test)."""
        return {
            path: hashlib.sha256(content).digest()
            for path in self.watched
            if isinstance(content := self._contents.get(path), bytes)
        }

    def in_headers_only(self) -> dict[str, str]:
        """What the files hold that are parts of headers' values and nothing else, by path."""
        return {
            path: text_of_secret(content)
            for path, is_one in self._is_in_headers_only.items()
            if is_one and isinstance(content := self._contents.get(path), bytes)
        }

    def note(self, variable: str, value: str) -> str:
        """Remember for the digest that the configuration depends on *variable*. Answers its *value*."""
        self._noted[f"env:{variable}"] = value.encode(errors="surrogateescape")
        return value

    def digest(self) -> str:
        """Hex SHA-256 over everything read and noted: files in the order of reading, the rest by name.

        Workers and hosts are compared by it, and a release may lie in another folder on each. Where a file is, it
        therefore does not tell. What is read, and in which order, the contents of the first files say.
        What only headers hold does not count: tokens that are rotated every five minutes would tell workers apart.
        """
        total = hashlib.sha256()
        parts = {
            f"file:{position:06}:{self._known_by[path]}": b""
            if isinstance(content, ReadingError) or self._is_in_headers_only[path]
            else content
            for position, (path, content) in enumerate(self._contents.items())
        } | self._noted
        for name, content in sorted(parts.items()):
            for part in (
                name.encode(errors="surrogateescape"),
                content,
            ):
                total.update(len(part).to_bytes(8, "big"))
                total.update(part)
        return total.hexdigest()


def _content(path: str, limit_bytes: int) -> bytes | ReadingError:
    try:
        return read_bounded(path, limit_bytes)
    except ReadingError as error:
        return error
