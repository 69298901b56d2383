"""Every key of the file, with values to try: what tests that walk them all write down.

The keys are those of the models, and so are most of the values that are tried: choices, default and example. The
others depend on the type of the key alone. So a new key is tried as soon as it is declared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from headrace.config.check.problems import Path as KeyPath
from headrace.config.check.problems import dotted
from headrace.config.explain.keys import Key, key_at, root_key, yaml_text

VALUES: Mapping[str, tuple[str, ...]] = {
    "true or false": ("true", "false"),
    "integer": ("1", "2", "201"),  # a status code is one
    "number": ("0.25", "0.5", "1.5"),
    "duration": ("1s", "2s", "5s"),
    "duration or integer": ("1s", "2s", "50", "60"),
    "size": ("1KiB", "2KiB"),
    "text": ("one", "two"),
    "header name": ("X-One", "X-Two"),
    "path": ("one.pem", "two.pem"),
    "list of SPIFFE id or DNS name": ("[billing.internal]", "[spiffe://prod/a, spiffe://prod/b]"),
    "URL": ("https://one.example", "https://two.example"),
    "name of an upstream": ("one", "two"),
    "package.module:function": ("json:loads", "json:dumps"),
    "map": ("{X-One: one}",),  # of free names: headers
}
"""What to try, by the type column of the key reference. What a key refuses is left out."""

BESIDE: Mapping[str, Mapping[str, str]] = {
    "service.deadline.max": {"service.deadline.header": "X-Left"},
    "defaults.propagate.deadline": {"service.deadline.header": "X-Left"},
    "defaults.tls.verify: false": {"defaults.tls.insecure_skip_verify": "true"},
    "defaults.tls.key": {"defaults.tls.cert": "one.pem"},
    "defaults.tls.key_passphrase": {"defaults.tls.cert": "one.pem"},
    "defaults.circuit_breaker.window.size: 50": {"defaults.circuit_breaker.window.type": "count"},
    "defaults.circuit_breaker.window.size: 60": {"defaults.circuit_breaker.window.type": "count"},
    "defaults.circuit_breaker.window.type: count": {"defaults.circuit_breaker.window.size": "100"},
    "defaults.circuit_breaker.window.max_age": {
        "defaults.circuit_breaker.window.type": "count",
        "defaults.circuit_breaker.window.size": "100",
    },
    # Left out, it would follow these two, and could stand in for them.
    "defaults.timeouts.deadline": {"defaults.circuit_breaker.half_open.probe_timeout": "20s"},
    "defaults.timeouts.attempt": {"defaults.circuit_breaker.half_open.probe_timeout": "20s"},
}
"""What has to stand beside a key, or beside one value of it, to let it mean something of its own."""

OTHERS: Mapping[str | int, str] = {
    "one": "{base_url: https://one, fallback: null, retry: {max_attempts: 7}}",
    "two": "{base_url: https://two, fallback: null, retry: {max_attempts: 8}}",
}
"""The upstreams that `extends` and `fallback` may name."""

SHARED, OWN = ("defaults",), ("upstreams", "it")


def _leaves(key: Key, path: KeyPath = ()) -> Iterator[KeyPath]:
    """All below *key* that has a value of its own, in a map of free names that of `it`, in a list that of the first."""
    has_sections = key.item is not None and bool(key.item.children)
    if path and (key.is_nullable or not (key.children or (has_sections and key.is_map))):
        yield path
    for name, child in key.children.items():
        yield from _leaves(child, (*path, name))
    if key.item is not None and has_sections:
        yield from _leaves(key.item, (*path, "it" if key.is_map else 0))


_ALL = {dotted(path): path for path in _leaves(root_key())}
# What `defaults` has too is tried there: from there it goes into the upstream, and on like the upstream's own.
LEAVES = {
    name: path for name, path in _ALL.items() if dotted((*SHARED, *path[2:])) not in _ALL or path[:2] != OWN
}


def known(path: KeyPath) -> Key:
    """What is known about the key at *path*, which exists."""
    key = key_at(path)
    assert key is not None
    return key


def values_to_try(key: Key) -> list[str]:
    """What to write for *key*, as YAML."""
    if key.choices:
        return [yaml_text(choice) if key.is_text else choice for choice in key.choices]
    empty = ["null"] if key.is_nullable else ["[]"] if key.item is not None and not key.is_map else []
    given = [text for text in (key.default, key.example) if text]
    return list(dict.fromkeys([*empty, *given, *VALUES.get(key.kind, ())]))


def _defaults() -> dict[KeyPath, str]:
    """The built-in value of every key that has one, but for those below a section that may be null and in lists."""
    found: dict[KeyPath, str] = {}
    for path in LEAVES.values():
        above = [known(path[:length]) for length in range(1, len(path))]
        default = known(path).default
        if default not in (None, "null") and 0 not in path and not any(key.is_nullable for key in above):
            found[path] = default
    return found


DEFAULTS = _defaults()


def file_saying(values: Mapping[KeyPath, str]) -> str:
    """A file that says *values*, what is required beside them, and the defaults.

    A default that is not written gives way to its neighbours; that would change the plan in place of the key itself.
    """
    tree: dict[str | int, Any] = {"upstreams": {"it": {}, **OTHERS}}
    over = {
        path: text for path, text in DEFAULTS.items() if not any(one[: len(path)] == path for one in values)
    }
    for path, text in {**over, **values}.items():
        section = tree
        for part in path[:-1]:
            section = section.setdefault(part, {})
        section[path[-1]] = text
    return _flow(tree, root_key())


def _flow(node: Any, key: Key) -> str:
    """*node* in YAML, with an example of everything that *key* requires and *node* has not."""
    if isinstance(node, str):
        return node
    required = {
        name: one.example for name, one in key.children.items() if one.default is None and not one.is_map
    }
    items = {name: _flow(value, _child(key, name)) for name, value in {**required, **node}.items()}
    if list(items) == [0]:
        return f"[{items[0]}]"
    return f"{{{', '.join(f'{name}: {text}' for name, text in items.items())}}}"


def _child(key: Key, name: str | int) -> Key:
    child = key.child(name)
    assert child is not None
    return child


def beside(name: str, text: str) -> dict[KeyPath, str]:
    """What has to stand beside *text* as the value of the key *name*."""
    others = BESIDE.get(name, {}) | BESIDE.get(f"{name}: {text}", {})
    return {LEAVES[other]: value for other, value in others.items()}
