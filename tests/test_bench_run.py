"""`tests/bench/run` measures what it says: each row works, the table is in one piece, figures are what they are called.

No speed is claimed here: that is for who runs it and looks.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.pages import tables, text

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "tests/bench"
OF_FILES = ("reload", "config", "scale", "memory")
"""The groups that build a thousand upstreams: measured apart, so that two tests take their time side by side."""


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A module of tests/bench/speed, which is a program and no package, by its name."""
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.syspath_prepend(str(BENCH / "speed"))
    return importlib.import_module


def run(tmp_path: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, with the interpreter of these tests; what it leaves in its folder for temporary files would show."""
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    done = subprocess.run(
        [str(BENCH / "run"), "--quick", "--rounds", "1", *options],
        env={**os.environ, "PYTHON": sys.executable, "TMPDIR": str(scratch), **environment},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert list(scratch.iterdir()) == [], "it cleans up"
    return done


@pytest.mark.parametrize("is_of_files", [False, True], ids=["calls and their parts", "files"])
def test_each_row_that_needs_no_peer_is_measured(
    tmp_path: Path, is_of_files: bool, speed: Callable[[str], Any], require_program: Callable[[str], str]
) -> None:
    require_program("nginx")
    table = speed("rows")
    groups = [group.name for group in table.GROUPS if (group.name in OF_FILES) == is_of_files]
    done = run(tmp_path, "--no-peers", "--json", *(word for name in groups for word in ("--only", name)))

    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert list(document["groups"]) == groups
    for name in groups:
        rows = [row for row in table.rows(is_quick=True) if row.group == name]
        found = document["groups"][name]
        assert [one["name"] for one in found] == [row.name for row in rows]
        for row, one in zip(rows, found, strict=True):
            if row.needs:
                assert document["left_out"][name][row.name] == "--no-peers"
                continue
            value, what = one["value"], row.key
            assert row.minus or value["median"] > 0 or row.unit == "%", what
            assert value["q1"] <= value["median"] <= value["q3"], what
            assert (one["calls"] is not None) == row.is_counted, what
            assert len(one["targets"]) == sum(
                not target.of.startswith("pyreqwest") for target in row.targets
            ), what
    assert document["machine"]["processor"]
    assert {"urllib3", "requests", "nginx"} <= document["versions"].keys()


def test_what_cannot_be_installed_or_imported_is_left_out_with_the_reason(
    tmp_path: Path, require_program: Callable[[str], str]
) -> None:
    require_program("nginx")
    reasons = tmp_path / "reasons"
    reasons.write_text("pyreqwest\tit cannot be installed here: ERROR: No matching distribution\n")
    # The program itself: the script would set up the peers' environment.
    done = subprocess.run(
        [
            sys.executable,
            str(BENCH / "speed"),
            "--quick",
            "--rounds",
            "1",
            "--only",
            "tls",
            "--left-out",
            str(reasons),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "pyreqwest left out: it cannot be installed here: ERROR: No matching distribution" in lines
    assert "pycurl left out: pycurl cannot be imported here" in lines


def test_a_row_that_fails_is_told_and_fails_the_run(
    tmp_path: Path, require_program: Callable[[str], str]
) -> None:
    """The others are measured all the same: a run takes minutes."""
    require_program("nginx")
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "prometheus_client.py").write_text("raise RuntimeError('broken for the test')\n")
    done = run(tmp_path, "--only", "metrics", "--no-peers", "--json", PYTHONPATH=str(modules))

    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert set(document["left_out"]["metrics"]) == {
        "prometheus_client, children kept",
        "prometheus_client, labels() at each call",
    }
    assert "RuntimeError: broken for the test" in next(iter(document["left_out"]["metrics"].values()))
    (floor,) = [one for one in document["groups"]["metrics"] if one["name"] == "one addition under a lock"]
    assert floor["value"]["median"] > 0


def test_what_a_row_is_compared_with_is_a_row_of_its_group_that_comes_before_it(
    speed: Callable[[str], Any],
) -> None:
    table, calls = speed("rows"), speed("table").CALLS
    groups = [group.name for group in table.GROUPS]
    seen: set[tuple[str, str]] = set()
    for row in table.ROWS.values():
        assert row.group in groups
        compared = [
            row.peer,
            row.floor,
            row.minus,
            *(target.of for target in row.targets if target.of != calls),
        ]
        assert {(row.group, name) for name in compared if name} <= seen, row.key
        seen.add((row.group, row.name))
    assert len(seen) == sum(1 for part in table._TABLE for _ in part()), "a name is given twice"
    assert {group for group, _ in seen} == set(groups)


def test_each_group_of_calls_has_the_raw_socket_as_its_floor(speed: Callable[[str], Any]) -> None:
    for row in speed("rows").ROWS.values():
        if row.group in {"sync", "requests", "bodies", "threads", "tls"}:
            assert row.name.startswith("raw socket") or row.floor.startswith("raw socket"), row.key


def test_figures_are_taken_round_by_round(speed: Callable[[str], Any]) -> None:
    """What is around something is subtracted first, and ratios are of the same round."""
    report, table = speed("report"), speed("table")
    rows = [
        table.Row(group="g", name="bare", make=None, room="r"),
        table.Row(group="g", name="peer", make=None, room="r", minus="bare"),
        table.Row(
            group="g",
            name="ours",
            make=None,
            room="r",
            minus="bare",
            peer="peer",
            floor="bare",
            targets=(table.Target(0.6, "peer"), table.Target(2.1), table.Target(20, table.CALLS, 10)),
        ),
        table.Row(group="g", name="missing", make=None, room="r", peer="bare"),
    ]
    values = {
        "bare": [1e-6, 1e-6, 2e-6],
        "peer": [5e-6, 9e-6, 6e-6],  # net 4, 8, 4
        "ours": [2e-6, 5e-6, 4e-6],  # net 1, 4, 2
    }
    bare, peer, ours, missing = report.figures(rows, values, {"ours": 21})

    assert bare["value"] == pytest.approx({"q1": 1.0, "median": 1.0, "q3": 1.5})
    assert peer["value"] == pytest.approx({"q1": 4.0, "median": 4.0, "q3": 6.0})
    assert ours["value"] == pytest.approx({"q1": 1.5, "median": 2.0, "q3": 3.0})
    assert ours["peer"].pop("of") == "peer"
    assert ours["peer"] == pytest.approx({"q1": 0.375, "median": 0.5, "q3": 0.5})
    assert ours["floor"]["median"] == pytest.approx(1.0)  # 1, 4, 1
    assert [(one["of"], one["is_met"]) for one in ours["targets"]] == [
        ("peer", True),
        ("µs", True),
        (table.CALLS, False),
    ]
    assert (missing["value"], missing["peer"]) == (None, None)


def test_the_page_gets_the_tables_between_its_marks_and_nowhere_else(speed: Callable[[str], Any]) -> None:
    report = speed("report")
    page = f"before\n{report.BEGIN}old\n{report.END}\nafter\n"

    assert (
        report.with_tables(page, r"\1 new" + "\n") == f"before\n{report.BEGIN}\\1 new\n{report.END}\nafter\n"
    )
    with pytest.raises(ValueError, match="the page has no"):
        report.with_tables("nothing\n", "new\n")


def test_the_page_shows_rows_that_are_measured_today(speed: Callable[[str], Any]) -> None:
    """A row that was renamed or dropped is measured anew by `tests/bench/run --docs`."""
    table = speed("rows")
    shown = 0
    for group in table.GROUPS:
        if f"### {group.title}\n" not in text("speed"):
            continue
        names = [row[0] for row in tables("speed", group.title)]
        assert set(names) <= {row.name for row in table.ROWS.values() if row.group == group.name}
        shown += len(names)
    assert shown > 0
    assert names_the_machine(text("speed")), "the machine is named"


def names_the_machine(page: str) -> bool:
    """Whether a line says where, by which commit and with which Python it was measured."""
    return any(
        line.startswith("Measured on ") and " commit " in line and " cores, " in line and "CPython " in line
        for line in page.splitlines()
    )
