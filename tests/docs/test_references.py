"""Nothing in the repository points to what is not in it: the reader has these files and no others."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Each has a class of one character in it, so that no pattern finds itself.
POINTERS = {
    "the design": r"DESIG[N]\b",
    "a pitfall by its number": r"PITFAL[L]|Pitfal[l]",
    "an issue by its number": r"\b[Ii]ssue[s]? #?\d",
    "a page beside the repository": r"\bSTYL[E]\.md|\bshare[d]/\w",
}


def files() -> Iterator[Path]:
    """All that is published, as text; what is not is left out by its folder."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    for name in (*project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"], "pyproject.toml"):
        place = ROOT / name
        yield from [place] if place.is_file() else (one for one in place.rglob("*") if one.is_file())


@functools.cache
def lines() -> list[tuple[str, str]]:
    """Each line with its place."""
    found = []
    for file in files():
        # The sample application has a virtual environment in its folder, once it was run.
        if not any(
            part == "__pycache__" or part.startswith(".venv") for part in file.relative_to(ROOT).parts
        ):
            try:
                text = file.read_text("utf-8")
            except UnicodeDecodeError:
                continue
            for number, line in enumerate(text.splitlines(), 1):
                found.append((f"{file.relative_to(ROOT)}:{number}", line))
    return found


@pytest.mark.parametrize("pointer", POINTERS)
def test_no_line_points_to(pointer: str) -> None:
    pattern = re.compile(POINTERS[pointer])
    found = [place for place, line in lines() if pattern.search(line)]
    assert found == [], (
        "say the reason there, or cite failures.md or architecture.md, which are in the package"
    )


def test_all_that_is_published_is_looked_at() -> None:
    looked_at = {place.partition(":")[0] for place, _ in lines()}
    assert {"README.md", "pyproject.toml", ".ci/run", "plugin/headrace/app.py", "sample_app/run"} <= looked_at
    assert len(looked_at) > 400
