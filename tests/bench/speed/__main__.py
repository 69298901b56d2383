"""Measures headrace beside what it replaces: `tests/bench/run`, which sets up the environments.

    tests/bench/run [--only GROUP]… [--quick] [--json] [--docs] [--rounds N] [--no-peers]

Every row of `rows.py`, by groups. The rows of a group take turns within each round, so that a slow moment of the
machine hits all of them; a ratio is taken in each round, and shown are the medians over the rounds with their
quartiles. What is measured is the CPU time of the client's process, background threads included; nginx is
another process on another core, and the clients share one. Garbage collection is left as it is. Rooms of one
environment are processes of their own: a stock library is never measured in a process that headrace has patched.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).parents[1]))
sys.path.insert(2, str(Path(__file__).parents[2]))

import machine
import report
from interleaved import rounds_of
from origin import Origin, core, serving
from rows import GROUPS, KEPT_ROOMS, rows
from table import Group, Row

SPEED = Path(__file__).resolve().parent
PAGE = SPEED.parents[2] / "plugin/headrace/docs/speed.md"
FORMAT = 1
"""Of the JSON document: raised when a name in it changes its meaning."""


class Failed(Exception):
    """A row raised where it was measured; the traceback is on the standard error stream."""


def _environment() -> dict[str, str]:
    """This one's, without what sends clients through proxies, or gives them another authority to trust."""
    lower = ("proxy", "ca_bundle", "ssl_cert_file", "ssl_cert_dir")
    return {name: value for name, value in os.environ.items() if not name.lower().endswith(lower)}


class Worker:
    """A process that measures the rows of one room."""

    def __init__(self, python: str, origin: Origin, folder: Path) -> None:
        folder.mkdir()
        with core(1):
            self._process = subprocess.Popen(
                [
                    *(python, str(SPEED / "worker.py"), origin.http, origin.https, origin.ca, str(folder)),
                    *(json.dumps(origin.fresh), origin.fresh_ca),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=_environment(),
                text=True,
            )

    def ask(self, command: str, key: str, *more: object) -> Any:
        """Its answer. Blocks."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([command, key, *more]), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the process that measured {key!r} has ended with {self._process.wait()}")
        answer = json.loads(line)
        if isinstance(answer, dict) and "failed" in answer:
            raise Failed(f"{key}: {answer['failed']}")
        return answer

    def close(self) -> None:
        """Let it end by itself, and see that it does."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Bench:
    """One run: the workers, and what they found."""

    def __init__(self, options: argparse.Namespace, origin: Origin, folder: Path) -> None:
        self._options, self._origin, self._folder = options, origin, folder
        self._workers: dict[str, Worker] = {}
        self.left_out: dict[str, dict[str, str]] = {}
        self.rounds: dict[str, int] = {}
        self.has_failed = False

    def close(self) -> None:
        """End the workers. Blocks."""
        for worker in self._workers.values():
            worker.close()

    def measured(self, group: Group) -> list[dict[str, Any]]:
        """The figures of *group*. Blocks."""
        options = self._options
        every = [row for row in rows(is_quick=options.quick) if row.group == group.name]
        missing = self.left_out[group.name] = {}
        block_s = group.quick_block_s if options.quick else group.block_s
        calls: dict[str, int] = {}
        present: dict[str, Row] = {}
        sides: dict[str, Callable[[], float]] = {}
        for row in every:
            try:
                if (why := self._opened(row)) is not None:
                    missing[row.name] = why
                    continue
                present[row.name] = row
                if row.is_counted:
                    calls[row.name] = self._worker(row).ask("calls", row.key)
                turns = self._worker(row).ask("turns", row.key, block_s)
                sides[row.name] = functools.partial(self._worker(row).ask, "measure", row.key, turns)
            except Failed as error:
                self.has_failed = True
                missing[row.name] = f"it failed: {error}"
        rounds = options.rounds or (group.quick_rounds if options.quick else group.rounds)
        values = rounds_of(sides, rounds=rounds, most_s=group.most_s)
        self.rounds[group.name] = min(map(len, values.values()), default=0)
        for row in present.values():
            self._worker(row).ask("close", row.key)
        for room in {row.room for row in every} - KEPT_ROOMS:
            if (worker := self._workers.pop(room, None)) is not None:
                worker.close()
        return report.figures(every, values, calls)

    def _opened(self, row: Row) -> str | None:
        """Makes *row* ready; or says why it is left out."""
        if row.needs and self._options.no_peers:
            return "--no-peers"
        for module in row.needs:
            if (why := self._options.reasons.get(module)) is not None:
                return why
        if row.room == "niquests" and self._options.niquests is None:
            return "it has no environment here"
        answer = self._worker(row).ask("open", row.key)
        return None if answer == "ok" else str(answer["left_out"])

    def _worker(self, row: Row) -> Worker:
        if row.room not in self._workers:
            python = self._options.niquests if row.room == "niquests" else sys.executable
            number = len(list(self._folder.iterdir()))
            self._workers[row.room] = Worker(python, self._origin, self._folder / f"{number}-{row.room}")
        return self._workers[row.room]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tests/bench/run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [group.name for group in GROUPS]
    parser.add_argument("--only", action="append", choices=names, metavar="GROUP", help=", ".join(names))
    parser.add_argument("--quick", action="store_true", help="a look in under 45 s: few and short rounds")
    parser.add_argument("--json", action="store_true", help="one document on the standard output, no tables")
    parser.add_argument(
        "--docs", action="store_true", help="write the tables into plugin/headrace/docs/speed.md"
    )
    parser.add_argument(
        "--rounds", type=int, default=None, help="for every group, in place of its own number"
    )
    parser.add_argument("--no-peers", action="store_true", help="leave out what needs another library")
    own = parser.add_argument_group("given by tests/bench/run")
    own.add_argument("--nginx", default=None, help="the program")
    own.add_argument("--niquests", default=None, help="the interpreter of its environment")
    own.add_argument("--left-out", default=None, help="a file: a module a line, and why it is not installed")
    options = parser.parse_args()
    if options.docs and (options.only or options.quick):
        parser.error(
            "--docs measures everything: the page would lose its other tables, or show too short a look"
        )
    options.reasons = {}
    if options.left_out is not None and Path(options.left_out).exists():
        lines = Path(options.left_out).read_text().splitlines()
        options.reasons = {name: why for name, _, why in (line.partition("\t") for line in lines)}
    return options


def _nginx(given: str | None) -> str:
    path = given or shutil.which(
        "nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin"
    )
    if path is None:
        raise SystemExit("nginx is not installed: on Debian and Ubuntu, apt-get install nginx")
    return path


@contextlib.contextmanager
def _running(options: argparse.Namespace, nginx: str, groups: list[Group]) -> Iterator[Bench]:
    with_tls = any(group.name == "tls" for group in groups)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        (rooms := Path(folder, "rooms")).mkdir()
        with (
            serving(Path(folder), nginx, with_tls=with_tls) as origin,
            contextlib.closing(Bench(options, origin, rooms)) as bench,
        ):
            yield bench


def main() -> int:
    """Measure and tell."""
    options = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # nginx and the workers are ended, too
    nginx = _nginx(options.nginx)
    groups = [group for group in GROUPS if not options.only or group.name in options.only]
    document: dict[str, Any] = {
        "format": FORMAT,
        "source": machine.commit(),
        "machine": machine.machine(),
        "versions": machine.versions(nginx, options.niquests),
        "options": {"quick": options.quick, "rounds": options.rounds, "no_peers": options.no_peers},
        "groups": {},
    }
    began = time.monotonic()
    with _running(options, nginx, groups) as bench:
        for group in groups:
            print(f"{time.monotonic() - began:4.0f} s  {group.name} …", file=sys.stderr, flush=True)
            document["groups"][group.name] = found = bench.measured(group)
            if not options.json:
                print(report.text_table(group, found, bench.left_out[group.name]), end="\n\n", flush=True)
    document["left_out"] = bench.left_out
    document["rounds"] = bench.rounds
    document["took_s"] = round(time.monotonic() - began, 1)
    document["machine"]["load_after"] = round(os.getloadavg()[0], 1)
    if options.json:
        json.dump(document, sys.stdout, indent=1, ensure_ascii=False)
        print()
    else:
        where = document["machine"]
        print(report.bounds(document["groups"]))
        print(f"\n{document['took_s']:.0f} s; {where['processor']}, {where['python']}")
    if options.docs:
        PAGE.write_text(
            report.with_tables(PAGE.read_text("utf-8"), report.page(document, GROUPS, bench.left_out)),
            "utf-8",
        )
        print(f"written: {PAGE}", file=sys.stderr)
    return int(bench.has_failed)


if __name__ == "__main__":
    sys.exit(main())
