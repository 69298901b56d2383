"""The command line: exit codes, what goes where, what explain says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.cli import main
from headrace.config import load
from headrace.config.explain.schema import json_schema
from headrace.policy.breaker.transition import Trigger
from support.trips import BREAKER, RUNS, told_by

GOOD = "upstreams:\n  billing:\n    base_url: https://billing.internal:8443/v2\n    pool: {max_connections: 50}\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / "bad.yaml").write_text(GOOD + "    retry: {max_attempts: three}\n")
    return tmp_path


Captured = pytest.CaptureFixture[str]


def test_good_file_ends_with_0_and_a_line_for_each_upstream(capsys: Captured) -> None:
    assert main(["check", "good.yaml"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0] == (
        "billing  https://billing.internal:8443/v2  enforce: deadline 15s, 3 × 4s, 50 connections, "
        "opens at 50% of 20+ calls in 10s, with fewer at 5 in a row"
    )
    assert captured.out.splitlines()[1].startswith("1 upstream, digest ")
    assert captured.err == ""


@pytest.mark.parametrize(
    ("breaker", "words"),
    [
        ("{mode: disabled}", "breaker disabled"),
        ("{mode: forced_open}", "breaker forced open: every call refused"),
        ("{mode: observe}", "would open at 50% of 20+ calls in 10s, with fewer at 5 in a row"),
        (
            "{window: {type: count}, consecutive_failures: null}",
            "opens at 50% of 20+ calls of the last 100",
        ),
        (
            "{window: {type: count, size: 8192, max_age: 1s}, slow_call: {duration: 2s, rate_threshold: 0.8}}",
            "opens at 50% of 20+ calls of the last 8192 in 1s or 80% as slow as 2s, with fewer at 5 in a row",
        ),
    ],
)
def test_the_line_of_an_upstream_says_when_its_breaker_opens(
    breaker: str, words: str, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "breaker.yaml").write_text(GOOD + f"    circuit_breaker: {breaker}\n")

    assert main(["check", "breaker.yaml"]) == 0

    assert capsys.readouterr().out.splitlines()[0].endswith(f", {words}")


@pytest.mark.parametrize("rule", RUNS)
def test_the_line_of_an_upstream_tells_the_threshold_of_every_trip_rule(
    rule: Trigger, tmp_path: Path, capsys: Captured
) -> None:
    text = f"upstreams: {{a: {{base_url: http://a, circuit_breaker: {BREAKER}}}}}"
    (tmp_path / "breaker.yaml").write_text(text)
    (told,) = told_by(load("breaker.yaml").upstreams["a"].circuit_breaker, RUNS[rule])
    assert told.threshold is not None
    main(["check", "breaker.yaml"])

    numbers = re.findall(r"[\d.]+%?", capsys.readouterr().out.splitlines()[0])
    assert f"{told.threshold:g}" in numbers or f"{told.threshold:.0%}" in numbers


def test_bad_file_ends_with_1_and_the_problems_on_stderr(capsys: Captured) -> None:
    assert main(["check", "bad.yaml"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "bad.yaml:5:27: upstreams.billing.retry.max_attempts\n"
        '    must be an integer of at least 1 (it counts the first try); found the text "three"\n'
        "    write: max_attempts: 3\n"
        "1 problem.\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [["check", "nope.yaml"], ["explain", "nope.yaml", "http://a"], ["explain", "bad.yaml", "http://a"]],
)
def test_missing_or_bad_file_ends_with_1(arguments: list[str], capsys: Captured) -> None:
    assert main(arguments) == 1
    assert capsys.readouterr().err.endswith("1 problem.\n")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["check", "--nope"],
        ["nope"],
        ["check", "good.yaml", "--workers", "0"],
        ["check", "good.yaml", "--workers", "many"],
        ["check", "good.yaml", "--format", "xml"],
        ["explain", "good.yaml"],
        ["explain", "good.yaml", "http://a", "--status", "99"],
        ["explain", "good.yaml", "http://a", "--error", "network"],
        ["explain", "good.yaml", "http://a", "--error", "timeuot"],
        ["explain", "good.yaml", "http://a", "--error", "timeout", "--status", "503"],
        ["explain", "good.yaml", "http://a", "--method", "GET /"],
        ["explain", "good.yaml", "http://a", "--method", ""],
        ["schema", "x"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(arguments: list[str], capsys: Captured) -> None:
    assert main(arguments) == 2
    assert "usage: headrace" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["check", "--help"]], ids=" ".join)
def test_help_and_version_end_with_0(arguments: list[str], capsys: Captured) -> None:
    assert main(arguments) == 0
    assert "headrace" in capsys.readouterr().out


def test_workers_print_totals(capsys: Captured) -> None:
    assert main(["check", "good.yaml", "--workers", "8"]) == 0
    assert (
        "    8 workers: up to 400 connections, 24 retries per second whatever the traffic\n"
        in capsys.readouterr().out
    )


def test_json_is_for_machines(capsys: Captured) -> None:
    assert main(["check", "bad.yaml", "--format", "json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["good"] is False
    assert answer["problems"] == [
        {
            "file": "bad.yaml",
            "line": 5,
            "column": 27,
            "path": "upstreams.billing.retry.max_attempts",
            "message": 'must be an integer of at least 1 (it counts the first try); found the text "three"',
            "fix": "write: max_attempts: 3",
        }
    ]
    assert main(["check", "good.yaml", "--format", "json", "--workers", "2"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["good"] is True
    assert answer["upstreams"][0]["totals"] == {
        "workers": 2,
        "max_connections": 100,
        "retries_per_second_reserve": 6.0,
    }


def test_lint_alone_does_not_fail(folder: Path, capsys: Captured) -> None:
    (folder / "lint.yaml").write_text(GOOD + "    timeouts: {read: 10s}\n")
    assert main(["check", "lint.yaml"]) == 0
    assert capsys.readouterr().err.startswith("lint: lint.yaml:5:22: upstreams.billing.timeouts.read\n")


def test_misspelt_variable_fails_the_check(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """failures.md 50."""
    monkeypatch.setenv("HEADRACE_UPSTREAMS__BILLING__MOD", "off")
    assert main(["check", "good.yaml"]) == 1
    assert "did you mean HEADRACE_UPSTREAMS__BILLING__MODE?" in capsys.readouterr().err


def test_schema_is_printed(capsys: Captured) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()


EXPLAINED = """\
defaults:
  timeouts: {attempt: 3s}
upstreams:
  billing:
    base_url: https://billing.internal:8443/v2
    retry:
      retry_on: [network, 503]
      methods: [GET]
  invoices:
    extends: billing
    base_url: https://billing.internal:8443/v2/invoices
    match: [https://invoices.example]
    circuit_breaker: {mode: disabled}
"""


def explained(folder: Path, capsys: Captured, *arguments: str) -> str:
    (folder / "e.yaml").write_text(EXPLAINED)
    assert main(["explain", "e.yaml", *arguments]) == 0
    return capsys.readouterr().out


def test_explain_says_between_which_sizes_an_adaptive_pool_is(folder: Path, capsys: Captured) -> None:
    (folder / "e.yaml").write_text("upstreams: {a: {base_url: http://a, pool: {adaptive: {min: 4}}}}")
    assert main(["explain", "e.yaml", "http://a"]) == 0
    assert "a connection out of 4 to 200, waited for 500ms" in capsys.readouterr().out


@pytest.mark.parametrize("caller", ["honour", "ignore"])
def test_explain_says_where_the_timeouts_of_callers_are_ignored(
    folder: Path, capsys: Captured, caller: str
) -> None:
    text = f"upstreams: {{a: {{base_url: 'http://a', timeouts: {{caller: {caller}}}}}}}\n"
    (folder / "e.yaml").write_text(text)
    assert main(["explain", "e.yaml", "http://a"]) == 0
    out = capsys.readouterr().out
    assert ("attempt   4s, of it connect 2s; a call's own timeout= changes nothing\n" in out) is (
        caller == "ignore"
    )


def test_explain_names_the_upstream_the_prefix_and_the_line(folder: Path, capsys: Captured) -> None:
    text = explained(folder, capsys, "https://billing.internal:8443/v2/invoices/7")
    assert "upstream invoices, by base_url: https://billing.internal:8443/v2/invoices (e.yaml:11)" in text
    text = explained(folder, capsys, "https://billing.internal:8443/v2/invoicesX")
    assert "upstream billing, by base_url: https://billing.internal:8443/v2 (e.yaml:5)" in text
    text = explained(folder, capsys, "https://INVOICES.example:443/a?b#c")
    assert "upstream invoices, by match[0]: https://invoices.example (e.yaml:12)" in text


def test_explain_says_that_an_upstream_is_left_alone(folder: Path, capsys: Captured) -> None:
    (folder / "off.yaml").write_text("upstreams: {a: {base_url: http://a, mode: off}}")
    assert main(["explain", "off.yaml", "http://a"]) == 0
    assert "mode is off: the call is left alone, none of what follows applies" in capsys.readouterr().out


@pytest.mark.parametrize(
    "url", ["https://billing.internal.evil.org:8443/v2", "http://billing.internal:8443/v2"]
)
def test_explain_says_when_nobody_claims_a_url(folder: Path, capsys: Captured, url: str) -> None:
    assert "no upstream claims it: the call passes through ungoverned" in explained(folder, capsys, url)


def test_explain_says_where_each_value_comes_from(folder: Path, capsys: Captured) -> None:
    lines = explained(folder, capsys, "https://invoices.example").splitlines()
    rows = {
        line.split()[0]: line.split(maxsplit=2)[1:] for line in lines[lines.index("effective values") + 1 :]
    }
    assert rows["timeouts.attempt"] == ["3s", "defaults, e.yaml:2"]
    assert rows["timeouts.deadline"] == ["15s", "built-in default"]
    assert rows["circuit_breaker.mode"] == ["disabled", "e.yaml:13"]
    assert rows["retry.methods"] == ["[GET]", "extends billing, e.yaml:8"]


def test_explain_tells_headers_that_are_sent_from_headers_that_are_read(
    folder: Path, capsys: Captured
) -> None:
    (folder / "h.yaml").write_text(
        "upstreams:\n  a:\n    base_url: http://a\n    headers: {X-Key: k}\n"
        "    retry: {retry_after: {headers: [{name: X-Reset, format: unix_timestamp}]}}\n"
    )
    assert main(["explain", "h.yaml", "http://a"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "headers.X-Key *** h.yaml:4" in out
    assert "retry.retry_after.headers [{name: X-Reset, format: unix_timestamp}] h.yaml:5" in out


def test_explain_says_when_a_default_is_cut_to_a_limit_around_it(folder: Path, capsys: Captured) -> None:
    (folder / "cut.yaml").write_text("upstreams: {a: {base_url: http://a, timeouts: {deadline: 1s}}}")
    assert main(["explain", "cut.yaml", "http://a"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "timeouts.attempt 1s built-in default, cut to fit" in out
    assert "timeouts.connect 1s built-in default, cut to fit" in out


def test_explain_shows_the_fixed_order_of_a_call(folder: Path, capsys: Captured) -> None:
    text = explained(folder, capsys, "https://invoices.example")
    steps = [line.split()[1] for line in text.splitlines() if line.strip()[:1].isdigit()]
    assert steps == (
        [
            "snapshot",
            "upstream",
            "deadline",
            "retry",
            "breaker",
            "lease",
            "attempt",
            "outcome",
            "classify",
            "decision",
        ]
    )


@pytest.mark.parametrize(
    ("url", "arguments", "retried", "counted"),
    [
        (
            "https://billing.internal:8443/v2",
            ["--status", "503"],
            "retried: yes, retry.retry_on has 503 (e.yaml:7)",
            "counted as failure: circuit_breaker.failure_on has 5xx (built-in default)",
        ),
        (
            "https://billing.internal:8443/v2",
            ["--status", "500"],
            "retried: no, 500 is not in retry.retry_on (e.yaml:7)",
            "counted as failure: ",
        ),
        (
            "https://billing.internal:8443/v2",
            ["--status", "503", "--method", "post"],
            "retried: no, POST is not in retry.methods (e.yaml:8) and an answer means that it was sent",
            "counted as failure: ",
        ),
        (
            "https://invoices.example",
            ["--status", "503"],
            "retried: yes, retry.retry_on has 503 (extends billing, e.yaml:7)",
            "counted as failure: circuit_breaker.failure_on has 5xx (built-in default), but the breaker is disabled",
        ),
        (
            "https://billing.internal:8443/v2",
            ["--status", "404"],
            "retried: no, 404 is not in retry.retry_on (e.yaml:7)",
            "counted as success: 404 is not in circuit_breaker.failure_on (built-in default)",
        ),
    ],
    ids=["retried", "not-listed", "post", "inherited", "404"],
)
def test_explain_says_which_line_decides_about_an_answer(
    folder: Path, capsys: Captured, url: str, arguments: list[str], retried: str, counted: str
) -> None:
    text = explained(folder, capsys, url, *arguments)
    assert retried in text
    assert counted in text


def test_explain_says_that_the_kill_switch_is_on(
    folder: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_MODE", "off")
    assert "HEADRACE_MODE=off is set here and overrides every mode" in explained(
        folder, capsys, "https://invoices.example"
    )


@pytest.mark.parametrize("mode", ["off", " Observe "])
def test_check_says_that_the_kill_switch_is_on_and_stays_good(
    mode: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_MODE", mode)
    word = mode.strip().lower()

    assert main(["check", "good.yaml"]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines()[0] == "warning: environment: HEADRACE_MODE"
    assert f"is set to {word} here and overrides every mode of the file" in captured.err
    assert captured.out.startswith("billing  ")

    assert main(["check", "good.yaml", "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["good"], told["override"]) == (True, word)


@pytest.mark.parametrize("mode", ["", "enforce", "of"])
def test_check_speaks_of_a_kill_switch_that_is_on_only(
    mode: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_MODE", mode)
    assert main(["check", "good.yaml"]) == (1 if mode == "of" else 0)
    assert "warning:" not in capsys.readouterr().err
    main(["check", "good.yaml", "--format", "json"])
    assert json.loads(capsys.readouterr().out)["override"] is None


@pytest.mark.smoke
def test_as_a_real_process(folder: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "headrace.cli", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
        )

    good, bad, wrong = run("check", "good.yaml"), run("check", "bad.yaml"), run("explain")
    assert (good.returncode, good.stderr) == (0, "")
    assert (bad.returncode, bad.stdout) == (1, "")
    assert wrong.returncode == 2


def test_failure_if_may_name_a_module_of_the_working_directory(tmp_path: Path) -> None:
    """As gunicorn, uvicorn and flask find it there; a console script alone does not."""
    (tmp_path / "rules_of_the_shop.py").write_text("def is_error(response):\n    return False\n")
    breaker = "    circuit_breaker: {failure_if: 'rules_of_the_shop:is_error'}\n"
    (tmp_path / "judged.yaml").write_text(GOOD + breaker)
    command = "import sys; sys.path.remove(''); from headrace.cli import main; sys.exit(main(['check', 'judged.yaml']))"

    done = subprocess.run([sys.executable, "-c", command], cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", ["a\r\nforged  value", "\0", "a\tb"])
def test_a_value_with_control_characters_stays_on_its_line(
    text: str, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "body.yaml").write_text(f"{GOOD}    fallback: {{body: {json.dumps(text)}}}\n")

    assert main(["explain", "body.yaml", "https://billing.internal:8443/v2/x"]) == 0

    shown = capsys.readouterr().out
    assert "\r" not in shown
    assert "\0" not in shown
    (line,) = [line for line in shown.splitlines() if "fallback.body" in line]
    assert json.loads(line.split("fallback.body")[1].rsplit("body.yaml", 1)[0]) == text


@pytest.mark.parametrize("text", [r'"a\r\nforged: x"', r'"\0"'])
def test_a_suggestion_repeats_no_control_characters(text: str, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "methods.yaml").write_text(GOOD + f"    retry: {{methods: {text}}}\n")

    assert main(["check", "methods.yaml"]) == 1

    shown = capsys.readouterr().err
    assert "for example: methods: [GET" in shown
    assert all(line.isprintable() for line in shown.splitlines())


@pytest.mark.parametrize(
    ("keys", "breaker", "classify"),
    [
        ("fallback: {status: 204}", "; refused: the fallback, a 204", ""),
        ("fallback: {upstream: replica}", "; refused: upstream replica is asked", ""),
        ("circuit_breaker: {failure_if: 'operator:not_'}", "", ", or operator:not_ says so"),
    ],
)
def test_explain_tells_of_fallback_and_predicate_where_they_come_in(
    keys: str, breaker: str, classify: str, tmp_path: Path, capsys: Captured
) -> None:
    replica = "  replica:\n    base_url: https://replica.internal\n"
    (tmp_path / "told.yaml").write_text(f"{GOOD}    {keys}\n{replica}")

    assert main(["explain", "told.yaml", "https://billing.internal:8443/v2/x"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert f"   5. breaker   a permit of the circuit (enforce){breaker}" in lines
    assert f"   9. classify  failure of the upstream? [network, 5xx]{classify}" in lines
