"""Generated answers through the codec, stock urllib3 and h11: how often they differ, in which of the listed ways.

    python tests/bench/compare_h1.py [--answers 20_000] [--seed 1]

Exit status 1 if a difference is in no row of tests/support/compared.py, or a row was not met.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.answers import generated
from support.compared import DIFFERENCES, compared


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--answers", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # urllib3 warns of headers that it could not read
    started = time.process_time()
    met, unlisted = compared(generated(seed=options.seed, count=options.answers))
    took_s = time.process_time() - started
    print(f"{options.answers} answers, {met.total() + len(unlisted)} readings, {took_s:.0f} s of CPU")
    print(f"{met.pop(None, 0):7}  alike")
    for row in DIFFERENCES:
        print(f"{met[row]:7}  {row.who}: {row.why}")
    for who, seen in unlisted:
        print(f"\nnot listed, {who}: {seen.sent.method} {seen.sent.data!r:.1000}")
        print(f"  codec {seen.ours}\n  {who} {seen.theirs}")
    print(f"{len(unlisted):7}  not listed")
    return bool(unlisted) or any(not met[row] for row in DIFFERENCES)


if __name__ == "__main__":
    sys.exit(main())
