"""What a governed call costs against the bare call it replaces.

    python tests/bench/cost.py [--rounds 15] [--turns 400]

GET of 1 KiB over a kept connection on loopback; the server is another process, so
that `time.process_time` is the client's work alone. The sides take turns
within each round; a ratio is the median over the rounds. Python-level calls are
counted for one warm call (about a microsecond each in situ): the
count is the same on every machine. Prints a table; asserts nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import FrameType

import requests
import urllib3
from interleaved import cpu_s, ratio, rounds_of
from prometheus_client import CollectorRegistry
from servers import upstream

import headrace


def python_calls(act: Callable[[], object]) -> int:
    """Python functions that one warm *act* enters, itself not counted."""
    count = -1

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    act()
    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(None)
    return count


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--turns", type=int, default=400)
    options = parser.parse_args()
    # Two servers that are alike: one is in the file, so that the bare sides meet no rule while the patch is in.
    with upstream() as governed, upstream() as bare, tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "upstreams.yaml")
        rules = f"upstreams: {{billing: {{base_url: 'http://127.0.0.1:{governed}'}}}}\n"
        file.write_text(f"version: 1\n{rules}")
        by_url = Path(folder, "urllib3.yaml")
        by_url.write_text(f"version: 1\ninstall: {{urllib3: true}}\n{rules}")
        bare_url, governed_url = f"http://127.0.0.1:{bare}/a", f"http://127.0.0.1:{governed}/a"
        manager = urllib3.PoolManager()
        stock, patched = requests.Session(), requests.Session()
        hr = headrace.Headrace(file, registry=CollectorRegistry())
        hr_urllib3 = headrace.Headrace(by_url, registry=CollectorRegistry())
        governed_manager = urllib3.PoolManager()
        handle = hr.upstream("billing")

        def bare_requests() -> object:
            return stock.get(bare_url)

        def governed_requests() -> object:
            return patched.get(governed_url)

        sides: dict[str, Callable[[], object]] = {
            "urllib3 PoolManager.request": lambda: manager.request("GET", bare_url),
            "requests Session.get": bare_requests,
            "handle.urlopen": lambda: handle.urlopen("GET", "/a"),
            "PoolManager.request, governed": lambda: governed_manager.request("GET", governed_url),
            "Session.get, governed": governed_requests,
            "handle.get": lambda: handle.get("/a"),
            "Session.get, host not in the file": bare_requests,
        }
        # The bare sides are measured without the patch, the others with it.
        started = dict.fromkeys(sides, hr) | {"PoolManager.request, governed": hr_urllib3}
        del started["urllib3 PoolManager.request"], started["requests Session.get"]

        def measured(name: str) -> Callable[[], float]:
            def run() -> float:
                with started.get(name, nullcontext()):
                    for _ in range(20):
                        sides[name]()
                    return cpu_s(sides[name], turns=options.turns)

            return run

        counts: dict[str, int] = {}
        for name, act in sides.items():
            with started.get(name, nullcontext()):
                counts[name] = python_calls(act)
        costs = rounds_of({name: measured(name) for name in sides}, rounds=options.rounds)
        of_urllib3, of_requests = costs["urllib3 PoolManager.request"], costs["requests Session.get"]
        print(f"{'':36}{'CPU µs':>8}{'/ urllib3':>11}{'/ requests':>12}{'Python calls':>14}")
        for name, seconds in costs.items():
            print(
                f"{name:36}{statistics.median(seconds) * 1e6:8.0f}{ratio(seconds, of_urllib3):11.2f}"
                f"{ratio(seconds, of_requests):12.2f}{counts[name]:14}"
            )
        manager.clear()
        governed_manager.clear()
        stock.close()
        patched.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
