"""Edit → in force: from the write of the file to the start of a call that the new rule governs.

    python tests/bench/edit_to_force.py [--edits 100]

Default settings (`reload:` is not in the file), one caller that calls all the
time, edits at moments unrelated to the safety poll. Each edit is made as an
atomic rename and, in another series, by writing over the file in place. The
instant of the edit is taken before its first system call, the instant of force
is when the first call began whose record carries another digest. Prints a
table; asserts nothing.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import requests
from interleaved import percentile
from servers import upstream

import headrace

LIMIT_S = 0.250  # a quarter of a second, as reload.md promises
PATIENCE_S = 60.0


def rules(url: str, turn: int, more: str = "") -> str:
    """A file that differs from turn to turn by a header; *more* are further upstreams."""
    return f"""\
version: 1
upstreams:
  billing:
    base_url: {url}
    headers: {{X-Turn: "{turn}"}}
{more}"""


def renamed(file: Path, text: str) -> None:
    """As most editors and deployments do."""
    draft = file.with_suffix(".new")
    draft.write_text(text)
    os.replace(draft, file)


def in_place(file: Path, text: str) -> None:
    """As `echo > file` does: truncated first, then written."""
    file.write_text(text)


class Caller:
    """Calls all the time; remembers when the first call under each digest began, and the longest call so far."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._ended = threading.Event()
        self.began_at: dict[str, float] = {}  # digest -> monotonic seconds
        self.errors: list[str] = []
        self.longest_s = 0.0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with requests.Session() as session:
            while not self._ended.is_set():
                began_at = time.monotonic()
                try:
                    digest = session.get(self._url).headrace.config_digest  # type: ignore[attr-defined]
                except requests.RequestException as error:
                    self.errors.append(repr(error))
                else:
                    self.began_at.setdefault(digest, began_at)
                    self.longest_s = max(self.longest_s, time.monotonic() - began_at)
                self._ended.wait(0.001)

    def close(self) -> None:
        self._ended.set()
        self._thread.join()


def series(
    caller: Caller, file: Path, url: str, edit: Callable[[Path, str], None], edits: range, more: str = ""
) -> list[float]:
    """Seconds from each of *edits* to its force; *more* as for `rules`. Blocks."""
    delays_s = []
    rng = random.Random(edits.start)
    for turn in edits:
        time.sleep(rng.uniform(0.02, 0.3))
        seen = len(caller.began_at)
        edited_at = time.monotonic()
        edit(file, rules(url, turn, more))
        while len(caller.began_at) == seen:
            if time.monotonic() - edited_at > PATIENCE_S:
                raise SystemExit(f"edit {turn} was not in force after {PATIENCE_S} s")
            time.sleep(0.0005)
        delays_s.append([*caller.began_at.values()][-1] - edited_at)
    return delays_s


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--edits", type=int, default=100)
    edits = parser.parse_args().edits
    with upstream() as port, tempfile.TemporaryDirectory() as folder:
        file, url = Path(folder, "upstreams.yaml"), f"http://127.0.0.1:{port}"
        file.write_text(rules(url, 0))
        with headrace.Headrace(file) as hr:
            caller = Caller(f"{url}/")
            try:
                while not caller.began_at:
                    time.sleep(0.01)
                print(f"{'edit → in force':22}{'n':>5}{'median':>10}{'p95':>10}{'worst':>10}{'> 250 ms':>10}")
                for number, (title, edit) in enumerate((("atomic rename", renamed), ("in place", in_place))):
                    first = 1 + number * edits
                    delays_s = series(caller, file, url, edit, range(first, first + edits))
                    figures = (statistics.median(delays_s), percentile(delays_s, 0.95), max(delays_s))
                    late = sum(delay_s > LIMIT_S for delay_s in delays_s)
                    columns = "".join(f"{figure * 1e3:7.1f} ms" for figure in figures)
                    print(f"{title:22}{len(delays_s):5}{columns}{late:10}")
            finally:
                caller.close()
            print(f"calls that failed: {len(caller.errors)}; reloads {hr.status()['reloads']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
