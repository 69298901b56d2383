"""A process that measures rows of one room. It reads commands from its standard input, a JSON list a line, and answers.

    ["open", key]               makes the work; answers "ok", or {"left_out": why}
    ["calls", key]              Python-level calls of one turn
    ["turns", key, seconds]     how many turns take about so long
    ["measure", key, turns]     CPU seconds per turn, or what the work itself says
    ["close", key]

Garbage collection is left as it is. What a library prints goes to the standard error stream.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).parents[1]))
sys.path.insert(2, str(Path(__file__).parents[2]))

from interleaved import cpu_s, python_calls
from rows import ROWS
from table import Gauge, Lab, Many, Work

MOST_TURNS = 1 << 20


class Rows:
    """The rows that are open."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._open: dict[str, tuple[AbstractContextManager[Work], Work]] = {}

    def open(self, key: str) -> object:
        """Makes the work, and does one turn of it."""
        row = ROWS[key]
        try:
            for module in row.needs:
                __import__(module)
        except ImportError as error:
            return {"left_out": f"{error.name or error} cannot be imported here"}
        making = row.make(self._lab)
        self._open[key] = making, making.__enter__()
        return "ok"

    def close(self, key: str) -> object:
        """Unmakes it."""
        making, _ = self._open.pop(key)
        making.__exit__(None, None, None)
        return "ok"

    def calls(self, key: str) -> int:
        """The least of five: now and then a call finds housekeeping at work, or begins a second of the tallies."""
        work = self._open[key][1]
        assert callable(work)
        found = []
        for _ in range(5):
            time.sleep(0.02)
            found.append(python_calls(work))
        return min(found)

    def turns(self, key: str, seconds: float) -> int:
        """Doubled until they take long enough to be told from nothing."""
        work = self._open[key][1]
        if isinstance(work, Gauge):
            return 1
        turns = step = work.step if isinstance(work, Many) else 1
        self.measure(key, turns)  # the first one connects
        while turns < MOST_TURNS:
            spent_s = self.measure(key, turns) * turns
            if spent_s >= seconds / 2:
                wanted = turns * seconds / spent_s
                return max(step, round(wanted / step) * step)
            turns *= 2
        return turns

    def measure(self, key: str, turns: int) -> float:
        """One block."""
        work = self._open[key][1]
        match work:
            case Gauge(read):
                return read()
            case Many(run):
                began = time.process_time()
                run(turns)
                return (time.process_time() - began) / turns
            case _:
                return cpu_s(work, turns=turns)


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    http, https, ca, folder, fresh, fresh_ca = sys.argv[1:]
    lab = Lab(http, https, ca, Path(folder), json.loads(fresh), fresh_ca)
    rows = Rows(lab)
    with lab.stack:
        for line in sys.stdin:
            command, key, *more = json.loads(line)
            answer: Any
            try:
                answer = getattr(rows, command)(key, *more)
            except Exception as error:
                traceback.print_exc()
                answer = {"failed": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
