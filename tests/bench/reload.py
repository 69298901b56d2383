"""A reload of many upstreams while calls go on: from the edit to its force, and the longest call meanwhile.

    python tests/bench/reload.py [--upstreams 1000] [--edits 15]

One upstream is called all the time, without a pause; each edit changes a header of it, and of no other. The instant of
the edit is taken before its first system call, the instant of force is when the first call began whose record has
another digest. The longest call is taken from the edit to 0.2 s after the force, and, to compare, over as long a time
before the edit. `loads` are the loads of the file that one edit causes. Prints a table; asserts nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from prometheus_client import CollectorRegistry

sys.path.insert(0, str(Path(__file__).resolve().parent))

from compile import rules
from servers import upstream

import headrace

PATIENCE_S = 20.0


class Edit(NamedTuple):
    """What one edit cost, in seconds: to its force; the longest call before it, and meanwhile."""

    to_force_s: float
    quiet_s: float
    longest_s: float


class Caller:
    """Calls all the time, and remembers of each call when it began, how long it took, and by which rules."""

    def __init__(self, hr: headrace.Headrace) -> None:
        self._handle = hr.upstream("called")
        self._ended = False
        self.calls: list[tuple[float, float, str]] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended:
            began = time.monotonic()
            answer = self._handle.urlopen("GET", "/")
            digest: str = answer.headrace.config_digest  # type: ignore[attr-defined]
            self.calls.append((began, time.monotonic() - began, digest))

    def close(self) -> None:
        self._ended = True
        self._thread.join()


def _text(upstreams: int, port: int, turn: int) -> str:
    called = f'  called: {{base_url: "http://127.0.0.1:{port}", headers: {{X-Turn: "{turn}"}}}}\n'
    return rules(upstreams - 1) + called


def measure(*, upstreams: int, edits: int) -> list[Edit]:
    """What each of *edits* cost in a file of that many upstreams. Blocks."""
    found: list[Edit] = []
    with upstream() as port, tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "upstreams.yaml")
        file.write_text(_text(upstreams, port, 0))
        with headrace.Headrace(file, registry=CollectorRegistry()) as hr:
            caller = Caller(hr)
            try:
                time.sleep(2.0)  # the watcher's first look
                found += [_edited(caller, file, _text(upstreams, port, turn)) for turn in range(1, edits + 1)]
            finally:
                caller.close()
    return found


def _edited(caller: Caller, file: Path, text: str) -> Edit:
    caller.calls.clear()
    time.sleep(1.0)
    quiet_s = max(took_s for _, took_s, _ in caller.calls)
    before = caller.calls[-1][2]
    draft = file.with_suffix(".new")
    draft.write_text(text)
    edited_at = time.monotonic()
    os.replace(draft, file)
    while caller.calls[-1][2] == before:
        if time.monotonic() - edited_at > PATIENCE_S:
            raise SystemExit(f"the edit was not in force after {PATIENCE_S} s")
        time.sleep(0.005)
    time.sleep(0.2)
    calls = [call for call in caller.calls if call[0] + call[1] >= edited_at]
    force_at = next(began for began, _, digest in calls if digest != before)
    return Edit(force_at - edited_at, quiet_s, max(took_s for _, took_s, _ in calls))


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--upstreams", type=int, default=1000)
    parser.add_argument("--edits", type=int, default=15)
    options = parser.parse_args()
    found = measure(upstreams=options.upstreams, edits=options.edits)
    print(f"{options.upstreams} upstreams, {len(found)} edits of one{'median':>14}{'worst':>10}")
    for title, values in (
        ("edit → in force", [one.to_force_s for one in found]),
        ("longest call meanwhile", [one.longest_s for one in found]),
        ("longest call before", [one.quiet_s for one in found]),
    ):
        print(f"{title:31}{statistics.median(values) * 1e3:11.0f} ms{max(values) * 1e3:7.0f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
