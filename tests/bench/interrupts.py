"""Interrupts at random points of refused, waiting and running calls, for many seeds: the pools must be right after.

    python tests/bench/interrupts.py [--seeds 50] [--interrupts 200]

Real calls over a real server; the interrupt is raised where CPython would look for a signal. Exit status 1,
and what was wrong, if anything was.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.interrupts import interrupt_storm


def main() -> int:
    """Run the seeds and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--interrupts", type=int, default=200)
    options = parser.parse_args()
    warnings.simplefilter(
        "ignore", ResourceWarning
    )  # an interrupt inside socket() leaves the rest to the collector
    sys.unraisablehook = lambda _: None  # one inside a finalizer is swallowed by CPython, with a traceback
    started, wrong = time.monotonic(), []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            wrong += interrupt_storm(Path(folder), seed, interrupts=options.interrupts)
    took_s = time.monotonic() - started
    print(f"{options.seeds} seeds × {options.interrupts} interrupts in {took_s:.0f} s: {len(wrong)} wrong")
    print("\n".join(wrong))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
