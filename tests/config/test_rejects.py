"""Golden rejects: every kind of bad input, and exactly what its author is told.

To add one, write `NN-words.yaml`, run the test and judge the text that it prints before saving it as `NN-words.txt`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.config import load
from headrace.errors import ConfigError

REJECTS = Path(__file__).with_name("rejects")
ENVIRONMENT = {
    "TOKEN": "t0ken",
    "SECRET": "hunter2",
    "SECRET_TWO_LINES": "hunter2\nhunter2",
    "SHORT": "1234ms",
}


@pytest.mark.parametrize("file", sorted(REJECTS.glob("*.yaml")), ids=lambda file: file.stem)
def test_bad_file_is_refused_with_every_problem_its_position_and_the_way_out(file: Path) -> None:
    """failures.md 50: no bad value is repaired in silence."""
    with pytest.raises(ConfigError) as caught:
        load(file.name, env=ENVIRONMENT, cwd=REJECTS)
    text = str(caught.value).replace(str(REJECTS), "<cwd>") + "\n"
    print(text)
    assert text == file.with_suffix(".txt").read_text(encoding="utf-8")
    assert "hunter2" not in text + repr(caught.value.problems)


def test_every_reject_has_a_number_of_its_own_and_a_text() -> None:
    files = sorted(REJECTS.glob("*.yaml"))
    assert [file.stem[:2] for file in files] == [f"{number:02d}" for number in range(1, len(files) + 1)]
    assert {file.stem for file in files} == {file.stem for file in REJECTS.glob("*.txt")}


def test_problems_come_sorted_by_line_and_can_be_read_by_programs() -> None:
    with pytest.raises(ConfigError) as caught:
        load("61-header-names-and-values.yaml", env={}, cwd=REJECTS)
    problems = caught.value.problems
    assert [problem.line for problem in problems] == sorted(problem.line for problem in problems)
    assert (problems[0].file, problems[0].line, problems[0].column) == (
        "61-header-names-and-values.yaml",
        5,
        7,
    )
    assert caught.value.watched == (str(REJECTS / "61-header-names-and-values.yaml"),)
