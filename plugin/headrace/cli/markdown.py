"""A page for a terminal: paragraphs filled, tables as entries, links as what to type.

Only what the pages of `headrace/docs` are made of is understood: headings, paragraphs, lists, tables, fenced blocks.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

_COMMENT = re.compile(r"<!--.*?-->\n?", re.DOTALL)
_LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
_CELL = re.compile(r"(?<!\\)\|")
_BEGINS = re.compile(r"#+ |\||(?P<item>- |\d+\. )|```")
"""What a line begins with that does not go on with a paragraph or an item."""


def for_terminal(markdown: str, *, width: int) -> str:
    """*markdown* with no line longer than *width*, except in fenced blocks, which are shown as they are."""
    return "\n".join(_parts(_COMMENT.sub("", markdown).splitlines(), width)) + "\n"


def _parts(lines: list[str], width: int) -> Iterator[str]:
    at = 0
    while at < len(lines):
        line, start = lines[at], at
        at += 1
        if line.startswith("```"):
            while not lines[at].startswith("```"):
                at += 1
            yield from (f"    {one}".rstrip() for one in lines[start + 1 : at])
            at += 1
        elif line.startswith("|"):
            while at < len(lines) and lines[at].startswith("|"):
                at += 1
            yield from _entries(lines[start:at], width)
        elif not line or line.startswith("#"):
            yield line
        else:
            while at < len(lines) and lines[at] and not _BEGINS.match(lines[at]):
                at += 1
            text = " ".join(one.strip() for one in lines[start:at])
            begins = _BEGINS.match(line)
            yield from _filled(text, width, below=" " * len(begins["item"]) if begins else "")


def _entries(rows: list[str], width: int) -> Iterator[str]:
    """Each row of a table as its first cell, and below it the others, with their heads where there are several."""
    heads, _, *body = ([cell.strip().replace("\\|", "|") for cell in _CELL.split(row)[1:-1]] for row in rows)
    for first, *others in body:
        yield from _filled(first, width)
        for head, cell in zip(heads[1:], others, strict=True):
            if cell:
                text = f"{head}: {cell}" if head and len(others) > 1 else cell
                yield from _filled(text, width, first="    ", below="    ")


def _filled(text: str, width: int, *, first: str = "", below: str = "") -> list[str]:
    return textwrap.wrap(
        _LINK.sub(_target, text).replace("**", ""),
        width,
        initial_indent=first,
        subsequent_indent=below,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _target(link: re.Match[str]) -> str:
    """What a link says, and where it leads: to a page by its name, for `headrace help NAME`."""
    said, to = link.groups()
    if "://" in to:
        return f"{said} <{to}>"
    page = to.partition("#")[0].removesuffix(".md")
    return said if page in {"", said} else f"{said} ({page})"
