"""From sources to settings: pydantic's verdicts, said in our words at the right place.

pydantic names every value that it refuses, but gives no settings as long as it refuses one. So validation runs in
rounds: what was refused is taken out, its default steps in, and the rest is validated again. The settings that come
of it serve the cross-checks; `refused` tells them which values not to believe.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

from pydantic import ValidationError
from pydantic_settings import InitSettingsSource, PydanticBaseSettingsSource

from headrace.config.check.problems import MAX_PROBLEMS, Path, Problem, did_you_mean, dotted
from headrace.config.explain.keys import GONE, Key, key_at
from headrace.config.reuse import Reading
from headrace.config.settings import SECRET_KEY, Settings
from headrace.config.source.inherit import Inheritance
from headrace.config.source.tree import (
    Mark,
    Node,
    Scalar,
    Table,
    found,
    key_mark_of,
    mark_of,
    node_at,
    problem_at,
    without_user,
)
from headrace.config.source.written import Written
from headrace.policy.frozen import frozen
from headrace.policy.printable import printable

PLACEHOLDER_URL = "http://invalid.invalid"
_PLACEHOLDER = Scalar(PLACEHOLDER_URL, PLACEHOLDER_URL, Mark("placeholder"))
_MAX_ROUNDS = 6


@frozen
class Validated:
    """What could be validated.

    Attributes:
        settings: None when nothing sensible is left. Where a value was refused, its
            default stands in, so that the other values can be cross-checked.
        written: Where each value comes from, and what was refused.
        problems: Of single values, and of `extends`.
    """

    settings: Settings | None
    written: Written
    problems: list[Problem]


def validate(*sources: PydanticBaseSettingsSource, reading: Reading | None = None) -> Validated:
    """Settings of *sources*, the strongest first, and every problem of a single value.

    Args:
        reading: Knows the models of sections that say the same as before; None: all are validated.
    """
    inheritance = Inheritance(Settings, {})
    layers: tuple[PydanticBaseSettingsSource, ...] = (*sources, inheritance)
    settings: Settings | None = None
    problems: list[Problem] = []
    refused: set[Path] = set()
    rest: dict[str, Any] = {}
    for _ in range(_MAX_ROUNDS):
        errors = []
        try:
            settings = Settings(*layers, reading=reading)
            break
        except ValidationError as error:
            errors = error.errors(include_url=False, include_input=False)
        written = inheritance.written
        # What is inherited is refused at each heir, and is one problem: it was written once.
        told = {_where_written(written, detail["loc"], detail["type"]): detail for detail in reversed(errors)}
        firsts = list(reversed(told.values()))
        problems += [
            _problem(written, one["type"], one["loc"], one.get("ctx", {})) for one in firsts[:MAX_PROBLEMS]
        ]
        rest = rest or _copied(written.tree)
        for detail in errors:
            refused.add(_remove_refused(rest, detail["loc"], detail["type"]))
        if len(firsts) > MAX_PROBLEMS:
            message = f"has {len(firsts)} values that cannot be used; the first {MAX_PROBLEMS} are listed"
            problems.append(problem_at(written.tree.mark, (), message))
            break  # what is left would not be worth cross-checking
        if not isinstance(rest.get("upstreams"), dict) or not rest["upstreams"]:
            break
        layers = (InitSettingsSource(Settings, rest),)
    inheritance.written.refused = frozenset(refused)
    return Validated(settings, inheritance.written, [*inheritance.problems, *problems])


def _copied(node: Node) -> Any:
    """*node* with tables that nobody else has."""
    if not isinstance(node, Table):
        return node
    return Table({key: _copied(child) for key, child in node.items()}, node.key_marks, node.mark)


def _where_written(written: Written, path: Path, kind: str) -> object:
    node = node_at(written.tree, path)
    return path if node is None else (node.mark, kind, path[-1])


def _remove_refused(rest: Any, path: Path, kind: str) -> Path:
    """Remove what was refused at *path* from *rest*. Answers the path that lacks its own value now. Mutates."""
    if path and path[-1] == "[key]":
        path = path[:-1]
    # An item, or a key of one, cannot go alone: the numbers of the others would change. So the whole list goes.
    path = tuple(itertools.takewhile(lambda part: not isinstance(part, int), path))
    parent = rest
    for part in path[:-1]:
        parent = parent.get(part)
        if not isinstance(parent, dict):
            return path  # gone already, with something around it
    if path and path[-1] == "base_url":
        parent["base_url"] = _PLACEHOLDER
    elif len(path) == 2 and path[0] == "upstreams" and kind == "model_type":
        parent[path[-1]] = Table({"base_url": _PLACEHOLDER}, {}, _PLACEHOLDER.mark)
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
            mark_of(tree, path), path, "is missing; it has no default", f"for example: {path[-1]}: {example}"
        )
    node = node_at(tree, path)
    key = key_at(path)
    mark = node.mark if node is not None else mark_of(tree, path)
    hide = path[2:3] == ("headers",) or path[:2] == ("defaults", "headers") or path[-1:] == SECRET_KEY
    path = written.origin(path)
    if key is None:
        return problem_at(mark, path, f"cannot be used; found {found(node, hide=hide)}")
    if kind == "too_short" and key.name == "upstreams":
        return problem_at(mark, path, "names no upstream", f"for example: upstreams: {key.example}")
    if kind == "url":
        return problem_at(
            mark, path, f"{context['reason']}; found {without_user(found(node))}", _example(path, key)
        )
    if kind == "identity":
        return problem_at(mark, path, f"{context['reason']}; found {found(node)}", _example(path, key))
    or_null = ", or null" if key.is_nullable else ""
    note = f" ({key.note})" if key.note else ""
    at_most = f" and at most {key.at_most}" if key.at_most and kind.startswith("less_than") else ""
    message = f"must be {key.must}{at_most}{or_null}{note}; found {found(node, hide=hide)}"
    return problem_at(mark, path, message, _fix(path, key, node, hide=hide))


def _bad_key(written: Written, kind: str, path: Path) -> Problem:
    is_own = len(path) == 2  # nobody inherits the name of an upstream
    mark = key_mark_of(written.original if is_own else written.tree, path)
    path = path if is_own else written.origin(path)
    name = printable(str(path[-1]))
    if kind == "header_framing":
        return problem_at(mark, path, "is not for the file to set: it frames the message", "remove it")
    if kind == "header_name":
        return problem_at(
            mark, path, f'"{name}" is no header name', "use letters, digits and dashes: X-Api-Key"
        )
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)  # billingApi
    suggestion = re.sub(r"[^a-z0-9]+", "_", apart.lower()).strip("_")
    is_free = name.isascii() and node_at(written.original, (*path[:-1], suggestion)) is None
    return problem_at(
        mark,
        path,
        f'"{name}" is no name for an upstream: small letters, digits, single _ between them',
        f"write: {suggestion}:"
        if is_free and re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", suggestion)
        else "",
    )


def _unknown_key(written: Written, path: Path) -> Problem:
    mark = key_mark_of(written.tree, path)
    path = written.origin(path)
    if path[-2:] in GONE:
        return problem_at(mark, path, *GONE[path[-2:]])
    return problem_at(mark, path, "is not a known key", _known_instead(written, path))


def _known_instead(written: Written, path: Path) -> str:
    from headrace.config.check.foreign import FOREIGN  # here, as below: a file without a fault never needs it

    parent, table, name = key_at(path[:-1]), node_at(written.original, path[:-1]), str(path[-1])
    known = parent.children if parent else {}
    base = path[:1] if path[0] == "defaults" else path[:2]
    if base[0] in ("defaults", "upstreams"):
        here = FOREIGN.get((dotted(path[len(base) : -1]), name))
        if here is not None:
            return f"here that is {here.key}" + (f": {here.note}" if here.note else "")
        if elsewhere := _elsewhere(base, name):
            return f"it stands under {elsewhere}"
    own = node_at(written.original, path)
    if len(path) == 1 and isinstance(own, Table) and "base_url" in own:
        return "if it is an upstream, write it below upstreams:, indented"
    # One that is given already was spelt well there, so this is not it.
    given = table if isinstance(table, Table) else {}
    near = did_you_mean(name, [one for one in known if one not in given])
    return f"did you mean {near}?" if near else f"known here: {', '.join(known)}"


def _elsewhere(base: Path, name: str) -> str:
    """The one section of the upstream at *base* that has a key called *name*, with dots; "" if none or several.

    A name of one word, such as `timeout`, may mean anything.
    """
    root = key_at(base)
    if root is None or "_" not in name:
        return ""
    found: list[str] = []

    def look(key: Key, path: Path) -> None:
        for word, child in key.children.items():
            if word == name and path:
                found.append(dotted(path))
            look(child, (*path, word))

    look(root, ())
    return found[0] if len(found) == 1 else ""


def _fix(path: Path, key: Key, node: Node | None, *, hide: bool) -> str:
    from headrace.config.check.proposals import misspelt, proposals

    name = "" if isinstance(path[-1], int) else f"{path[-1]}: "
    if isinstance(node, Scalar) and not hide and not node.secret:
        meant = proposals(key, node)
        if meant:
            either = ", whichever is meant" if len(meant) > 1 else ""
            return f"write: {' or '.join(f'{name}{value}' for value in meant)}{either}"
        near = misspelt(key, node)
        if near is not None:
            return f"did you mean {name}{near}?"
    if hide and isinstance(node, Scalar) and node.plain and isinstance(node.value, bool | int | float):
        return "put it in quotes"
    if key.is_map and isinstance(node, Scalar) and node.value is None:
        return "write its keys below it, indented, or remove it"
    return _example(path, key)


def _example(path: Path, key: Key) -> str:
    """A good value. It says nothing about what was meant, and its words do not pretend to."""
    if not key.example or key.choices or key.kind == "true or false":  # all that is possible has been said
        return ""
    return (
        f"for example: {key.example}"
        if isinstance(path[-1], int)
        else f"for example: {path[-1]}: {key.example}"
    )
