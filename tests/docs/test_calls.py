"""What the pages show of calls, records, errors and tests of rules holds; their tables of words are complete."""

from __future__ import annotations

import ast
import asyncio
import inspect
import logging
import os
import re
import subprocess
import sys
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

import headrace
from headrace.adapters.twins import REQUESTS, URLLIB3
from headrace.config.explain.keys import key_at
from headrace.policy.decision import EndReason
from headrace.policy.outcome import FAULT_WORDS, STATUS_WORDS, Fault
from headrace.policy.record import AttemptRecord, Record
from headrace.testing import script
from support.faultserver import Answer, Break, FaultServer
from support.pages import FILE, assert_same, blocks, run, shows, tables, text, text_of, write


@shows("records: What a record holds/1", "records: What a record holds/2")
def test_record_of_a_response(
    hr: headrace.Headrace, upstream: FaultServer, capsys: pytest.CaptureFixture[str]
) -> None:
    upstream.next(Answer(503))
    run("records: What a record holds/1", upstream, requests=requests)
    assert capsys.readouterr().out == blocks()["records: What a record holds/2"].text


@shows("records: As text/1", "records: As text/2")
def test_notes_of_an_exception(
    hr: headrace.Headrace, upstream: FaultServer, capsys: pytest.CaptureFixture[str]
) -> None:
    upstream.always(Break())
    run("records: As text/1", upstream, requests=requests)
    assert_same(blocks()["records: As text/2"].text, capsys.readouterr().out)


@shows("records: As text/3", "records: As text/4", "logs: Logs/1", "logs: Logs/2")
def test_record_of_a_refusal_and_the_log_line_before_it(
    hr: headrace.Headrace, upstream: FaultServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "upstreams.yaml"
    file.write_text(file.read_text().replace("max_attempts: 3", "max_attempts: 1"))
    hr.reload()
    upstream.always(Break())
    root, ours = logging.getLogger(), logging.getLogger("headrace")
    handlers, root.handlers = root.handlers, []
    try:
        run("logs: Logs/1", upstream)
        for _ in range(5):
            with pytest.raises(requests.ConnectionError):
                requests.get(upstream.url)
    finally:
        root.handlers = handlers
        ours.setLevel(logging.NOTSET)
    assert_same(blocks()["logs: Logs/2"].text, capsys.readouterr().err)

    run("records: As text/3", upstream, requests=requests, headrace=headrace)
    assert_same(blocks()["records: As text/4"].text, capsys.readouterr().out)


def test_record_tables_are_complete() -> None:
    rows = [re.findall(r"`(\w+)`", row[0]) for row in tables("records", "Its fields")]
    of_attempt = set(inspect.get_annotations(AttemptRecord))
    computed = {name for name, value in vars(Record).items() if isinstance(value, property)}
    public = {name for name in inspect.get_annotations(Record) if name[0] != "_"} | computed
    assert {name for (name,) in rows[: len(public)]} == public
    assert {name for (name,) in rows[len(public) :]} == of_attempt
    words = [word for row in tables("records", "Why a call ended") for word in re.findall(r"`(\w+)`", row[0])]
    assert sorted(words) == sorted(reason.value for reason in EndReason)


@pytest.mark.parametrize(
    ("page", "heading", "key"),
    [
        ("modes", "Modes", "mode"),
        ("retries", "Pauses", "retry.backoff.jitter"),
        ("circuit-breaker", "By hand", "circuit_breaker.mode"),
    ],
)
def test_a_table_of_what_a_key_may_say_has_all_of_it(page: str, heading: str, key: str) -> None:
    known = key_at(("upstreams", "billing", *key.split(".")))
    assert known is not None
    assert [row[0].strip("`") for row in tables(page, heading)] == [*known.choices]


def test_error_table_has_every_class_with_its_family() -> None:
    rows = {re.findall(r"headrace\.(\w+)", row[0])[0]: row[1] for row in tables("errors", "Errors")}
    twins = [
        REQUESTS.circuit_open,
        REQUESTS.deadline,
        REQUESTS.pool_timeout,
        REQUESTS.pool_rejected,
        REQUESTS.cancelled,
        REQUESTS.too_large,
        REQUESTS.identity,
    ]
    assert set(rows) == {twin.__mro__[1].__name__ for twin in twins}
    for twin in twins:
        named = re.findall(r"requests\.([\w.]+)", rows[twin.__mro__[1].__name__])[0]
        family = attrgetter(named)(requests)
        assert issubclass(twin, family)
    assert issubclass(URLLIB3.circuit_open, headrace.CircuitOpenError)


def test_words_of_retry_on_are_explained() -> None:
    explained = text("retries")
    assert [word for word in FAULT_WORDS if f"`{word}`" not in explained] == []


def test_words_of_retry_on_are_those_of_the_table_and_mean_what_they_mean_there() -> None:
    rows = {word.strip("`"): meaning for word, meaning in tables("retries", "Retries")}
    assert rows.keys() == {*FAULT_WORDS, *STATUS_WORDS}
    for word, faults in FAULT_WORDS.items():
        assert _quoted(rows[word]) == {*faults} - {word}  # a word that names others may name itself, too
    for word, statuses in STATUS_WORDS.items():
        numbers = [int(number) for number in re.findall(r"\d+", rows[word])]
        if rows[word].startswith("all from "):
            first, last, *others = numbers
            numbers = sorted({*range(first, last + 1)} - {*others})
        assert numbers == sorted(statuses)


def test_every_limit_is_in_the_table_of_timeouts() -> None:
    section = key_at(("upstreams", "billing", "timeouts"))
    assert section is not None
    limits = {name for name, key in section.children.items() if key.is_duration}
    assert {name.strip("`") for name, _ in tables("timeouts", "Timeouts")} == limits


def test_words_for_no_answer_are_all_faults_there_are() -> None:
    sentence = _between("testing", "Words for no answer are those of `retry_on` ", " An attempt that")

    assert _quoted(sentence) == {*Fault}
    assert _quoted(sentence.partition(")")[0]) == {
        word for word, meant in FAULT_WORDS.items() if word in meant
    }


def test_words_of_the_script_are_all_faults_there_are() -> None:
    body = ast.parse(inspect.getsource(script)).body
    at = next(nth for nth, one in enumerate(body) if isinstance(one, ast.AnnAssign))
    said = body[at + 1]
    assert isinstance(said, ast.Expr)
    assert isinstance(said.value, ast.Constant)

    assert _quoted(str(said.value.value)) == {*Fault}
    for word in Fault:
        assert script.reply(word.value, takes=None, retry_after=None, body=b"").what is word


def _between(page: str, start: str, end: str) -> str:
    words = " ".join(text(page).split())
    assert words.count(start) == 1
    return words.partition(start)[2].partition(end)[0]


def _quoted(text: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", text))


@shows("retries: Your own retries/1")
def test_a_session_with_retries_of_its_own(hr: headrace.Headrace, upstream: FaultServer) -> None:
    names = run(
        "retries: Your own retries/1", upstream, requests=requests, HTTPAdapter=HTTPAdapter, Retry=Retry
    )
    with names["session"] as session:
        session.mount("http://", session.adapters["https://"])
        upstream.next(Answer(503), Answer(503))
        assert len(session.get(upstream.url).headrace.attempts) == 3


@shows("circuit-breaker: For anything that fails/1")
def test_a_function_is_protected_as_shown(folder: Path, upstream: FaultServer) -> None:
    class Stub:
        @staticmethod
        def GetInvoice(number: int) -> str:
            if number < 0:
                raise OSError
            return f"invoice {number}"

    with headrace.install("upstreams.yaml"):
        invoice = run("circuit-breaker: For anything that fails/1", upstream, stub=Stub)["invoice"]
        assert invoice(7) == "invoice 7"
        with pytest.raises(OSError):
            invoice(-1)
        status = headrace.current().status()["upstreams"]["billing"]
        assert status["protected"] == {"success": 1, "failure": 1}


@shows("urllib3: urllib3 and what is built on it/1")
def test_urllib3_is_governed_as_shown(folder: Path, upstream: FaultServer) -> None:
    write(folder, "upstreams.yaml", "urllib3: urllib3 and what is built on it/1", upstream)
    with headrace.install("upstreams.yaml"), urllib3.PoolManager() as manager:
        assert urllib3.request("GET", upstream.url).headrace.upstream == "billing"
        assert manager.request("GET", upstream.url).headrace.upstream == "billing"
        assert requests.get(upstream.url).headrace.upstream == "billing"


@shows("names: Calling by name/1")
def test_calls_by_name(hr: headrace.Headrace, upstream: FaultServer) -> None:
    names = run("names: Calling by name/1", upstream, headrace=headrace)
    assert names["answer"].json() == {"invoice": 7}
    assert (names["raw"].status, names["raw"].headrace.upstream) == (200, "billing")
    assert [request.target for request in upstream.requests] == ["/invoices/7"] * 3


@shows("async: Awaited calls/1")
def test_awaited_calls(hr: headrace.Headrace, upstream: FaultServer) -> None:
    names = run("async: Awaited calls/1", upstream, headrace=headrace)
    assert asyncio.run(names["pay"](7)) == {"invoice": 7}
    assert [(request.method, request.target, request.body) for request in upstream.requests] == [
        ("GET", "/invoices/7?full=1", b""),
        ("POST", "/payments", b'{"invoice":7}'),
        ("GET", "/export", b""),
    ]


@shows("testing: Testing your rules/1", "testing: Testing your rules/2")
def test_a_simulation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "upstreams.yaml").write_text(text_of(FILE))
    names: dict[str, Any] = {}
    exec(text_of("testing: Testing your rules/1"), names)

    names["test_billing_opens_and_recovers"]()

    shown, printed = text_of("testing: Testing your rules/2"), capsys.readouterr().out
    assert printed.startswith(shown.removesuffix("…\n"))


@shows("testing: Tests of your application/1")
def test_the_pytest_plugin(folder: Path, upstream: FaultServer) -> None:
    write(folder, "test_invoices.py", "testing: Tests of your application/1", upstream)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "pytest_headrace", "--strict-markers", "-W", "error"],
        cwd=folder,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert upstream.requests == []
