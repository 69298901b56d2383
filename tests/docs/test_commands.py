"""YAML and command lines on the pages are sound, and print what is shown."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from headrace import cli
from headrace.config import inspect as inspect_files
from headrace.policy.plan import Configuration, CountWindowPlan
from support.pages import BILLING, FILE, assert_same, blocks, rule_files, run_line, sessions, shows, tables
from support.pairs import in_folder, put_files_of_the_pages

REJECTED = "README: headrace/4"

FINDS: dict[str, Callable[[Configuration], bool]] = {
    FILE: lambda found: found.upstreams["billing"].mode == "observe",
    "file: The file/1": lambda found: (
        found.upstreams["billing_reports"].retry.max_attempts == 2
        and found.upstreams["billing_reports"].match == ()
        and found.upstreams["billing_reports"].timeouts.attempt_s == 10
    ),
    "file: Secrets and the environment/1": lambda found: (
        found.upstreams["billing"].headers == (("Authorization", "Bearer x"),)
    ),
    "inbound: Deadlines of the caller/1": lambda found: (
        found.service.deadline is not None and found.upstreams["billing"].propagate.deadline
    ),
    "circuit-breaker: The circuit breaker/1": lambda found: (
        found.upstreams["billing"].circuit_breaker.window == CountWindowPlan(size=200, max_age_s=60.0)
        and found.upstreams["billing"].circuit_breaker.half_open.ramp_s == 30.0
    ),
    "pool: A pool that follows its load/1": lambda found: (
        found.upstreams["billing"].pool.adaptive is not None
    ),
}
"""By block, what it must come to: that it was read as it was meant."""


@pytest.mark.parametrize("key", [key for key in rule_files() if key != REJECTED])
def test_yaml_loads_without_a_finding(key: str, tmp_path: Path, authority: trustme.CA) -> None:
    put_files_of_the_pages(tmp_path, authority)
    (tmp_path / "billing").write_text("Bearer x\n")
    (tmp_path / "billing").chmod(0o600)  # else everybody may read it, which is a finding
    (tmp_path / "upstreams.yaml").write_text(in_folder(blocks()[key].text, tmp_path))

    found = inspect_files(tmp_path / "upstreams.yaml", env={})

    assert (found.problems, found.findings, found.misspelt) == ((), (), ())
    assert found.configuration is not None
    assert FINDS.get(key, lambda _: True)(found.configuration)


def test_what_they_must_come_to_is_said_of_files_that_exist() -> None:
    assert FINDS.keys() <= {*rule_files()}


OF = {"README: headrace/5": (REJECTED, 1)}
"""By session, the file that it is about and its exit code, where that is not the file of the first screen, and 0."""


@pytest.mark.parametrize("key", sessions())
def test_commands_say_what_is_shown(key: str, tmp_path: Path) -> None:
    file, code = OF.get(key, (FILE, 0))
    (tmp_path / "upstreams.yaml").write_text(blocks()[file].text)
    command, _, shown = blocks()[key].text.partition("\n")

    answered, output = run_line(command.removeprefix("$ "), tmp_path)

    assert answered == code
    assert_same(shown, output)


@shows("file: Secrets and the environment/2")
def test_variables_of_the_environment_win(tmp_path: Path) -> None:
    (tmp_path / "upstreams.yaml").write_text(blocks()[FILE].text)
    exports = dict(
        line.removeprefix("export ").split("=")
        for line in blocks()["file: Secrets and the environment/2"].text.splitlines()
    )

    code, output = run_line(f"headrace explain {exports['HEADRACE_FILE']} {BILLING}/x", tmp_path, exports)

    assert code == 0
    assert re.search(r"timeouts\.deadline +8s +environment", output)


def test_command_table_has_every_command_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row[0].strip("`").split()[1]: row[1] for row in tables("command-line", "Command line")}
    assert cli.main(["--help"]) == 0
    listed = capsys.readouterr().out.partition("commands:")[2]
    assert set(rows) == set(re.findall(r"^    ([a-z]+)", listed, flags=re.MULTILINE))
    for command, says in rows.items():
        assert cli.main([command, "--help"]) == 0
        options = set(re.findall(r"--[a-z]+", capsys.readouterr().out)) - {"--help"}
        assert options == set(re.findall(r"--[a-z]+", says)), command
