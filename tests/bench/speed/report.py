"""What was measured as figures, and the figures as a table for people, a page, or a document for programs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from interleaved import quartiles
from table import CALLS, UNITS, Group, Row, Target

Figure = tuple[float, float, float]
"""First quartile, median, third quartile over the rounds."""

BEGIN, END = "<!-- measured -->\n", "<!-- end of measured -->"


def figures(
    rows: list[Row], values: Mapping[str, list[float]], calls: Mapping[str, int]
) -> list[dict[str, Any]]:
    """For each of *rows*, which are of one group: value, ratios and targets, plain data. *values* are by name."""
    net = {
        row.name: values[row.name]
        if row.minus is None or row.minus not in values
        else [ours - theirs for ours, theirs in zip(values[row.name], values[row.minus], strict=True)]
        for row in rows
        if row.name in values
    }

    def ratio(row: Row, of: str | None) -> Figure | None:
        if of is None or row.name not in net or of not in net:
            return None
        return quartiles(
            [ours / theirs for ours, theirs in zip(net[row.name], net[of], strict=True) if theirs]
        )

    def against(row: Row, target: Target) -> dict[str, Any] | None:
        """None where what it is compared with is not there."""
        found: float | None
        if target.of == CALLS:
            found = calls.get(row.name)
        elif target.of:
            one = ratio(row, target.of)
            found = one[1] if one else None
        else:
            found = row.shown(quartiles(net[row.name])[1]) if row.name in net else None
        if found is None:
            return None
        return {
            "of": target.of or row.unit,
            "at_most": target.at_most,
            "aim": target.aim,
            "found": found,
            "is_met": found <= target.at_most,
        }

    return [
        {
            "name": row.name,
            "unit": row.unit,
            "minus": row.minus,
            "value": None
            if row.name not in net
            else _named([row.shown(one) for one in quartiles(net[row.name])]),
            "floor": _compared(row.floor, ratio(row, row.floor)),
            "peer": _compared(row.peer, ratio(row, row.peer)),
            "calls": calls.get(row.name),
            "targets": [one for target in row.targets if (one := against(row, target)) is not None],
        }
        for row in rows
    ]


def _named(figure: Any) -> dict[str, float]:
    first, median, third = figure
    return {"q1": first, "median": median, "q3": third}


def _compared(name: str | None, figure: Figure | None) -> dict[str, Any] | None:
    return None if figure is None else {"of": name, **_named(figure)}


# --- for people -------------------------------------------------------------------------------------------

_HEADS = ("", "value", "/ floor", "/ peer", "calls", "target")


def _cells(found: dict[str, Any], left_out: Mapping[str, str]) -> tuple[str, ...]:
    if (value := found["value"]) is None:
        return (found["name"], f"left out: {left_out.get(found['name'], 'not measured')}", "", "", "", "")
    peer = found["peer"]
    return (
        found["name"],
        f"{_spread(value)} {found['unit']}",
        _spread(found["floor"]) if found["floor"] else "",
        f"{_spread(peer)}" if peer else "",
        "" if found["calls"] is None else str(found["calls"]),
        "; ".join(_target(one) for one in found["targets"]),
    )


def _spread(figure: Mapping[str, float]) -> str:
    return f"{_digits(figure['median'])} [{_digits(figure['q1'])}–{_digits(figure['q3'])}]"


def _digits(value: float) -> str:
    """Two or three of them; no more is known."""
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def _target(one: dict[str, Any]) -> str:
    of = one["of"]
    found = f"{one['found']:,.0f}" if of == CALLS else _digits(one["found"])
    aim = "" if one["aim"] is None else f", aim {one['aim']:g}"
    what = of if of == CALLS or of in UNITS else f"× {of}"
    return f"≤ {one['at_most']:g} {what}{aim}: {'met' if one['is_met'] else 'missed'}, {found}"


def text_table(group: Group, found: list[dict[str, Any]], left_out: Mapping[str, str]) -> str:
    """A table for a terminal, each column as wide as it needs."""
    rows = [_HEADS, *(_cells(one, left_out) for one in found)]
    widths = [max(len(row[at]) for row in rows if not row[1].startswith("left out")) for at in range(5)]
    widths[0] = max(len(row[0]) for row in rows)
    lines = [f"{group.name}: {group.title}", f"  {group.note.replace('`', '')}"]
    for name, *others, target in rows:
        columns = "  ".join(f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))
        if others[0].startswith("left out"):
            columns = others[0]
        lines.append(f"  {name:<{widths[0]}}  {columns}  {target}".rstrip())
    return "\n".join(lines)


def bounds(groups: Mapping[str, list[dict[str, Any]]]) -> str:
    """Every bound with what was found, a line each: those that were missed come first."""
    told = [
        (one["is_met"], f"  {name}: {found['name']}: {_target(one)}")
        for name, rows in groups.items()
        for found in rows
        for one in found["targets"]
    ]
    met = sum(is_met for is_met, _ in told)
    lines = [line for _, line in sorted(told, key=lambda one: one[0])]
    return "\n".join([f"bounds: {met} of {len(told)} met", *lines])


def page(
    document: Mapping[str, Any], groups: tuple[Group, ...], left_out: Mapping[str, Mapping[str, str]]
) -> str:
    """The same in Markdown, with the machine named."""
    return "\n".join(_page(document, groups, left_out)) + "\n"


def _page(
    document: Mapping[str, Any], groups: tuple[Group, ...], left_out: Mapping[str, Mapping[str, str]]
) -> Iterator[str]:
    where, of = document["machine"], document["source"]
    changed = ", changed since" if of["is_changed"] else ""
    yield (
        f"Measured on {of['measured_on']} by `{of['command']}`, commit {of['commit']}{changed}: {where['processor']}, "
        f"{where['cores']} cores, {where['memory_gib']} GiB, {where['system']}, "
        f"{where['python']} ({where['compiler']}); "
        f"load {where['load_before']} before, {where['load_after']} after."
    )
    yield ""
    yield "With " + ", ".join(f"{name} {version}" for name, version in document["versions"].items()) + "."
    for group in groups:
        if (found := document["groups"].get(group.name)) is None:
            continue
        yield ""
        yield f"### {group.title}"
        yield ""
        yield f"{group.note} {document['rounds'][group.name]} rounds."
        yield ""
        used = [at for at in range(len(_HEADS)) if at < 2 or any(_cells(one, {})[at] for one in found)]
        yield _line([_HEADS[at] for at in used])
        yield _line(["---"] * len(used))
        for one in found:
            cells = _cells(one, left_out.get(group.name, {}))
            yield _line([cells[at] for at in used])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def with_tables(markdown: str, tables: str) -> str:
    """*markdown* of the page with what stands between its two marks replaced."""
    replaced, number = re.subn(
        f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: f"{BEGIN}{tables}{END}", markdown, flags=re.DOTALL
    )
    if number != 1:
        raise ValueError(f"the page has no {BEGIN.strip()} … {END}")
    return replaced
