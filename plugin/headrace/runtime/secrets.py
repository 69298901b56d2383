"""Headers that follow files: a token is rotated, and nothing is loaded.

A header such as `Bearer ${file:/run/secrets/token}` has its value from `Secrets`, which knows what each such file held
when it was last read. A file is read again when the watcher finds another content, and when an upstream answers a call
with 401. Neither makes a plan, a snapshot, a pool or a circuit; a load of a thousand upstreams would take a quarter of
a second each time. What is read here is one file, and what is made anew is a tuple for each upstream that is called.

`Secrets.texts` is one reference, replaced as a whole, so calls read it without a lock. `Secrets._lock` guards who reads
which file, and the replacing. Files are read outside of it: who finds that another thread is reading a file waits for
that reading, and so a storm of 401s reads it once.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Final, TypeAlias

from headrace.config.source.files import ReadingError, read_secret
from headrace.observe.events import Event, SecretRenewed
from headrace.observe.logs import emit
from headrace.policy.plan import FilePart, UpstreamPlan
from headrace.policy.secret import Secret

Headers: TypeAlias = tuple[tuple[str, str], ...]
_Mark: TypeAlias = tuple[int, int, int, int, int]

RACY_NS: Final = 2_000_000_000
"""A file that was changed this shortly before it was read may have been changed again since, at the same time and size.

Source: git's index has the same trouble ("racy git"), and file systems with times of two seconds exist.
"""
LONGEST_WAIT_S: Final = 1.0
"""How long a call waits for another thread to read a file that holds one line."""
SHORTEST_WAIT_S: Final = 0.05
"""The same where it must not wait: on the thread of an event loop, which would read it in less."""


class Secrets:
    """What the files of secrets of one instance hold. Thread-safe.

    Attributes:
        texts: By path; replaced as a whole, never changed.
    """

    __slots__ = ("_lock", "_marks", "_readings", "texts")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readings: dict[str, threading.Event] = {}
        self._marks: dict[str, tuple[_Mark, int]] = {}  # of each file as it was read, and when that was
        self.texts: Mapping[str, str] = {}

    def adopt(self, loaded: Mapping[str, str], *, tell: Callable[[Event], object]) -> None:
        """Follow the files of *loaded*, which holds what a load has found in them, and no others. Reads files.

        Args:
            tell: What is told that a file has changed since the load: under whatever lock the caller holds.
        """
        with self._lock:
            for path, text in loaded.items():
                if self.texts.get(path) != text:
                    self._marks.pop(path, None)
            self._marks = {path: mark for path, mark in self._marks.items() if path in loaded}
            self.texts = dict(loaded)
        # The load has read them a moment ago, or just before somebody has replaced them.
        self.look(loaded, tell=tell)

    def look(
        self,
        paths: Collection[str],
        *,
        patience_s: float | None = None,
        asked_by: str = "",
        seen: Mapping[str, str] | None = None,
        tell: Callable[[Event], object] = emit,
    ) -> bool:
        """Read those of *paths* that have changed. Blocks.

        Args:
            patience_s: How long to wait for another thread that is reading one; None: as long as anybody does.
            asked_by: The upstream that has answered 401, for the log.
            seen: The `texts` that the caller knows: what has changed since, is not read again.

        Returns:
            False where one of them cannot be read or used; what it held before goes on to be sent.
        """
        wait_s = (
            LONGEST_WAIT_S if patience_s is None else min(max(patience_s, SHORTEST_WAIT_S), LONGEST_WAIT_S)
        )
        good = [self._look(path, wait_s, asked_by, seen, tell) for path in paths]
        return all(good)

    def forget_inherited(self) -> None:
        """In a forked child: a thread that does not exist here may have been reading."""
        self._lock = threading.Lock()
        self._readings = {}

    def _look(
        self,
        path: str,
        wait_s: float,
        asked_by: str,
        seen: Mapping[str, str] | None,
        tell: Callable[[Event], object],
    ) -> bool:
        done = threading.Event()
        with self._lock:
            if seen is not None and seen.get(path) is not self.texts.get(path):
                return True
            under_way = self._readings.setdefault(path, done)
        if under_way is not done:
            under_way.wait(wait_s)
            return True
        try:
            return self._read(path, asked_by, tell)
        finally:
            with self._lock:
                if self._readings.get(path) is done:
                    del self._readings[path]
            done.set()

    def _read(self, path: str, asked_by: str, tell: Callable[[Event], object]) -> bool:
        now = time.time_ns()
        mark = _mark_of(path)
        known = self._marks.get(path)
        if known is not None and known[0] == mark and known[1] - mark[3] > RACY_NS:
            return True
        try:
            text = read_secret(path)
        except ReadingError:
            return False
        with self._lock:
            self._marks[path] = mark, now
            is_new = path in self.texts and self.texts[path] != text
            if is_new:
                self.texts = {**self.texts, path: text}
        if is_new:
            tell(SecretRenewed(file=path, upstream=asked_by or None))
        return True


class LiveHeaders:
    """The headers of one upstream's rules, some of which follow files. Thread-safe, without a lock.

    It belongs to a plan, and lives for as long as the plan stays the same.
    """

    __slots__ = ("_made", "_names", "_parts", "_plan", "_secrets", "paths")

    def __init__(self, plan: UpstreamPlan, secrets: Secrets) -> None:
        self._plan = plan
        self._secrets = secrets
        self._parts = {header.name: header.parts for header in plan.file_headers}
        self.paths = tuple(
            dict.fromkeys(
                part.path for parts in self._parts.values() for part in parts if isinstance(part, FilePart)
            )
        )
        self._made: tuple[Mapping[str, str] | None, Headers] = (None, plan.headers)

    def now(self) -> Headers:
        """All headers of the rules, as they are sent now. The same object for as long as they are the same."""
        texts, headers = self._made
        if texts is not self._secrets.texts:
            texts = self._secrets.texts
            made = tuple((name, self._value(name, value, texts)) for name, value in self._plan.headers)
            if made != headers:
                headers = made
            self._made = texts, headers
        return headers

    def renew(
        self, sent: Headers, *, but: Collection[str], patience_s: float | None, upstream: str
    ) -> Headers | None:
        """The headers of now, where those that follow files differ from *sent*; else None. Blocks: reads the files.

        Nothing is read where they have changed since *sent* was taken.

        Args:
            but: Headers that the call has set by itself, in lower case.
        """
        names = [name for name in self._parts if name.lower() not in but]
        if not names:
            return None
        seen = self._secrets.texts
        if not _differ(sent, self.now(), names):
            paths = {part.path for name in names for part in self._parts[name] if isinstance(part, FilePart)}
            self._secrets.look(paths, patience_s=patience_s, asked_by=upstream, seen=seen)
        headers = self.now()
        return headers if _differ(sent, headers, names) else None

    def _value(self, name: str, at_load: str, texts: Mapping[str, str]) -> str:
        parts = self._parts.get(name)
        if parts is None:
            return at_load
        found = [texts.get(part.path) if isinstance(part, FilePart) else part for part in parts]
        # A file that the configuration in force does not name any more, for a call that began with one that did.
        return at_load if None in found else Secret("".join(text for text in found if text is not None))


def _differ(before: Headers, after: Headers, names: Collection[str]) -> bool:
    one, other = dict(before), dict(after)
    return any(one.get(name) != other.get(name) for name in names)


def _mark_of(path: str) -> _Mark:
    """What tells another file, or another content, without reading it; zeros for a file that is not to be had."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return (0, 0, 0, 0, 0)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
