"""The generated tables of README.md: `python tests/support/tables.py` writes them, a test compares them."""

from __future__ import annotations

import inspect
import logging
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from headrace.config.explain.reference import key_reference
from headrace.observe import events
from headrace.observe.families import FAMILIES, Family

README = Path(__file__).parents[2] / "README.md"


def tables() -> dict[str, str]:
    """Each table's marker name with its Markdown."""
    return {"keys": key_reference(), "events": event_table(), "metrics": metric_table()}


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


def with_tables(text: str) -> str:
    """*text* with each table between its markers renewed.

    Raises:
        ValueError: A marker is missing.
    """
    for name, table in tables().items():
        pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"README.md has no <!-- {name}:begin --> … <!-- {name}:end -->")
        text = pattern.sub(lambda found, table=table: f"{found[1]}{table}{found[2]}", text)
    return text


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


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")
