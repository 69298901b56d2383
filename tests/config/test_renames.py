"""The promise of docs/versions.md: a key that has got another name goes on being read, and is told of.

No key has, so far. The tests bring a table of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

import headrace
from headrace.cli import main
from headrace.config.explain import keys
from headrace.config.explain.keys import GONE, RENAMED, Renamed, key_at
from headrace.errors import ConfigError
from support.configs import InspectText, LoadText

LIMITS = Renamed("timeouts", "3.0")
TABLE = {
    ("upstreams", "<name>", "limits"): LIMITS,
    ("upstreams", "<name>", "timeouts", "total"): Renamed("deadline", "3.0"),
    ("upstreams", "<name>", "pool", "size"): Renamed("max_connections", "2.0"),
    ("upstreams", "<name>", "tls", "sni"): Renamed("server_name", "2.0"),
    ("reload", "wait"): Renamed("debounce", "2.0"),
}
OLD, NEW = "is the old name of", "upstreams.a.pool.max_connections"
VARIABLE = "HEADRACE_UPSTREAMS__A__POOL__SIZE"
BASE = "upstreams:\n  a:\n    base_url: http://a\n"


@pytest.fixture(autouse=True)
def _renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "RENAMED", TABLE)


def told(problems: tuple[object, ...]) -> list[str]:
    return [str(one).replace("\n    ", " | ") for one in problems]


@pytest.mark.parametrize(
    ("text", "env"),
    [
        pytest.param(BASE + "    pool: {size: 7}\n", {}, id="an upstream's own"),
        pytest.param(BASE + "defaults: {pool: {size: 7}}\n", {}, id="a default"),
        pytest.param(
            "upstreams:\n  b:\n    base_url: http://b\n    pool: {size: 7}\n  a: {base_url: http://a, extends: b}\n",
            {},
            id="extended",
        ),
        pytest.param(BASE, {"HEADRACE_UPSTREAMS__A__POOL__SIZE": "7"}, id="a variable"),
        pytest.param(BASE, {"HEADRACE_DEFAULTS__POOL__SIZE": "7"}, id="a variable of a default"),
        pytest.param(
            BASE + "    pool: {max_connections: 7}\ndefaults: {pool: {size: 9}}\n",
            {},
            id="both, where the nearer one wins",
        ),
    ],
)
def test_an_old_name_means_what_the_new_one_means_and_is_told_of(
    load_text: LoadText, text: str, env: Mapping[str, str]
) -> None:
    configuration = load_text(text, env=env)

    assert configuration.upstreams["a"].pool.max_connections == 7
    (warning,) = configuration.warnings
    assert "is the old name of " in warning
    assert "it is read until version 2.0" in warning
    assert warning.endswith("write: max_connections:")


def test_it_is_told_where_it_is_written(inspect_text: InspectText) -> None:
    text = BASE + "    limits:\n      total: 9s\nreload: {wait: 50ms}\n"
    inspection = inspect_text(text)

    assert inspection.problems == ()
    limits, total, wait = told(inspection.findings)
    assert limits == (
        f"upstreams.yaml:4:5: upstreams.a.limits | {OLD} upstreams.a.timeouts; it is read until version 3.0 | "
        "write: timeouts:"
    )
    assert total == (
        f"upstreams.yaml:5:7: upstreams.a.timeouts.total | {OLD} upstreams.a.timeouts.deadline; it is read until "
        "version 3.0 | write: deadline:"
    )
    assert wait == (
        f"upstreams.yaml:6:10: reload.wait | {OLD} reload.debounce; it is read until version 2.0 | write: debounce:"
    )
    assert inspection.configuration is not None
    assert inspection.configuration.upstreams["a"].timeouts.deadline_s == 9.0
    assert inspection.configuration.reload.debounce_s == 0.05


@pytest.mark.parametrize(
    ("text", "env", "problem"),
    [
        (
            BASE + "    pool: {size: 7, max_connections: 7}\n",
            {},
            f"upstreams.yaml:4:12: upstreams.a.pool.size | {OLD} {NEW}, which is given at line 4, too | remove it",
        ),
        (
            BASE + "    pool: {max_connections: 7}\n",
            {VARIABLE: "7"},
            f"environment {VARIABLE}: upstreams.a.pool.size | {OLD} {NEW}, which is given, too | remove it",
        ),
        (
            BASE + "    pool: {size: 7}\n",
            {"HEADRACE_UPSTREAMS__A__POOL__MAX_CONNECTIONS": "7"},
            f"upstreams.yaml:4:12: upstreams.a.pool.size | {OLD} {NEW}, which is given, too | remove it",
        ),
        (
            BASE + "    limits: {attempt: 1s}\n",
            {"HEADRACE_UPSTREAMS__A__TIMEOUTS__READ": "1s"},
            f"upstreams.yaml:4:5: upstreams.a.limits | {OLD} upstreams.a.timeouts, which is given, too | remove it",
        ),
    ],
    ids=["in one file", "in two sources", "in two sources, the old one in the file", "a section"],
)
def test_both_names_in_one_place_are_refused(
    inspect_text: InspectText, text: str, env: Mapping[str, str], problem: str
) -> None:
    assert told(inspect_text(text, env=env).problems) == [problem]


def test_the_old_name_in_two_sources_is_told_of_in_both_and_the_stronger_wins(
    inspect_text: InspectText,
) -> None:
    inspection = inspect_text(BASE + "    pool: {size: 7}\n", env={VARIABLE: "8"})
    assert inspection.configuration is not None
    assert inspection.configuration.upstreams["a"].pool.max_connections == 8
    assert [one.file for one in inspection.findings] == [f"environment {VARIABLE}", "upstreams.yaml"]


@pytest.mark.parametrize(
    ("given", "env"),
    [("${env:S}", {"S": "0123"}), ("x", {"HEADRACE_UPSTREAMS__A__TLS__SNI": "0123"})],
    ids=["a reference", "a variable"],
)
def test_digits_from_outside_stay_text_for_a_key_by_its_old_name(
    load_text: LoadText, given: str, env: Mapping[str, str]
) -> None:
    text = f"upstreams:\n  a:\n    base_url: https://a\n    tls:\n      sni: {given}\n"
    tls = load_text(text, env=env).upstreams["a"].tls
    assert tls is not None
    assert tls.server_name == "0123"


def test_a_bad_value_by_the_old_name_is_refused_where_it_is(load_text: LoadText) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(BASE + "    pool:\n      size: many\n")
    (problem,) = caught.value.problems
    assert (problem.line, problem.column) == (5, 13)


def test_a_start_logs_it_and_a_check_prints_it_and_stays_good(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "upstreams.yaml"
    file.write_text(BASE + "    pool: {size: 7}\n")

    assert main(["check", str(file)]) == 0
    assert "is the old name of upstreams.a.pool.max_connections" in capsys.readouterr().err

    with headrace.Headrace(file, registry=CollectorRegistry()) as hr:
        hr.reload()
    assert caplog.text.count("is the old name of upstreams.a.pool.max_connections") == 1


def test_the_table_of_this_version_leads_to_keys_that_there_are() -> None:
    """RENAMED was imported before the fixture: it is the real one."""
    for path, renamed in RENAMED.items():
        concrete = tuple("a" if part == "<name>" else part for part in path)
        assert key_at(concrete) is None, path
        assert key_at((*concrete[:-1], renamed.to)) is not None, path
        assert path[-2:] not in GONE, path
