"""What the pages have from elsewhere: `python tests/support/tables.py` writes it, a test compares it.

Tables that are generated from the code stand between `<!-- keys:begin -->` and `<!-- keys:end -->`. A section of one
page that another shows too stands there between `<!-- from frameworks.md: Flask -->` and `<!-- end -->`, with its links
made to lead from there.
"""

from __future__ import annotations

import inspect
import logging
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from headrace.cli.help import edit_of
from headrace.config.explain.reference import key_reference
from headrace.observe import events
from headrace.observe.families import FAMILIES, Family

sys.path.insert(0, str(Path(__file__).parents[1]))  # for who runs this file

from support.pages import pages, section


def key_table() -> str:
    """Every key of the file, those that a user needs first before the others, and in a word what its edit needs."""
    more = ("an edit", lambda name: edit_of(name).partition(":")[0])
    first, others = (key_reference(more, essential=essential) for essential in (True, False))
    return f"## Where to begin\n\n{first}\n## Advanced\n\n{others}"


def event_table() -> str:
    """Every log event: name, level, fields, and the first sentences of its class."""
    rows = []
    for kind in vars(events).values():
        if is_dataclass(kind):
            made = _samples(kind)
            rows.append(
                (
                    ", ".join(f"`{one.name}`" for one in made),
                    ", ".join(logging.getLevelName(one.level) for one in made),
                    ", ".join(f"`{field.name}`" for field in fields(kind)),
                    " ".join(inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0].split()),
                )
            )
    return _table(("event", "level", "fields", "when"), rows)


def metric_table() -> str:
    """Every metric family: name, kind, labels, what becomes of it over processes, and its documentation."""
    rows = [
        (
            f"`{name}`",
            family.kind,
            ", ".join(f"`{label}`" for label in labels),
            _over_processes(family),
            family.documentation,
        )
        for name, (family, labels) in FAMILIES.items()
    ]
    return _table(("metric", "kind", "labels", "over processes", "what it is"), rows)


def _samples(kind: Any) -> list[Any]:
    """What carries a name and a level: the class, or a sample of each name where they depend on a field."""
    if kind is not events.CircuitChanged:
        return [kind]
    return [
        kind(upstream="", from_state="closed", to_state=state, reason="")
        for state in ("open", "half_open", "closed")
    ]


def _over_processes(family: Family[Any]) -> str:
    return "each" if family.across_processes == "liveall" else "sum"


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


TABLES: Mapping[str, Callable[[], str]] = {
    "keys": key_table,
    "events": event_table,
    "metrics": metric_table,
}
"""By the name of its marker, what makes a table."""

_TABLE = re.compile(r"(<!-- (\w+):begin -->\n).*?(<!-- \2:end -->)", re.DOTALL)
_SECTION = re.compile(r"(<!-- from (\S+)\.md: (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)
_LINK = re.compile(r"\]\((?=[\w-]+\.md)")
DOCS_FROM_README = "plugin/headrace/docs/"


def renewed(markdown: str) -> str:
    """*markdown* of a page with all that it has from elsewhere renewed; sections are taken over by the README alone."""
    markdown = _TABLE.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}{found[3]}", markdown)
    return _SECTION.sub(
        lambda found: (
            f"{found[1]}{_LINK.sub(f']({DOCS_FROM_README}', section(found[2], found[3]))}{found[4]}"
        ),
        markdown,
    )


if __name__ == "__main__":
    for file in pages().values():
        file.write_text(renewed(file.read_text("utf-8")), "utf-8")
