"""How long 1,000 upstreams take from YAML text to a Headrace that could start.

    python tests/bench/compile.py [--upstreams 1000] [--runs 5]

`load` reads, parses, validates and compiles; `Headrace(file)` does that and builds
a pool, a circuit and a budget for each. Half of the upstreams speak TLS, all set
some keys, so that no default hides the work. Prints medians; asserts nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry

import headrace
from headrace.config import load


def blocks(upstreams: int) -> str:
    """That many upstreams, no two alike, as a file has them."""
    return "".join(
        f"""\
  service_{number}:
    base_url: {"https" if number % 2 else "http"}://service-{number}.internal:8443/v2
    timeouts: {{deadline: {10 + number % 5}s, attempt: 2s, connect: 250ms}}
    pool: {{max_connections: {10 + number % 90}}}
    retry: {{max_attempts: {1 + number % 4}, retry_on: [network, 503]}}
    circuit_breaker: {{minimum_calls: {10 + number % 10}, failure_rate_threshold: 0.4}}
"""
        for number in range(upstreams)
    )


def rules(upstreams: int) -> str:
    """A file with that many."""
    return f"version: 1\nupstreams:\n{blocks(upstreams)}"


def took_s(act: Callable[[], object], runs: int) -> list[float]:
    """Wall seconds of each run."""
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - started)
    return seconds


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--upstreams", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "upstreams.yaml")
        file.write_text(rules(options.upstreams))
        print(
            f"{options.upstreams} upstreams, {file.stat().st_size / 1024:.0f} KiB of YAML, {options.runs} runs"
        )
        for title, act in (
            ("load", lambda: load([str(file)])),
            ("Headrace(file)", lambda: headrace.Headrace(file, registry=CollectorRegistry())),
        ):
            seconds = took_s(act, options.runs)
            print(f"{title:15} median {statistics.median(seconds):.2f} s, worst {max(seconds):.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
