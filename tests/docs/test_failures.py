"""failures.md and the tests say the same: every failure on it is claimed, and what is cited is on it."""

from __future__ import annotations

from support.claims import CITED, FAILURES, TESTS, claims, sections, with_claims


def listed() -> list[int]:
    """The numbers on the page. Read when it is asked for: beside a wheel there are no sources to be collected with."""
    return [number for number, _ in sections(FAILURES.read_text("utf-8")) if number is not None]


def test_each_failure_lists_the_tests_whose_docstrings_cite_it() -> None:
    text = FAILURES.read_text("utf-8")
    assert with_claims(text).rstrip() == text.rstrip(), "renew it with: python tests/support/claims.py"


def test_each_failure_is_claimed_and_its_number_is_given_once() -> None:
    numbers = listed()
    assert sorted(set(numbers)) == numbers
    assert sorted(claims()) == numbers


def test_each_failure_says_what_headrace_does() -> None:
    said = {
        number: [line for line in part.splitlines()[1:] if line and not line.startswith(("- ", "#"))]
        for number, part in sections(FAILURES.read_text("utf-8"))
        if number is not None
    }
    assert [number for number, lines in said.items() if not lines] == []


def test_whatever_cites_a_failure_cites_one_that_is_listed() -> None:
    root, numbers = TESTS.parent, listed()
    cited = {
        int(number): file.relative_to(root).as_posix()
        for folder in ("plugin", "tests", "sample_app")
        for file in (root / folder).rglob("*.py")
        for number in CITED.findall(file.read_text("utf-8"))
    }
    assert {number: file for number, file in cited.items() if number not in numbers} == {}
