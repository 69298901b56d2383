"""`headrace help`: the pages of the package, every key of the file, and whatever has a row in one of their tables."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from headrace.cli.markdown import for_terminal
from headrace.cli.printing import GOOD, USAGE, print_json, print_safely

if TYPE_CHECKING:
    from headrace.config.explain.keys import Key

WIDEST: Final = 100
"""Longer lines are hard to read, however wide the window is."""

PAGE_OF: Final[Mapping[str, str]] = MappingProxyType(
    {
        "version": "file",
        "service": "inbound",
        "install": "urllib3",
        "secrets": "file",
        "reload": "reload",
        "telemetry": "traces",
        "defaults": "file",
        "upstreams": "file",
        "base_url": "file",
        "match": "file",
        "extends": "file",
        "mode": "modes",
        "headers": "life-of-a-call",
        "propagate": "inbound",
        "timeouts": "timeouts",
        "pool": "pool",
        "tls": "file",
        "retry": "retries",
        "circuit_breaker": "circuit-breaker",
        "fallback": "circuit-breaker",
    }
)
"""The page that tells more of a key, by the first part of its name at the top or below an upstream."""

ALIASES: Final[Mapping[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(("check", "explain", "schema", "init", "help"), "command-line"),
        **dict.fromkeys(("flask", "django", "fastapi", "starlette", "litestar", "celery"), "frameworks"),
        **dict.fromkeys(("docker", "kubernetes"), "containers"),
        "headrace_mode": "night",
        "headrace_file": "file",
        "headrace_secrets_dir": "file",
        "breaker": "circuit-breaker",
    }
)
"""The page that is meant by what is no page's name: commands, variables, frameworks."""

_NOT_FOR_USERS: Final = frozenset({"architecture", "failures"})
"""Pages whose tables tell of no word that a user looks up."""

_OF_UPSTREAM: Final = "upstreams.<name>."
_NOT_IN_DEFAULTS: Final = frozenset({"base_url", "match", "extends"})
_HOW_TO_GO_ON: Final = (
    "`headrace help NAME` prints a page: its name stands in brackets. "
    "`headrace help retry.budget.ratio` tells of a key."
)


def run(options: argparse.Namespace) -> int:
    """Print the page, the key or the row that is asked for; else what is near, with the exit code of wrong usage."""
    topic = (options.topic or "index").strip("`").removesuffix(".md")
    page = topic.lower()
    text = _page(ALIASES.get(page, page)) or _key(topic)
    near: Sequence[str] = []
    if not text and len(ends := _ending_in(topic)) == 1:  # an end that nothing else has
        near, text = ends, _key(ends[0])
    if not text and not (text := _rows(topic)):
        near = _near(topic)
    if options.format == "json":
        fields = _fields(topic, near) if text else {"near": list(near)}
        print_json({"topic": topic, "text": text.strip("\n") or None, **fields})
        return GOOD if text else USAGE
    if text:
        print_safely(text.rstrip("\n"))
        return GOOD
    fix = f"did you mean {' or '.join(near)}?" if near else "`headrace help` lists the pages"
    print_safely(f"headrace help: there is no page, key or word {topic!r}; {fix}", to=sys.stderr)
    return USAGE


def _fields(topic: str, near: Sequence[str]) -> dict[str, str]:
    """What is told of a key, fact by fact; nothing where *topic*, or the one name that is *near* it, is none."""
    known = every_key()
    name = None if topic.lower() in pages() else _named(near[0] if len(near) == 1 else topic, known)
    if name is None:
        return {}
    facts = {head.replace(" ", "_"): value for head, value in _facts(name, known[name]) if value}
    return {"key": name, "description": known[name].description, **facts}


# --- Pages ----------------------------------------------------------------------------------------------


def pages() -> dict[str, str]:
    """The Markdown of every page, by its name."""
    found = sorted(files("headrace").joinpath("docs").iterdir(), key=lambda one: one.name)
    return {one.name.removesuffix(".md"): one.read_text("utf-8") for one in found if one.name.endswith(".md")}


def _page(name: str) -> str:
    """The page *name*, and below it the section of the file that has the same name; "" if there is no such page."""
    markdown = pages().get(name)
    if markdown is None:
        return ""
    below = [for_terminal(_HOW_TO_GO_ON, width=_width())] if name == "index" else []
    if name in PAGE_OF:
        below = _keys_below(name, every_key())
    return for_terminal(markdown, width=_width()) + "\n".join(["", *below])


def _width() -> int:
    return min(shutil.get_terminal_size((WIDEST, 24)).columns, WIDEST)


# --- Keys -----------------------------------------------------------------------------------------------


def every_key() -> dict[str, Key]:
    """What is known about each key and each section, by its name as the key reference has it, in the file's order."""
    from headrace.config.explain.keys import root_key

    return dict(_below(root_key(), ""))


def _below(parent: Key, path: str) -> Iterator[tuple[str, Key]]:
    for name, key in parent.children.items():
        full = f"{path}.{name}" if path else name
        yield full, key
        if name == "defaults":  # its keys are those of an upstream
            continue
        yield from _below(key, full)
        if key.item is not None:
            yield from _below(key.item, f"{full}.<name>" if key.is_map else f"{full}[]")


def _key(topic: str) -> str:
    """All about the key, or the section, that *topic* means; "" if it means none."""
    known = every_key()
    name = _named(topic, known)
    if name is None:
        return ""
    key = known[name]
    lines = [name, *_hanging("", key.description), ""]
    for head, value in _facts(name, key):
        lines += _hanging(f"{head:<9}", value)
    return "\n".join([*lines, "", *_keys_below(name, known)])


def _keys_below(section: str, known: Mapping[str, Key]) -> list[str]:
    """The keys of *section*, a line each under a heading; none where there is no such section."""
    whole = _named(section, known) or ""
    below = {
        name[len(whole) :].lstrip("."): key.description
        for name, key in known.items()
        if name.startswith((f"{whole}.", f"{whole}[")) and _is_leaf(key)
    }
    longest = max(map(len, below), default=0)
    lines = [line for name, text in below.items() for line in _hanging(f"{name:<{longest}}  ", text)]
    return [f"Keys of {whole}:", "", *lines, ""] if below else []


def _hanging(head: str, text: str) -> list[str]:
    """*text* behind *head*, filled: what does not fit goes on below its beginning. Nothing where *text* is ""."""
    return textwrap.wrap(
        text,
        _width(),
        initial_indent=f"    {head}",
        subsequent_indent=" " * (4 + len(head)),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _named(topic: str, known: Mapping[str, Key]) -> str | None:
    """The name of the key that *topic* means: whole, below an upstream, or in `defaults`."""
    topic = re.sub(r"\[\d*\]", "[]", topic)
    own = topic.removeprefix("defaults.")
    if topic.startswith("upstreams."):
        own = topic.split(".", 2)[-1]
    return next((name for name in (topic, _OF_UPSTREAM + own) if name in known), None)


def _is_leaf(key: Key) -> bool:
    return not key.children or key.is_nullable


def _facts(name: str, key: Key) -> Iterator[tuple[str, str]]:
    """Each fact about a key with what it is called; "" where there is none."""
    from headrace.config.explain.keys import is_essential

    own = name.removeprefix(_OF_UPSTREAM)
    first = own.partition(".")[0]
    kind = key.kind.replace("\\|", "|")  # as a table in Markdown needs it
    yield "or", f"defaults.{own}" if own != name and first not in _NOT_IN_DEFAULTS else ""
    yield "type", f"{kind} or null" if key.is_nullable else kind
    if _is_leaf(key):
        yield "default", key.default or "none: it is required"
        yield "range", key.range
        yield "example", key.example if key.default in {None, "null"} else ""
    yield "advanced", "" if is_essential(tuple(name.split("."))) else "most files do without it"
    yield "an edit", edit_of(name)
    yield "more", f"headrace help {PAGE_OF[first]}"


def edit_of(name: str) -> str:
    """What an edit of the key *name* needs, in a word and a sentence; "" for a section, whose keys may differ."""
    from headrace.runtime.migrate import MEANING, ROWS, Change

    if not name.startswith(_OF_UPSTREAM):
        return "" if name in {"defaults", "upstreams"} else f"{Change.LIVE}: {MEANING[Change.LIVE]}"
    row = ROWS.get(name.removeprefix(_OF_UPSTREAM).partition("[]")[0])
    if row is None:
        return ""
    return "; ".join(filter(None, (f"{row.change}: {MEANING[row.change]}", row.note)))


# --- Words ----------------------------------------------------------------------------------------------


def _rows(word: str) -> str:
    """The rows of all tables that begin with *word*: a metric, an event, an error, a reason; "" if none does."""
    parts = []
    for page, markdown in pages().items():
        if page in _NOT_FOR_USERS:
            continue
        for table in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
            heads, rule, *rows = table.splitlines()
            if found := [row for row in rows if word in _quoted(row)]:
                parts.append("\n".join((f"# From the page {page}", "", heads, rule, *found)))
    return for_terminal("\n\n".join(parts), width=_width()) if parts else ""


def _quoted(row: str) -> set[str]:
    """The words that the first cell of *row* quotes, those of the package with and without its name."""
    words = re.findall(r"`([^`]+)`", row.split("|")[1])
    return {*words, *(word.removeprefix("headrace.") for word in words)}


def _ending_in(topic: str) -> list[str]:
    """The keys, below an upstream or at the top, whose names end in *topic*."""
    keys = [name.removeprefix(_OF_UPSTREAM) for name in every_key()]
    return [name for name in keys if name.endswith(f".{topic}")]


def _near(topic: str) -> Sequence[str]:
    """What *topic* may have been meant for: the keys that end in it and a page nearby, else the nearest name of all."""
    from headrace.config.check.problems import did_you_mean

    if ends := _ending_in(topic):
        page = did_you_mean(topic, [*pages()])
        return [*ends, page] if page else ends
    keys = [name.removeprefix(_OF_UPSTREAM) for name in every_key()]
    tables = (markdown for page, markdown in pages().items() if page not in _NOT_FOR_USERS)
    rows = re.findall(r"^\|.*", "\n".join(tables), re.MULTILINE)
    words = {word for row in rows for word in _quoted(row) if word.replace(".", "_").isidentifier()}
    near = did_you_mean(topic, [*pages(), *keys, *sorted(words)])
    return [near] if near else []
