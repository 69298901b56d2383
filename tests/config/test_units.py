"""Durations and sizes: what is read, what is refused, what is written back."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.config.source.units import (
    DURATION_PATTERN,
    SIZE_PATTERN,
    format_duration,
    format_size,
    nearest_duration,
    nearest_size,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("2s", 2.0),
        ("5m", 300.0),
        ("1h", 3600.0),
        ("0s", 0.0),
        ("1.5s", 1.5),
        ("0.5ms", 0.0005),
        ("100ms", 0.1),
        ("007s", 7.0),
    ],
)
def test_duration_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4",
        "s",
        "4 s",
        " 4s",
        "4s ",
        "4s\n",
        "-1s",
        "+1s",
        "1e3s",
        ".5s",
        "1.s",
        "1,5s",
        "4S",
        "4sec",
        "1h30m",
        "1:30",
        "٤s",
        "∞s",
        "nan",
        "1d",
        "9" * 500 + "s",
    ],
)
def test_anything_else_is_refused_and_not_repeated_in_the_error(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_duration(text)
    assert str(caught.value) == "not a duration"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.25, "250ms"),
        (1.5, "1.5s"),
        (60.0, "60s"),
        (90.0, "90s"),
        (120.0, "2m"),
        (3600.0, "1h"),
        (5400.0, "90m"),
    ],
)
def test_duration_is_written_in_the_largest_unit_without_a_fraction(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.from_regex(r"[0-9]{1,6}(\.[0-9]{1,3})?(ms|s|m|h)", fullmatch=True).filter(str.isascii))
def test_what_is_read_and_written_is_read_the_same(text: str) -> None:
    seconds = parse_duration(text)
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=1e-9, abs=1e-9)


@given(st.text(max_size=30))
def test_no_text_makes_the_parser_do_anything_but_answer_or_refuse(text: str) -> None:
    import re

    try:
        seconds = parse_duration(text)
    except ValueError:
        return
    assert seconds >= 0
    assert re.search(DURATION_PATTERN, text)


@pytest.mark.parametrize(
    ("found", "meant"),
    [
        (4, "4s"),
        (4.5, "4.5s"),
        ("5 sec", "5s"),
        ("2 s", "2s"),
        ("3 Minutes", "3m"),
        ("10 msec", "10ms"),
        ("2S", "2s"),
        ("5 days", "120h"),
        ("1d", "24h"),
        ("1m30s", "90s"),
        ("1h 5m", "65m"),
        ("PT2S", "2s"),
        ("P1DT12H", "36h"),
        (".01s", "10ms"),
        ("1,5s", "1.5s"),
        ("1e3ms", "1s"),
        ("1500us", "0.0015s"),
        ("00:01:30", "90s"),
    ],
)
def test_near_miss_is_understood(found: object, meant: str) -> None:
    assert nearest_duration(found) == meant


@pytest.mark.parametrize("found", [True, None, "soon", "1:30", "-1s", "5 months", [1]])
def test_far_miss_is_not_guessed_at(found: object) -> None:
    assert nearest_duration(found) is None


@pytest.mark.parametrize(
    ("text", "size"),
    [("1B", 1), ("1500B", 1500), ("64KiB", 65536), ("10MiB", 10 << 20), ("2GiB", 2 << 30), ("0B", 0)],
)
def test_size_is_a_number_and_a_unit_and_is_written_as_it_was(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert format_size(size) == text
    assert re.search(SIZE_PATTERN, text)


@pytest.mark.parametrize(
    "text", ["", "64", "KiB", "64 KiB", "64KB", "64kib", "1.5MiB", "-1B", "64KiB\n", "٣B"]
)
def test_another_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("found", "meant"),
    [
        (65536, "64KiB"),
        ("64 KiB", "64KiB"),
        ("64kib", "64KiB"),
        ("64kB", "64000B"),
        ("1 MB", "1000000B"),
        ("64Ki", "64KiB"),
        ("1.5MiB", "1536KiB"),
    ],
)
def test_a_near_miss_of_a_size_is_understood_and_keeps_its_meaning(found: object, meant: str) -> None:
    assert nearest_size(found) == meant


@pytest.mark.parametrize("found", [True, None, 1.5, "large", "64K", "1.5B", []])
def test_a_far_miss_of_a_size_is_not_guessed_at(found: object) -> None:
    assert nearest_size(found) is None
