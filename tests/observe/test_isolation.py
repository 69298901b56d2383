"""One element that raises: what the others get, and what is said of it."""

from __future__ import annotations

import logging

import pytest

from headrace.observe.isolation import answers, each, stumbled


def test_an_element_that_raises_is_left_out_and_the_others_are_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """failures.md 59."""

    class Odd(Exception):
        pass

    def halved(number: int) -> int:
        if number % 2:
            raise Odd(number)
        return number // 2

    assert list(answers([2, 3, 4, 5], halved, doing="halve")) == [(2, 1), (4, 2)]
    assert list(answers([7, 8], halved, doing="halve")) == [(8, 4)]
    assert [record.getMessage() for record in caplog.records] == [
        "could not halve; the rest goes on, and this is said once"
    ]
    assert caplog.records[0].exc_info is not None


def test_an_interrupt_is_nobodys_element() -> None:
    seen: list[int] = []

    def interrupted(number: int) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        each([1, 2], interrupted, doing="count")
    assert seen == [1]


def test_each_kind_of_error_in_each_matter_is_said(caplog: pytest.LogCaptureFixture) -> None:
    class One(Exception):
        pass

    class Other(Exception):
        pass

    for _ in range(3):
        for doing in ("look at a", "look at b"):
            for kind in (One, Other):
                stumbled(doing, kind())
    assert len(caplog.records) == 4


def test_a_log_that_raises_is_nobodys_trouble() -> None:
    class Kind(Exception):
        pass

    class Filter(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise RuntimeError("the application's filter is broken")

    logger, broken = logging.getLogger("headrace"), Filter()
    logger.addFilter(broken)
    try:
        stumbled("do it", Kind())
    finally:
        logger.removeFilter(broken)
