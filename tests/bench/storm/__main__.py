"""A retry storm: 100 clients per side, an upstream that fails whole for 10 s, no breaker anywhere.

    python tests/bench/storm [--clients 100] [--pause 2.0] [--seconds 10]

Needs the dependency group `bench`. All sides run in this process at once, each against paths of its
own on one upstream, so that a slow moment hits them all alike. The upstream is healthy,
fails every request with a 503, and is healthy again, `--seconds` each. A client calls,
pauses (at random, `--pause` on average) and calls again. With much less of a pause this one
process is the bottleneck: calls last longer than the storm, and the amplification reads too low.

Prints, for headrace, each window of 10 s: whether the retries in it are at most 0.2 × the
first tries of the last 20 s + 30; and the tightest of all windows. Beside it, for every side,
the amplification: requests that reached the upstream while it failed per call that began
meanwhile. Exits 1 where headrace's bound does not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from sides import CLIENTS_MOST, SIDES, Call

from support.storm import SIZE_S, Window, window, worst

SERVER = Path(__file__).with_name("server.py")


@contextlib.contextmanager
def upstream() -> Iterator[int]:
    """The port of `server.py` in a process of its own. Kills it at the end."""
    with subprocess.Popen([sys.executable, str(SERVER)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


@dataclass
class Crowd:
    """All clients of one side. Each list is appended to by many threads, and read when they have ended.

    Attributes:
        began: When each call began, monotonic seconds.
        records: headrace's, of each call.
    """

    call: Call
    pause_s: float
    began: list[float] = field(default_factory=list)
    records: list[Any] = field(default_factory=list)

    def client(self, ended: threading.Event) -> None:
        """One client, until *ended*."""
        ended.wait(random.uniform(0.0, 2 * self.pause_s))
        while not ended.is_set():
            self.began.append(time.monotonic())
            record = self.call()
            if record is not None:
                self.records.append(record)
            ended.wait(random.uniform(0.0, 2 * self.pause_s))


def ask(port: int, word: str) -> dict[str, list[int]]:
    """Switch the upstream, or have its counts."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/!{word}", timeout=30) as answer:
        return dict(json.load(answer))


def attempts_of(crowd: Crowd, since: float) -> tuple[list[float], list[float]]:
    """First tries and retries, seconds after *since*, sorted."""
    firsts, retries = [], []
    for record in crowd.records:
        for number, attempt in enumerate(record.attempts):
            (retries if number else firsts).append(attempt.started_s - since)
    return sorted(firsts), sorted(retries)


def row(one: Window, name: str) -> str:
    """A line of the table of windows."""
    verdict = "holds" if one.holds else "BROKEN"
    return f"{name:<22}{one.retries:>9}{one.firsts:>14}{one.allowed:>10.1f}   {verdict}"


def main() -> int:
    """Run, print, judge."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=100, choices=range(1, CLIENTS_MOST + 1), metavar="N")
    parser.add_argument("--pause", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()

    with upstream() as port, contextlib.ExitStack() as stack:
        crowds = {
            name: Crowd(stack.enter_context(side(f"http://127.0.0.1:{port}/side{number}/")), options.pause)
            for number, (name, side) in enumerate(SIDES.items())
        }
        ended = threading.Event()
        clients = [
            threading.Thread(target=crowd.client, args=(ended,), daemon=True)
            for crowd in crowds.values()
            for _ in range(options.clients)
        ]
        began = time.monotonic()
        for client in clients:
            client.start()
        time.sleep(options.seconds)
        ask(port, "fail")
        failing_from = time.monotonic()
        time.sleep(options.seconds)
        ask(port, "heal")
        failing_to = time.monotonic()
        time.sleep(options.seconds)
        ended.set()
        for client in clients:
            client.join(30.0)
        hung = sum(client.is_alive() for client in clients)
        counts = ask(port, "count")

        firsts, retries = attempts_of(crowds["headrace"], began)
        print(f"failing from {failing_from - began:.1f} s to {failing_to - began:.1f} s\n")
        print(f"{'headrace, window of':<22}{'retries':>9}{'firsts, 20 s':>14}{'allowed':>10}")
        ends = [SIZE_S * number for number in range(1, round(3 * options.seconds / SIZE_S) + 1)]
        shown = [row(window(firsts, retries, end), f"{end - SIZE_S:g} s to {end:g} s") for end in ends]
        tightest = worst(firsts, retries)
        print(*shown, sep="\n")
        if tightest is not None:
            print(row(tightest, f"tightest, to {tightest.end_s:.1f} s"))

        print(f"\n{'while it failed':<32}{'calls':>8}{'requests':>10}{'amplification':>15}")
        for number, (name, crowd) in enumerate(crowds.items()):
            calls = sum(failing_from <= at < failing_to for at in crowd.began)
            arrived = counts[f"side{number}"][1]
            print(f"{name:<32}{calls:>8}{arrived:>10}{arrived / calls:>15.2f}")
        at_server, by_record = sum(counts["side0"]), len(firsts) + len(retries)
        print(f"\nheadrace: {by_record} attempts on record, {at_server} requests at the upstream")
    broken = tightest is None or not tightest.holds or bool(hung) or by_record != at_server
    if hung:
        print(f"FAILED: {hung} clients hang")
    print("FAILED" if broken else "the budget held")
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
