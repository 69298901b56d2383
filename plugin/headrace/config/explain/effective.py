"""The values in force for one upstream, as text, and where each comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from headrace.config.check.problems import Path, dotted
from headrace.config.explain.keys import Key, key_at, yaml_text
from headrace.config.settings import SECRET_KEY, Backoff, Pool, Settings, Timeouts
from headrace.config.source.tree import MASK, leaves, node_at
from headrace.config.source.written import Rank, Written
from headrace.policy.plan import UrlPrefix
from headrace.policy.routes import url_of

_DEFAULTS: Mapping[tuple[str, ...], Any] = {
    ("timeouts",): Timeouts(),
    ("pool",): Pool(),
    ("retry", "backoff"): Backoff(),
}
_CUTTING_LIMITS = {  # limits that cut a default
    ("timeouts",): (("timeouts", "deadline"), ("timeouts", "attempt"), ("timeouts", "connect")),
    ("pool",): (("pool", "max_connections"), ("pool", "idle_timeout")),
    ("retry", "backoff"): (("retry", "backoff", "max"),),
}


class EffectiveValues:
    """Effective values of one upstream as text, secrets masked, and where each was written."""

    def __init__(self, settings: Settings, written: Written, name: str) -> None:
        self.settings = settings
        self.written = written
        self.base: Path = ("upstreams", name)

    def text(self, *path: str) -> str:
        """The value at *path* below the upstream, or the mask."""
        around = _CUTTING_LIMITS[path[:-1]] if self._is_cut(path) else ()
        is_secret = path[-1:] == SECRET_KEY and self._value(path) is not None
        if is_secret or any(self._is_hidden((*self.base, *limit)) for limit in (path, *around)):
            return MASK
        return _value_text(self._value(path))

    def who(self, *path: str | int) -> str:
        """Where the value at *path* was written, such as `upstreams.yaml:12`, or `built-in default`."""
        full = (*self.base, *path)
        written = self.written
        rank = written.rank(full)
        if rank is Rank.BUILT_IN:
            return "built-in default, cut to fit" if self._is_cut(path) else "built-in default"
        mark = written.mark(full)
        place = f"{mark.file}:{mark.line}" if mark.line else mark.file
        if rank is Rank.OWN:
            return place
        origin = written.origin(full)
        source = "defaults" if origin[0] == "defaults" else f"extends {origin[1]}"
        return f"{source}, {place}"

    def _value(self, path: tuple[str, ...]) -> Any:
        value: Any = self.settings.upstreams[str(self.base[1])]
        for part in path:
            value = value[part] if isinstance(value, dict) else getattr(value, part)
        return value

    def _is_cut(self, path: tuple[str | int, ...]) -> bool:
        """Whether the value at *path* is a default that a written limit around it has cut (`settings.Timeouts`)."""
        names = tuple(map(str, path))
        default = _DEFAULTS.get(names[:-1])
        if default is None or self.written.is_given((*self.base, *path)):
            return False
        return bool(self._value(names) != getattr(default, names[-1]))

    def is_given(self, *path: str) -> bool:
        """Whether a value is written at *path*, inherited ones included."""
        return self.written.is_given((*self.base, *path))

    def words(self, *path: str) -> list[str | int]:
        """The words of the list at *path*."""
        return list(self._value(path))

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Name, value and place of every key, in the order of the file."""
        key = key_at(self.base)
        assert key is not None
        yield from self._rows(key, ())

    def _rows(self, parent: Key, path: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
        for name, key in parent.children.items():
            full = (*path, name)
            if key.children and not (key.is_nullable and self._value(full) is None):
                yield from self._rows(key, full)
            elif full == ("headers",) and (headers := self.settings.upstreams[str(self.base[1])].headers):
                for header in headers:
                    yield f"headers.{header}", MASK, self.who("headers", header)
            else:
                yield dotted(full), self.text(*full), self.who(*full)

    def _is_hidden(self, path: Path) -> bool:
        node = node_at(self.written.tree, path)
        if node is None:
            return False
        for below, leaf in leaves(node, path):
            key = key_at(below)
            # A number or a word of ours that a HEADRACE_ variable has set is no secret. Text may be one.
            harmless = (
                leaf.mark.file.startswith("environment ") and key is not None and not _may_be_secret(key)
            )
            if leaf.secret and not harmless:
                return True
        return False


def _may_be_secret(key: Key) -> bool:
    return key.is_text and not key.choices


def _value_text(value: Any) -> str:
    if isinstance(value, UrlPrefix):
        return url_of(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_value_text, value))}]"
    return yaml_text(value)
