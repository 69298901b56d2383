"""The file that `headrace init` writes: it observes, names one upstream, and shows the keys that most files need.

Defaults and descriptions are taken from the models, so it cannot tell another story than the key reference.
"""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator

from headrace.config.check.problems import Path
from headrace.config.explain.keys import Key, is_essential, key_at
from headrace.config.source.sources import DEFAULT_FILE
from headrace.policy.printable import printable

_UPSTREAM: Path = ("upstreams", "example")
_GIVEN = frozenset({"base_url", "mode"})
_WIDTH = 100

_HEAD = """\
# What this application calls, and the rules for those calls. Written by `headrace init`.
#
{commands}
#
# An edit is in force within a second, without a restart; a bad one changes nothing and says why.
# Editors complete and check this file by its schema: headrace schema > upstreams.schema.json, then, as its first line,
# "# yaml-language-server: $schema=upstreams.schema.json".
version: 1

defaults:
  # observe changes nothing, and counts what the rules would have done. When you like what it says: enforce.
  mode: observe

upstreams:
  # The name is yours to choose: it stands in metrics, logs and errors.
  example:
    # Calls that requests makes to this URL, and to all below it, follow these rules. No call site changes.
    base_url: https://api.example.com

    # Each value below holds as it is. To change one, take away its `# `, and that of the section that it is in.
"""


_COMMANDS = (
    ("check{}", "says what is wrong with this file, or what it amounts to"),
    ("explain{} URL", "says what becomes of a call, and which line says so"),
    ("help", "prints the documentation, of every key too"),
)


def starter(file: str = DEFAULT_FILE) -> str:
    """The text of a starter file. It loads without a finding, and also with all that it has commented out.

    Args:
        file: Where it is going to be. Commands that would look for another one are told with its name.
    """
    name = "" if file == DEFAULT_FILE else f" {printable(shlex.quote(file))}"
    commands = [(command.format(name), words) for command, words in _COMMANDS]
    width = max(len(command) for command, _ in commands)
    head = _HEAD.format(
        commands="\n".join(f"#   headrace {command:<{width}}    {words}" for command, words in commands)
    )
    return head + "".join(f"{line}\n" for line in (*_upstream(), "", *_top()))


def _upstream() -> Iterator[str]:
    section = key_at(_UPSTREAM)
    assert section is not None
    yield from _commented(section, ("upstreams", "<name>"), indent=4)


def _top() -> Iterator[str]:
    root = key_at(())
    assert root is not None
    for name, key in root.children.items():
        if name not in ("version", "defaults", "upstreams"):
            yield from _commented_key(name, key, (name,), indent=0)


def _commented(section: Key, path: Path, *, indent: int) -> Iterator[str]:
    for name, key in section.children.items():
        if name not in _GIVEN or len(path) > 2:
            yield from _commented_key(name, key, (*path, name), indent=indent)


def _commented_key(name: str, key: Key, path: Path, *, indent: int) -> Iterator[str]:
    if not is_essential(path):
        return
    before = " " * indent
    if key.children and not key.is_nullable:
        yield f"{before}# {name}:"
        for below, child in key.children.items():
            yield from _commented_key(below, child, (*path, below), indent=indent + 2)
        return
    words = textwrap.wrap(key.description, _WIDTH - indent)
    yield from (f"{before}## {line}" for line in words)
    yield f"{before}# {name}: {key.default}"
