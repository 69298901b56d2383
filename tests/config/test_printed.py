"""What is printed holds nothing that a terminal obeys, wherever it came from."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import headrace
from headrace.cli import main
from headrace.config.explain.keys import yaml_text
from headrace.config.source.document import read_flow
from headrace.config.source.tree import plain
from headrace.observe import events
from headrace.observe.logs import emit
from headrace.policy.printable import printable, printable_lines

RED = "\x1b[31mred\x9b0m\u202e"  # an escape sequence, C1's, and text that runs backwards
SHOWN = r"\x1b[31mred\x9b0m\u202e"


def is_fit(text: str) -> bool:
    return all(char.isprintable() or char == "\n" for char in text)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "u.yaml").write_text("upstreams: {u: {base_url: 'http://u.internal'}}\n")
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["explain", "u.yaml", f"http://u.internal/{RED}"], id="a URL"),
        pytest.param(["explain", "u.yaml", f"http://{RED}/\nforged"], id="a URL of nobody"),
        pytest.param(["explain", "u.yaml", "http://u/", RED], id="one argument too many"),
        pytest.param([RED], id="no command"),
        pytest.param(["explain", "u.yaml", "http://u.internal", "--method", RED], id="a method"),
        pytest.param(["explain", f"{RED}.yaml", "http://u.internal"], id="a file to explain"),
        pytest.param(["check", f"{RED}.yaml"], id="a file to check"),
        pytest.param(["check", "--format", "json", f"{RED}.yaml"], id="as JSON"),
    ],
)
def test_what_the_command_line_brings_is_printed_harmlessly(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    """failures.md 66: `headrace explain` obeyed the escape sequences of its argument."""
    main(arguments)
    captured = capsys.readouterr()
    assert is_fit(captured.out + captured.err), captured
    assert "[31mred" in captured.out + captured.err
    assert "\nforged" not in captured.out


FILES = [
    pytest.param('u: {base_url: "${file:a\\0b}"}', id="a NUL in the name of a file"),
    pytest.param('u: {base_url: "${file:a\\e[31m}"}', id="an escape in the name of a file"),
    pytest.param('u: {base_url: "${env:A\\e[31m}"}', id="in the name of a variable"),
    pytest.param('"u\\e[31m": {base_url: "http://u"}', id="in a name"),
    pytest.param('u: {base_url: "http://u", "ke\\e[31my": 1}', id="in a key"),
    pytest.param('u: {base_url: "http://u", mode: "\\e[31m"}', id="in a word"),
    pytest.param('u: {base_url: "http://u", extends: "\\e[31m"}', id="in a reference"),
    pytest.param('u: {base_url: "http://u", fallback: {upstream: "\\e[31m"}}', id="in a fallback"),
    pytest.param('u: {base_url: "http://u", circuit_breaker: {failure_if: "a\\e:b"}}', id="in a function"),
    pytest.param('u: {base_url: "http://u\\e"}', id="in a URL"),
    pytest.param('u: {base_url: "https://u", tls: {ca: "/a\\e\\0b"}}', id="in the name of a CA"),
    pytest.param('u: {base_url: "http://u", timeouts: {deadline: "1\\e\\x9b"}}', id="in a duration"),
]


@pytest.mark.parametrize("text", FILES)
def test_what_the_file_holds_is_printed_harmlessly(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    """failures.md 66."""
    (folder / "u.yaml").write_text(f"upstreams:\n  {text}\n")
    assert main(["check", "u.yaml"]) == 1
    main(["check", "--format", "json", "u.yaml"])
    captured = capsys.readouterr()
    assert is_fit(captured.out + captured.err), captured
    assert json.loads(captured.out)["problems"]
    with pytest.raises(headrace.ConfigError) as caught:
        headrace.Headrace("u.yaml")
    assert is_fit(str(caught.value)), caught.value


def test_an_event_is_one_line_and_its_fields_are_fit_to_be_printed(caplog: pytest.LogCaptureFixture) -> None:
    """failures.md 66: and its line breaks are no second line of the log."""
    emit(
        events.ConfigRejected(
            files=(f"/etc/{RED}.yaml",),
            problems=f"u.yaml:3:5: {RED}\n    \0wrong",
            problem_count=1,
            digest_in_force="abc123",
            loaded_at="14:02:11",
        )
    )
    emit(events.CallUngoverned(reason="tls", upstream="u", call_site=f"/app/{RED}\nforged.py:7"))
    rejected, passed = caplog.records
    assert rejected.levelno == logging.ERROR
    for record in (rejected, passed):
        assert record.getMessage().isprintable()
        assert SHOWN in record.getMessage().replace("\\\\", "\\")
    assert rejected.problems == f"u.yaml:3:5: {SHOWN}\n    \\x00wrong"  # type: ignore[attr-defined]
    assert rejected.files == (f"/etc/{SHOWN}.yaml",)  # type: ignore[attr-defined]


def test_only_what_is_not_printable_is_escaped() -> None:
    assert printable("straße, 100 %, \\x1b") == "straße, 100 %, \\x1b"
    assert printable(RED) == SHOWN
    assert printable("a\nb") == "a\\nb"
    assert printable_lines("a\x00\nb\r") == "a\\x00\nb\\r"
    assert printable("\ud800") == "\\ud800"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=3))
@example(
    [
        "[]",
        "a: b",
        "a #b",
        'say "so"',
        "back\\slash",
        "- a",
        "",
        "null",
        "1.0",
        "a,",
        "${env:A}",
        "a:",
        "\x9b\U00011daa\n",
    ]
)
def test_a_text_that_is_printed_as_yaml_is_read_back_as_that_text(texts: list[str]) -> None:
    """The fix of a refused `fallback` was refused itself: `body: []` is a list."""
    assert plain(read_flow(yaml_text(texts), "u.yaml")) == texts
    assert plain(read_flow(yaml_text({"key": texts}), "u.yaml")) == {"key": texts}


def test_the_example_of_a_fallback_can_be_written_as_it_is_printed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "u.yaml").write_text("upstreams: {u: {base_url: 'http://u.internal', fallback: 3}}\n")
    assert main(["check", "u.yaml"]) == 1
    assert '    for example: fallback: {status: 200, body: "[]"}\n' in capsys.readouterr().err
