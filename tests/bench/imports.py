"""What an import of headrace costs above that of its dependencies, in CPU of a fresh process.

    python tests/bench/imports.py [--rounds 15]

Each measurement is a process of its own, from its first line to its last; the sides take turns. All find their
bytecode, as after an installation, wherever PYTHONDONTWRITEBYTECODE is set: it is written to a folder of this run.
`dependencies` are those modules of other distributions that the import of ours leads to, in the order in which it
leads to them, imported by name; what is left is ours. `and load` also reads a file of one upstream, which shows what
an import has only put off.

The least of several processes counts, here and in `speed`: what else the machine does can only make one take longer.
Medians of few, on a machine that others use too, were anything from 120 to 220 ms for one and the same tree. Asserts
nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from interleaved import rounds_of

WANTED = {
    "import headrace": "import headrace",
    "ASGIMiddleware": "from headrace import ASGIMiddleware",
    "WSGIMiddleware": "from headrace import WSGIMiddleware",
    "install": "from headrace import install",
    "and load": "from headrace import ASGIMiddleware; from headrace.config import load; load(['upstreams.yaml'])",
}
RULES = "version: 1\nupstreams: {billing: {base_url: 'http://127.0.0.1:9'}}\n"
TIMED = "import time; b = time.process_time()\n{}\nprint(time.process_time() - b)"
_LISTED = "import sys; b = set(sys.modules)\n{}\nimport json; print(json.dumps([m for m in sys.modules if m not in b]))"


class Cost(NamedTuple):
    """Of one import: CPU milliseconds of all of it and of its dependencies; modules of ours and of others."""

    all_ms: float
    dependencies_ms: float
    ours: int
    others: int


def run(code: str, folder: str) -> str:
    """What *code* prints in a fresh process; byte code is kept in *folder*. Blocks."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    paths = [str(Path(one).absolute()) for one in env.get("PYTHONPATH", "").split(os.pathsep) if one]
    env |= {"PYTHONPYCACHEPREFIX": f"{folder}/bytecode", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=env, cwd=folder
    )
    return done.stdout


def least_ms(code: str, folder: str, *, processes: int = 5) -> float:
    """CPU milliseconds of *code*, which prints its seconds as TIMED does: the least of so many fresh processes."""
    return min(float(run(code, folder)) for _ in range(processes)) * 1e3


def modules_of(statement: str, folder: str) -> list[str]:
    """The modules that *statement* leads to, in their order."""
    found: list[str] = json.loads(run(_LISTED.format(statement), folder))
    return found


def write_others(modules: list[str], name: str, folder: str) -> str:
    """The statement that imports those of *modules* that are not ours: a module *name* of their imports.

    It is a module so that it has bytecode, too.
    """
    others = [one for one in modules if one.partition(".")[0] != "headrace" and "-" not in one]
    lines = (f"try: import {one}\nexcept ImportError: pass\n" for one in others)
    Path(folder, f"{name}.py").write_text("".join(lines))
    return f"import {name}"


def measure(*, rounds: int) -> dict[str, Cost]:
    """What each import costs. Blocks."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "upstreams.yaml").write_text(RULES)
        return _measure(folder, rounds=rounds)


def _measure(folder: str, *, rounds: int) -> dict[str, Cost]:
    sides: dict[tuple[str, bool], Callable[[], float]] = {}
    modules = {title: modules_of(statement, folder) for title, statement in WANTED.items()}
    for number, (title, statement) in enumerate(WANTED.items()):
        others = write_others(modules[title], f"others_{number}", folder)
        for is_all, code in ((True, statement), (False, others)):
            sides[title, is_all] = partial(least_ms, TIMED.format(code), folder, processes=1)
    for act in sides.values():
        act()  # writes the bytecode
    costs = rounds_of(sides, rounds=rounds)  # type: ignore[arg-type]
    return {
        title: Cost(
            min(costs[title, True]),  # type: ignore[index]
            min(costs[title, False]),  # type: ignore[index]
            sum(name.partition(".")[0] == "headrace" for name in modules[title]),
            sum(name.partition(".")[0] != "headrace" for name in modules[title]),
        )
        for title in WANTED
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    print(f"{'':18}{'CPU ms':>8}{'dependencies':>14}{'ours':>8}{'modules: ours':>16}{'others':>8}")
    for title, one in measure(rounds=options.rounds).items():
        above = one.all_ms - one.dependencies_ms
        print(
            f"{title:18}{one.all_ms:8.0f}{one.dependencies_ms:14.0f}{above:8.0f}{one.ours:16}{one.others:8}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
