"""Sixteen threads against a server that misbehaves: each answer is its caller's own, and nothing is left over.

    python tests/bench/echoes.py [--parser auto|stdlib] [--seconds 300] [--threads 16] [--seed 0]

Plain and TLS, by name and installed, requests and urllib3 (`support.echoes` says what the server does). Prints what
came of the calls by fault, and exits 1 where anything was wrong.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.echoes import FAULTS, run


def main() -> int:
    """Run, print, judge."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--parser", choices=("auto", "stdlib"), default="auto")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run(
            Path(folder), options.parser, seconds=options.seconds, threads=options.threads, seed=options.seed
        )
    for fault in FAULTS:
        ends: Counter[str] = Counter()
        for (_, of, end), n in found.ends.items():
            if of == fault:
                ends[end] += n
        print(f"{fault:28}", ", ".join(f"{end} {n}" for end, n in ends.most_common()))
    surfaces = Counter[str]()
    for (surface, _, _), n in found.ends.items():
        surfaces[surface] += n
    print(dict(surfaces))
    print(
        f"parser {options.parser}: {found.calls()} calls by {options.threads} threads in {options.seconds:.0f} s, "
        f"{found.own()} with their own answer, the longest took {found.longest_s:.2f} s; {len(found.wrong)} wrong"
    )
    for wrong in found.wrong[:50]:
        print("WRONG", wrong)
    return bool(found.wrong)


if __name__ == "__main__":
    sys.exit(main())
