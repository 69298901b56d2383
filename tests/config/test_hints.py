"""`hint:` lines of `headrace check`: retries around a governed call multiply with its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace.cli import main
from headrace.config.check.hints import SDKS

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def checked(folder: Path, capsys: Captured, text: str) -> str:
    """What check says on stderr; it is content with the file."""
    (folder / "u.yaml").write_text(text)
    assert main(["check", "u.yaml"]) == 0
    return capsys.readouterr().err


def upstream(host: str, more: str = "") -> str:
    return f"upstreams:\n  pay:\n    base_url: https://{host}\n{more}"


@pytest.mark.parametrize(
    ("host", "fix"),
    [
        ("api.stripe.com", "stripe.max_network_retries = 0"),
        ("stripe.com", "stripe.max_network_retries = 0"),
        ("me.blob.core.windows.net", "retry_total=0"),
        ("me.vault.azure.net", "retry_total=0"),
        ("storage.googleapis.com", "retry=None"),
    ],
)
def test_an_sdk_that_retries_by_itself_is_hinted_at_by_its_host(
    folder: Path, capsys: Captured, host: str, fix: str
) -> None:
    said = checked(folder, capsys, upstream(host, "    retry: {max_attempts: 4}\n"))

    assert said.startswith("hint: u.yaml:3:15: upstreams.pay.base_url\n")
    assert "Such attempts multiply with the 4 of retry.max_attempts" in said
    assert fix in said.splitlines()[-1]


@pytest.mark.parametrize("more", ["", "    retry: {max_attempts: 1}\n"], ids=["retried", "not retried"])
def test_of_boto3_it_is_said_that_its_calls_leave_no_trace_where_urllib3_is_not_governed(
    folder: Path, capsys: Captured, more: str
) -> None:
    said = checked(folder, capsys, upstream("s3.eu-west-1.amazonaws.com", more))

    assert said.count("hint:") == 1
    assert "boto3 calls over urllib3, which is not governed here" in said
    assert said.endswith("to govern them, write install: {urllib3: true}\n")


def test_of_boto3_it_is_said_that_its_own_attempts_stay_the_only_ones_where_it_is(
    folder: Path, capsys: Captured
) -> None:
    """test_boto3 shows that they do."""
    said = checked(folder, capsys, "install: {urllib3: true}\n" + upstream("s3.amazonaws.com"))

    assert "boto3 makes up to 5 attempts by itself, and these stay the only ones" in said
    assert "multiply with the" not in said


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(upstream("billing.internal"), id="nobody's host"),
        pytest.param(upstream("notstripe.com"), id="a host that only ends alike"),
        pytest.param(upstream("stripe.com.evil.org"), id="a host that only begins alike"),
        pytest.param(upstream("api.stripe.com", "    retry: {max_attempts: 1}\n"), id="no retries here"),
        pytest.param(upstream("api.stripe.com", "    mode: off\n"), id="off"),
        pytest.param("install: {requests: false}\n" + upstream("api.stripe.com"), id="only calls by name"),
        pytest.param(upstream("s3.amazonaws.com", "    mode: off\n"), id="boto3, off"),
    ],
)
def test_where_nothing_multiplies_nothing_is_said(folder: Path, capsys: Captured, text: str) -> None:
    assert checked(folder, capsys, text) == ""


def test_a_host_of_match_is_hinted_at_where_it_stands_and_an_sdk_only_once(
    folder: Path, capsys: Captured
) -> None:
    more = "    match:\n      - https://api.stripe.com\n      - https://files.stripe.com\n"
    said = checked(folder, capsys, upstream("billing.internal", more))

    assert said.count("hint:") == 1
    assert "hint: u.yaml:5:9: upstreams.pay.match[0]" in said


def test_a_host_that_is_a_secret_is_not_given_away(
    folder: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """failures.md 52."""
    monkeypatch.setenv("PAY_HOST", "api.stripe.com")

    assert checked(folder, capsys, upstream("${env:PAY_HOST}")) == ""


def test_governing_urllib3_is_hinted_at_in_general_once(folder: Path, capsys: Captured) -> None:
    text = (
        "install: {urllib3: true}\n"
        "upstreams: {a: {base_url: https://a}, b: {base_url: https://b, retry: {max_attempts: 5}}}\n"
    )
    said = checked(folder, capsys, text)

    assert said.count("hint:") == 1
    assert "hint: u.yaml:1:20: install.urllib3\n" in said
    assert "multiply with max_attempts here (up to 5)" in said
    assert (
        checked(folder, capsys, text.replace("5}", "1}").replace("https://a}", "https://a, mode: off}")) == ""
    )


def test_hints_are_neither_findings_nor_warnings(folder: Path, capsys: Captured) -> None:
    from headrace.config import load

    (folder / "u.yaml").write_text(upstream("api.stripe.com"))
    assert main(["check", "u.yaml", "--format", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)

    assert (answer["good"], answer["findings"], answer["warnings"]) == (True, [], [])
    assert [hint["path"] for hint in answer["hints"]] == ["upstreams.pay.base_url"]
    assert load("u.yaml").warnings == ()


def test_a_file_with_problems_has_no_hints_yet(folder: Path, capsys: Captured) -> None:
    (folder / "u.yaml").write_text(upstream("api.stripe.com", "    retry: {max_attempts: three}\n"))
    assert main(["check", "u.yaml", "--format", "json"]) == 1
    assert json.loads(capsys.readouterr().out)["hints"] == []


def test_no_domain_belongs_to_two() -> None:
    hosts = [host for sdk in SDKS for host in sdk.hosts]

    assert len(hosts) == len(set(hosts))
