"""`headrace help`: pages, keys and words at a terminal."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from headrace.cli import main
from headrace.cli.help import ALIASES, PAGE_OF, every_key
from headrace.cli.help import pages as help_pages
from headrace.cli.markdown import for_terminal
from headrace.config.explain.keys import Key, root_key
from headrace.config.explain.reference import key_reference
from headrace.runtime.migrate import ROWS
from support.pages import pages, text

OF_UPSTREAM = "upstreams.<name>."


def helped(capsys: pytest.CaptureFixture[str], *topic: str, code: int = 0) -> str:
    """What `headrace help` prints; its errors for *code* 2."""
    assert main(["help", *topic]) == code
    printed = capsys.readouterr()
    assert (printed.out if code else printed.err) == ""
    return printed.err if code else printed.out


def referred() -> dict[str, list[str]]:
    """By key, what the reference says of it: type, default, range, description."""
    rows = [re.split(r" (?<!\\)\| ", row[2:-2]) for row in key_reference().splitlines()[2:]]
    return {name.strip("`"): [cell.strip().replace("\\|", "|") for cell in cells] for name, *cells in rows}


# --- Keys -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", referred())
def test_a_key_is_told_as_the_reference_has_it(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    kind, default, bounds, description = referred()[name]

    said = " ".join(helped(capsys, name).split())

    assert said.startswith(name)
    assert f"type {kind}" in said
    assert not bounds or f"range {bounds}" in said
    if name not in {"defaults", "upstreams"}:
        assert f"default {default.strip('`') or 'none'}".replace("required", "none: it is required") in said
        assert description in said
        assert re.search(r"an edit (live|resize|rebuild): ", said)


@pytest.mark.parametrize("own", ROWS)
def test_what_an_edit_of_a_key_needs_is_what_a_reload_asks(
    own: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = " ".join(helped(capsys, OF_UPSTREAM + own).split())
    assert f"an edit {ROWS[own].change}: " in said
    assert ROWS[own].note in said


def test_every_key_and_every_section_of_the_models_is_known() -> None:
    def walk(key: Key, path: str) -> None:
        for name, child in key.children.items():
            full = f"{path}.{name}" if path else name
            assert full in every_key()
            if full != "defaults":
                walk(child, full)

    walk(root_key(), "")
    assert set(referred()) <= set(every_key())


@pytest.mark.parametrize(
    ("topic", "name"),
    [
        ("retry.budget.ratio", "upstreams.<name>.retry.budget.ratio"),
        ("defaults.retry.budget.ratio", "upstreams.<name>.retry.budget.ratio"),
        ("upstreams.billing.retry.budget.ratio", "upstreams.<name>.retry.budget.ratio"),
        ("`max_attempts`", "upstreams.<name>.retry.max_attempts"),
        ("retry.retry_after.headers[0].name", "upstreams.<name>.retry.retry_after.headers[].name"),
        ("service.deadline", "service.deadline"),
        ("retry.budget", "upstreams.<name>.retry.budget"),
    ],
)
def test_a_key_is_found_however_it_is_named(
    topic: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert helped(capsys, topic).splitlines()[0] == name


def test_a_section_lists_its_keys(capsys: pytest.CaptureFixture[str]) -> None:
    said = helped(capsys, "retry.budget")
    listed = re.findall(r"^    (\w+)", said.partition("Keys of")[2], re.MULTILINE)
    assert listed == ["ratio", "min_per_second", "ttl"]


def test_the_page_that_says_more_exists_for_every_key() -> None:
    firsts = {name.removeprefix(OF_UPSTREAM).partition(".")[0] for name in every_key()}
    assert firsts == PAGE_OF.keys()
    assert {*PAGE_OF.values()} <= pages().keys()


# --- Pages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", sorted(pages().keys() - {"README"}))
def test_a_page_is_printed_whole_and_no_line_is_too_long(
    page: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = helped(capsys, page)
    not_text = re.compile(r"<!--.*?-->|\]\(\S+?\)|^```\w*$|^\|.*\n(?=\| ?---)", re.MULTILINE)
    missing = set(re.findall(r"\w{4,}", not_text.sub("", text(page)))) - set(re.findall(r"\w+", said))
    assert missing == set()
    filled = [line for line in said.splitlines() if line[:1] != "#" and " " in line.strip()]
    assert [line for line in filled if len(line) > 80 and not line.startswith("    ")] == []


@pytest.mark.smoke
def test_without_a_topic_the_contents_are_printed_with_what_to_type(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = helped(capsys)
    named = re.findall(r"^- .* \(([\w-]+)\)", said, re.MULTILINE)
    assert sorted(named) == sorted(pages().keys() - {"README", "index"})


def test_a_page_that_has_the_name_of_a_section_ends_with_its_keys(capsys: pytest.CaptureFixture[str]) -> None:
    said = helped(capsys, "timeouts")
    assert said.startswith("# Timeouts")
    assert "tls_handshake  TLS handshake" in said


def test_markdown_becomes_text() -> None:
    page = (
        "# Head\n\n<!-- x:begin -->\n| key | kind | |\n| --- | --- | --- |\n| `a` | x \\| y | [b](c.md#d) |\n"
        "<!-- x:end -->\n\nSome **words**, [here](#head)\n[there](https://there.example).\n\n"
        "- an item\n  that goes on\n1. one\n\n```sh\n# no | head\n```\n"
    )
    assert for_terminal(page, width=20) == (
        "# Head\n\n`a`\n    kind: x | y\n    b (c)\n\nSome words, here\nthere\n<https://there.example>.\n\n"
        "- an item that goes\n  on\n1. one\n\n    # no | head\n"
    )


# --- Words ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "page", "says"),
    [
        ("breaker.opened", "logs", "A circuit changed its state"),
        ("headrace_pool_waiting", "metrics", "Calls waiting for a connection."),
        ("CircuitOpenError", "errors", "Refused, nothing was sent."),
        ("headrace.CircuitOpenError", "errors", "Refused, nothing was sent."),
        ("not_replayable", "records", "the body can be sent only once"),
        ("forced_open", "circuit-breaker", "Refuses every call"),
    ],
)
def test_a_word_of_a_table_is_told(
    word: str, page: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = helped(capsys, word)
    assert f"# From the page {page}" in said
    assert says in " ".join(said.split())


@pytest.mark.parametrize(
    ("topic", "nearest"),
    [
        ("rety.budget.ratio", "retry.budget.ratio"),
        ("breaker.openend", "breaker.opened"),
        ("backoff.maximum", "retry.backoff.max"),
        ("adaptive.max", "pool.adaptive.min"),
        ("tls.verfy", "tls.verify"),
    ],
)
def test_an_unknown_topic_is_answered_with_the_nearest(
    topic: str, nearest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"did you mean {nearest}?" in helped(capsys, topic, code=2)


def test_an_end_that_several_keys_have_is_answered_with_all_of_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = helped(capsys, "multiplier", code=2)
    assert "did you mean retry.backoff.multiplier or circuit_breaker.open_for.multiplier?" in said


@pytest.mark.parametrize(
    "topic", ["", "*", "../../etc/passwd", "\x1b[2J", "q" * 10_000, "retry.budget.", "[", "."]
)
def test_what_is_like_nothing_leads_to_the_contents(topic: str, capsys: pytest.CaptureFixture[str]) -> None:
    if topic:
        said = helped(capsys, topic, code=2)
        assert "there is no page, key or word" in said
        assert "\x1b" not in said
    else:
        assert helped(capsys, topic) == helped(capsys)


# --- Where it is printed --------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_that_has_not_every_character_gets_the_text(encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "headrace.cli", "help", "timeouts"],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert "# Timeouts" in done.stdout.decode(encoding)


# --- Advanced keys, and JSON ----------------------------------------------------------------------------


def test_a_key_that_most_files_do_without_is_called_advanced(capsys: pytest.CaptureFixture[str]) -> None:
    assert "advanced most files do without it" in helped(capsys, "retry.budget.ratio")
    assert "advanced" not in helped(capsys, "retry.max_attempts")


def test_json_has_the_facts_of_a_key_and_the_text_of_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    key = json.loads(helped(capsys, "max_attempts", "--format", "json"))
    assert key["key"] == "upstreams.<name>.retry.max_attempts"
    assert (key["type"], key["default"], key["range"]) == ("integer", "3", "1 to 100")
    assert key["an_edit"].startswith("live: ")

    page = json.loads(helped(capsys, "pool", "--format", "json"))
    assert page["text"].startswith("# The connection pool")
    assert "key" not in page


def test_what_is_not_known_is_null_in_json_with_what_is_near(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "retry.max_attemts", "--format", "json"]) == 2
    assert json.loads(capsys.readouterr().out) == {
        "topic": "retry.max_attemts",
        "text": None,
        "near": ["retry.max_attempts"],
    }


@pytest.mark.parametrize(
    ("topic", "said"),
    [
        ("retry_on", "upstreams.<name>.retry.retry_on"),
        ("failure_on", "upstreams.<name>.circuit_breaker.failure_on"),
        ("max_connections", "upstreams.<name>.pool.max_connections"),
        ("HEADRACE_MODE", "HEADRACE_MODE=off"),
        ("HEADRACE_FILE", "HEADRACE_FILE"),
        ("check", "headrace check"),
        ("breaker", "circuit breaker"),
        ("celery", "Celery"),
    ],
)
def test_what_people_type_leads_to_what_they_mean(
    topic: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = helped(capsys, topic)
    assert said in told
    assert "FAULT_WORDS" not in told  # a word of those who work on headrace


def test_every_alias_leads_to_a_page() -> None:
    assert set(ALIASES.values()) <= {*help_pages()}
    assert not {*ALIASES} & {*help_pages()}
