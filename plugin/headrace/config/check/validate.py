"""From a marked tree to settings: pydantic's verdicts, said in our words at the right place.

pydantic names every value that it refuses, but gives no settings as long as it refuses one. So validation runs in
rounds: what was refused is taken out, its default steps in, and the rest is validated again. The settings that come
of it serve the cross-checks; `refused` tells them which values not to believe.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from headrace.config.check.problems import MAX_PROBLEMS, Path, Problem, did_you_mean
from headrace.config.explain.keys import GONE, Key, key_at, root_key, yaml_text
from headrace.config.settings import Settings
from headrace.config.source.tree import (
    Node,
    Plain,
    Scalar,
    Table,
    found,
    key_mark_of,
    mark_of,
    node_at,
    problem_at,
    without_user,
)
from headrace.config.source.units import nearest_duration, nearest_size, parse_duration, parse_size
from headrace.config.source.values import WORDS, Size
from headrace.config.source.written import Written
from headrace.policy.printable import printable

PLACEHOLDER_URL = "http://invalid.invalid"
_BOOLEANS = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}
_MAX_ROUNDS = 6


@dataclass(frozen=True)
class Validated:
    """What could be validated.

    Attributes:
        settings: None when nothing sensible is left. Where a value was refused, its
            default stands in, so that the other values can be cross-checked.
        refused: Paths where *settings* do not hold what the file says.
    """

    settings: Settings | None
    refused: frozenset[Path]
    problems: list[Problem]


def validate(written: Written) -> Validated:
    """Settings of the complete tree and every problem of a single value."""
    plain: Any = _plain(written.tree, root_key())
    problems: list[Problem] = []
    refused: set[Path] = set()
    strangers = [name for name in plain if name not in Settings.model_fields]
    for name in strangers:
        # pydantic must not see them: its settings take `_env_file` and the like as arguments.
        del plain[name]
    problems += [_unknown_key(written, (name,)) for name in strangers[:MAX_PROBLEMS]]
    for _ in range(_MAX_ROUNDS):
        errors = []
        try:
            return Validated(Settings(**plain), frozenset(refused), problems)
        except ValidationError as error:
            errors = error.errors(include_url=False, include_input=False)
        for detail in errors[:MAX_PROBLEMS]:
            problems.append(_problem(written, detail["type"], detail["loc"], detail.get("ctx", {})))
        for detail in errors:
            refused.add(_remove_refused(plain, detail["loc"], detail["type"]))
        if len(errors) > MAX_PROBLEMS:
            message = f"has {len(errors)} values that cannot be used; the first {MAX_PROBLEMS} are listed"
            problems.append(problem_at(written.tree.mark, (), message))
            break  # what is left would not be worth cross-checking
        if not isinstance(plain.get("upstreams"), dict) or not plain["upstreams"]:
            break
    return Validated(None, frozenset(refused), problems)


def _plain(node: Node, key: Key | None) -> Plain:
    """*node* without marks. Values from outside become text where the key wants text."""
    if isinstance(node, Scalar):
        return (
            node.text
            if node.reread and key is not None and key.is_text and not _is_null(node, key)
            else node.value
        )
    if isinstance(node, Table):
        return {name: _plain(child, key.child(name) if key else None) for name, child in node.entries.items()}
    item = key.item if key else None
    return [_plain(child, item) for child in node.items]


def _is_null(node: Scalar, key: Key) -> bool:
    return node.value is None and key.is_nullable


def _remove_refused(plain: Any, path: Path, kind: str) -> Path:
    """Remove what was refused at *path* from *plain*. Answers the path that lacks its own value now. Mutates."""
    if path and path[-1] == "[key]":
        path = path[:-1]
    # An item, or a key of one, cannot go alone: the numbers of the others would change. So the whole list goes.
    path = tuple(itertools.takewhile(lambda part: not isinstance(part, int), path))
    parent = plain
    for part in path[:-1]:
        parent = parent.get(part)
        if not isinstance(parent, dict):
            return path  # gone already, with something around it
    if path and path[-1] == "base_url":
        parent["base_url"] = PLACEHOLDER_URL
    elif len(path) == 2 and path[0] == "upstreams" and kind == "model_type":
        parent[path[-1]] = {"base_url": PLACEHOLDER_URL}
    else:
        parent.pop(path[-1], None)
    return path


def _problem(written: Written, kind: str, path: Path, context: dict[str, Any]) -> Problem:
    tree = written.tree
    if path and path[-1] == "[key]":
        return _bad_key(written, kind, path[:-1])
    if kind == "extra_forbidden":
        return _unknown_key(written, path)
    if kind == "missing":
        example = (key := key_at(path)) and key.example
        return problem_at(
            mark_of(tree, path), path, "is missing; it has no default", f"write: {path[-1]}: {example}"
        )
    node = node_at(tree, path)
    key = key_at(path)
    mark = node.mark if node is not None else mark_of(tree, path)
    hide = path[2:3] == ("headers",) or path[:2] == ("defaults", "headers")
    path = written.origin(path)
    if key is None:
        return problem_at(mark, path, f"cannot be used; found {found(node, hide=hide)}")
    if kind == "too_short" and key.name == "upstreams":
        return problem_at(mark, path, "names no upstream", f"write: upstreams: {key.example}")
    if kind == "url":
        return problem_at(
            mark, path, f"{context['reason']}; found {without_user(found(node))}", _example(path, key)
        )
    or_null = ", or null" if key.is_nullable else ""
    note = f" ({key.note})" if key.note else ""
    at_most = f" and at most {key.at_most}" if key.at_most and kind.startswith("less_than") else ""
    message = f"must be {key.must}{at_most}{or_null}{note}; found {found(node, hide=hide)}"
    return problem_at(mark, path, message, _fix(path, key, node, hide=hide))


def _bad_key(written: Written, kind: str, path: Path) -> Problem:
    mark = key_mark_of(written.tree, path)
    path = written.origin(path)
    name = printable(str(path[-1]))
    if kind == "header_framing":
        return problem_at(mark, path, "is not for the file to set: it frames the message", "remove it")
    if kind == "header_name":
        return problem_at(
            mark, path, f'"{name}" is no header name', "use letters, digits and dashes: X-Api-Key"
        )
    suggestion = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return problem_at(
        mark,
        path,
        f'"{name}" is no name for an upstream: small letters, digits, single _ between them',
        f"write: {suggestion}:" if re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", suggestion) else "",
    )


def _unknown_key(written: Written, path: Path) -> Problem:
    mark = key_mark_of(written.tree, path)
    path = written.origin(path)
    if path[-2:] in GONE:
        return problem_at(mark, path, *GONE[path[-2:]])
    parent = key_at(path[:-1])
    known = list(parent.children) if parent else []
    near = did_you_mean(str(path[-1]), known)
    fix = f"did you mean {near}?" if near else f"known here: {', '.join(known)}"
    return problem_at(mark, path, "is not a known key", fix)


def _fix(path: Path, key: Key, node: Node | None, *, hide: bool) -> str:
    secret = hide or (isinstance(node, Scalar) and node.secret)
    better = None if secret or not isinstance(node, Scalar) else _likely_meant(key, node)
    if better is not None:
        return f"write: {better}" if isinstance(path[-1], int) else f"write: {path[-1]}: {better}"
    if (
        key.item is not None
        and not key.is_map
        and not key.item.is_map
        and isinstance(node, Scalar)
        and node.value is not None
        and not secret
    ):
        return f"write: {path[-1]}: [{node.text}]" if node.text.isprintable() else _example(path, key)
    if key.is_map and isinstance(node, Scalar) and node.value is None:
        return "write its keys below it, indented, or remove it"
    return _example(path, key)


def _likely_meant(key: Key, node: Scalar) -> str | None:
    """What the author of *node* most likely meant, if that would be a valid value."""
    text = node.text.strip()
    if key.is_duration:
        near = nearest_duration(node.value)
        return near if near and _fits(key, near) else None
    if key.is_size:
        near = nearest_size(node.value)
        return near if near and Size.minimum <= parse_size(near) <= Size.maximum else None
    if key.choices:
        if text in key.choices or text[:1].isdigit():
            near = text if text in key.choices else None  # "1.1" is as close to 1.2 as to 1.3
        else:
            near = did_you_mean(text, key.choices)
        return yaml_text(near) if near and key.is_text else near
    if key.must == "true or false":
        return _BOOLEANS.get(text.lower()) or (text.lower() if text.lower() in ("true", "false") else None)
    if key.kind == "method" and text.upper() != text and text.isascii() and text.isalpha():
        return text.upper()
    if key.kind == "word or status code":
        if text[:1].isdigit():  # 4xx does not mean 5xx
            return (
                text
                if re.fullmatch("[1-5][0-9][0-9]", text)
                else text.lower()
                if text.lower() in WORDS
                else None
            )
        return did_you_mean(text, WORDS)
    return None


def _fits(key: Key, duration: str) -> bool:
    low, _, high = key.range.partition(" to ")
    return parse_duration(low) <= parse_duration(duration) <= parse_duration(high)


def _example(path: Path, key: Key) -> str:
    if not key.example:
        return ""
    if isinstance(path[-1], int):
        return f"for example: {key.example}"
    return f"write: {path[-1]}: {key.example}"
