"""Sockets that 30 threads open to one upstream, as it counts them: each `when_full` against stock requests and urllib3.

    python tests/bench/sockets.py [--threads 30] [--calls 10] [--pause 20] [--rounds 5]

The pool is meant to hold two connections; the upstream answers after 20 ms, so that
all threads want one at once. Every side is shown twice: when each thread calls
once, and when it calls again and again, with a random pause before each (without one
the GIL makes return and next checkout a single step, and hides what a full pool throws
away; but who waits for a place in a pool that is not fair shows best at `--pause 0`).
Peers are shared between the threads as their documentation advises, at their
defaults and at their best public settings for this: a bounded pool that blocks.
Sockets and failed calls are counted, the time is the wall clock of one call;
medians over the rounds, in which the sides take turns. Prints tables; asserts nothing.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests
import urllib3
from interleaved import percentile
from prometheus_client import CollectorRegistry

import headrace

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.faultserver import Answer, FaultServer

ANSWER_AFTER_S = 0.02

Call = Callable[[], object]
Side = Callable[[str], AbstractContextManager[Call]]
"""Given the URL, what one call of a thread is; what it holds open is closed at the end."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """What came of all threads' calls."""

    sockets: int
    failed: int
    calls_s: list[float]


def governed(when_full: str) -> Side:
    """`requests.get` under a rule; the application's code is what it was."""

    @contextmanager
    def side(url: str) -> Iterator[Call]:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "upstreams.yaml")
            file.write_text(
                "version: 1\n"
                f"upstreams: {{billing: {{base_url: '{url}', timeouts: {{acquire: 10s}}, "
                f"pool: {{max_connections: 2, when_full: {when_full}}}}}}}\n"
            )
            with headrace.Headrace(file, registry=CollectorRegistry()):
                yield lambda: requests.get(url)

    return side


@contextmanager
def bare_requests(url: str) -> Iterator[Call]:
    """What most code does: a session, and so a pool, per call."""
    yield lambda: requests.get(url)


def session(**settings: int | bool) -> Side:
    """One `requests.Session` with an adapter of these settings."""

    @contextmanager
    def side(url: str) -> Iterator[Call]:
        with requests.Session() as one:
            one.mount("http://", requests.adapters.HTTPAdapter(**settings))  # type: ignore[arg-type]
            yield lambda: one.get(url)

    return side


def manager(**settings: int | bool) -> Side:
    """One `urllib3.PoolManager` with these settings."""

    @contextmanager
    def side(url: str) -> Iterator[Call]:
        with urllib3.PoolManager(**settings) as one:  # type: ignore[arg-type]
            yield lambda: one.request("GET", url)

    return side


SIDES: dict[str, Side] = {
    "headrace, when_full: wait": governed("wait"),
    "headrace, when_full: new": governed("new"),
    "headrace, when_full: reject": governed("reject"),
    "requests.get, as it comes": bare_requests,
    "requests.Session, defaults (10, not blocking)": session(),
    "requests.Session, pool_maxsize=2, pool_block=True": session(pool_maxsize=2, pool_block=True),
    "urllib3.PoolManager, defaults (1, not blocking)": manager(),
    "urllib3.PoolManager, maxsize=2, block=True": manager(maxsize=2, block=True),
}


def crowd_of(side: Side, *, threads: int, calls: int, pause_s: float) -> Crowd:
    """*threads* make *calls* each, beginning together, with up to *pause_s* in between. Blocks."""
    failed = 0
    calls_s: list[float] = []
    lock = threading.Lock()
    together = threading.Barrier(threads)
    with FaultServer() as server, side(server.url) as call:
        server.always(Answer(delay_s=ANSWER_AFTER_S))

        def run(seed: int) -> None:
            nonlocal failed
            rng = random.Random(seed)
            together.wait()
            for number in range(calls):
                if number and pause_s:
                    time.sleep(rng.uniform(0.0, pause_s))
                started = time.perf_counter()
                try:
                    call()
                except (requests.RequestException, urllib3.exceptions.HTTPError):
                    with lock:
                        failed += 1
                else:
                    with lock:
                        calls_s.append(time.perf_counter() - started)

        crowd = [threading.Thread(target=run, args=(seed,)) for seed in range(threads)]
        for one in crowd:
            one.start()
        for one in crowd:
            one.join()
        return Crowd(server.connections, failed, calls_s)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=30)
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--pause", type=float, default=20.0, help="longest, in milliseconds")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    # urllib3 warns about each connection that its pool has no room for; that is the point here.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    for calls in (1, options.calls):
        print(f"{options.threads} threads, calls of each: {calls}")
        print(f"  {'':52}{'sockets':>8}{'failed':>8}{'p50 ms':>8}{'p95 ms':>8}")
        rounds: dict[str, list[Crowd]] = {name: [] for name in SIDES}
        for _ in range(options.rounds):
            for name, side in SIDES.items():
                rounds[name].append(
                    crowd_of(side, threads=options.threads, calls=calls, pause_s=options.pause / 1e3)
                )
        for name, crowds in rounds.items():
            sockets = statistics.median(crowd.sockets for crowd in crowds)
            failed = statistics.median(crowd.failed for crowd in crowds)
            calls_s = [one for crowd in crowds for one in crowd.calls_s]
            p50, p95 = (percentile(calls_s, share) * 1e3 for share in (0.50, 0.95))
            print(f"  {name:52}{sockets:8.0f}{failed:8.0f}{p50:8.0f}{p95:8.0f}")
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
