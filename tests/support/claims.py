"""The tests that claim a failure: `python tests/support/claims.py` lists them in failures.md, a test compares."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]
FAILURES = TESTS.parent / "plugin/headrace/docs/failures.md"

CITED = re.compile(r"failures\.md (\d+)")
_HEADED = re.compile(r"### (\d+)\. ")


def sections(text: str) -> Iterator[tuple[int | None, str]]:
    """What is below each heading of *text*, heading included; with its number where it is that of a failure."""
    for part in re.split(r"(?m)^(?=#)", text):
        found = _HEADED.match(part)
        yield (int(found[1]) if found else None), part


def claims() -> dict[int, dict[str, list[str]]]:
    """By number and file below `tests/`: the functions whose docstring cites it, in their order."""
    found: dict[int, dict[str, list[str]]] = {}
    for file in sorted(TESTS.rglob("*.py")):
        for name, docstring in _functions(file):
            for number in sorted(set(CITED.findall(docstring)), key=int):
                of_file = found.setdefault(int(number), {})
                of_file.setdefault(file.relative_to(TESTS).as_posix(), []).append(name)
    return found


def _functions(file: Path) -> Iterator[tuple[str, str]]:
    source = file.read_text("utf-8")
    if not CITED.search(source):
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, ast.get_docstring(node) or ""


def with_claims(text: str) -> str:
    """*text* of failures.md with the list below each number renewed."""
    claimed = claims()
    return "".join(
        part if number is None else _listed(part, claimed.get(number, {})) for number, part in sections(text)
    )


def _listed(part: str, claimed: dict[str, list[str]]) -> str:
    said = "".join(line for line in part.splitlines(keepends=True) if not line.startswith("- `"))
    lines = [f"- `{file}`: {', '.join(f'`{name}`' for name in names)}\n" for file, names in claimed.items()]
    return f"{said.rstrip()}\n\n{''.join(lines)}\n"


if __name__ == "__main__":
    FAILURES.write_text(with_claims(FAILURES.read_text("utf-8")).rstrip() + "\n", "utf-8")
