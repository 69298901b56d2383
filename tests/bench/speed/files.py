"""What a file costs: read, edited, held in memory; and a call where it names many upstreams."""

from __future__ import annotations

import functools
import gc
import importlib
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from table import Gauge, Lab, Work

# --- reload -----------------------------------------------------------------------------------------------


class Edits:
    """A running Headrace of *upstreams*, somebody who calls all the time, and one edit of the file after another."""

    def __init__(self, lab: Lab, upstreams: int) -> None:
        import edit_to_force
        from compile import blocks
        from prometheus_client import CollectorRegistry

        import headrace

        self._url, self._more, self._turn = lab.http, blocks(upstreams - 1), 0
        self._file = lab.folder / f"edited-{upstreams}.yaml"
        self._file.write_text(edit_to_force.rules(self._url, 0, self._more))
        self.hr = lab.stack.enter_context(headrace.Headrace(self._file, registry=CollectorRegistry()))
        self._caller = edit_to_force.Caller(f"{lab.http}/1k")
        lab.stack.callback(self._caller.close)
        while not self._caller.began_at:
            time.sleep(0.01)

    def edit_to_force_s(self) -> float:
        """Seconds from the write of the next edit to the first call under it."""
        import edit_to_force

        self._turn += 1
        (delay_s,) = edit_to_force.series(
            self._caller,
            self._file,
            self._url,
            edit_to_force.renamed,
            range(self._turn, self._turn + 1),
            self._more,
        )
        return delay_s

    def longest_call_s(self) -> float:
        """The longest call since this was last asked."""
        longest_s, self._caller.longest_s = self._caller.longest_s, 0.0
        if self._caller.errors:
            raise RuntimeError(f"a call failed meanwhile: {self._caller.errors[0]}")
        return longest_s

    def reload_s(self) -> float:
        """CPU of the thread that takes in one edit by hand."""
        import edit_to_force

        self._turn += 1
        edit_to_force.renamed(self._file, edit_to_force.rules(self._url, self._turn, self._more))
        began = time.thread_time()
        self.hr.reload()
        return time.thread_time() - began


@contextmanager
def _edits(lab: Lab, *, upstreams: int) -> Iterator[Edits]:
    yield Edits(lab, upstreams)


EDITS_OF = {number: functools.partial(_edits, upstreams=number) for number in (1, 1000)}
"""One object each: `Lab.once` goes by it."""


@contextmanager
def edited(lab: Lab, *, upstreams: int, what: str) -> Iterator[Work]:
    """One figure of `Edits`, by the name of its method."""
    yield Gauge(getattr(lab.once(EDITS_OF[upstreams]), what))


# --- config -----------------------------------------------------------------------------------------------


@contextmanager
def file_of(lab: Lab, *, upstreams: int, how: str) -> Iterator[Work]:
    """CPU per upstream: the YAML alone, `load`, or a whole Headrace that could start."""
    from compile import rules
    from prometheus_client import CollectorRegistry

    import headrace
    from headrace.config import load

    file = lab.folder / f"file-{upstreams}.yaml"
    file.write_text(rules(2))  # one of them with TLS
    headrace.Headrace(file, registry=CollectorRegistry())  # what is imported and read once in a process
    file.write_text(rules(upstreams))

    def parse() -> object:
        import yaml

        return yaml.load(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))

    def read() -> object:
        return load([str(file)])

    def build() -> object:
        return headrace.Headrace(file, registry=CollectorRegistry())

    act = {"parse": parse, "load": read, "build": build}[how]

    def once_s() -> float:
        gc.collect()  # what the last one left is not this one's
        began = time.process_time()
        kept = act()
        spent_s = time.process_time() - began
        del kept
        return spent_s / upstreams

    yield Gauge(once_s)


_WEIGHT = "{}\nimport resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"


@contextmanager
def imported(lab: Lab, *, what: str, is_weighed: bool = False) -> Iterator[Work]:
    """CPU seconds, or resident bytes, of an import in a fresh process: of nothing, our dependencies, or ours.

    The dependencies are the modules of others that the import of ASGIMiddleware leads to.
    """
    import imports

    folder, statement = str(lab.folder), imports.WANTED["ASGIMiddleware"]
    if what == "dependencies":
        statement = imports.write_others(imports.modules_of(statement, folder), "others", folder)
    elif what == "nothing":
        statement = "pass"
    code = (_WEIGHT if is_weighed else imports.TIMED).format(statement)
    imports.run(code, folder)  # writes the bytecode
    yield Gauge(
        lambda: float(imports.run(code, folder)) if is_weighed else imports.least_ms(code, folder) / 1e3
    )


@contextmanager
def imported_above(lab: Lab, *, title: str) -> Iterator[Work]:
    """CPU seconds of what `imports.WANTED` has under *title*, above those of the modules of others in it.

    The least of several processes of each, which take turns: both sides have the same moments of a busy machine.
    """
    import imports

    folder, statement = str(lab.folder), imports.WANTED[title]
    Path(folder, "upstreams.yaml").write_text(imports.RULES)
    others = imports.write_others(imports.modules_of(statement, folder), "others_above", folder)
    sides = [imports.TIMED.format(one) for one in (statement, others)]
    for code in sides:
        imports.run(code, folder)  # writes the bytecode

    def above_s() -> float:
        rounds = [[imports.least_ms(code, folder, processes=1) for code in sides] for _ in range(7)]
        ours_ms, others_ms = (min(side) for side in zip(*rounds, strict=True))
        return (ours_ms - others_ms) / 1e3

    yield Gauge(above_s)


# --- scale and memory -------------------------------------------------------------------------------------


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@contextmanager
def _many(lab: Lab, *, upstreams: int) -> Iterator[Any]:
    """A started Headrace of *upstreams* with its registry, and how many bytes came with it."""
    import ours
    from compile import blocks
    from prometheus_client import CollectorRegistry

    import headrace

    file = lab.folder / f"many-{upstreams}.yaml"
    file.write_text(ours.rules(lab, more=blocks(upstreams - 1)))
    registry = CollectorRegistry()
    gc.collect()
    before = _resident_bytes()
    with headrace.Headrace(file, registry=registry) as hr:
        time.sleep(0.6)  # a first round of housekeeping
        gc.collect()
        yield hr, registry, _resident_bytes() - before


SIZES = (1, 100, 1000, 10_000)
MANY = {number: functools.partial(_many, upstreams=number) for number in SIZES}


@contextmanager
def call_among(lab: Lab, *, upstreams: int) -> Iterator[Work]:
    """CPU of the calling thread for one `urlopen` where the file has so many upstreams.

    Not that of the process: on a machine that others use as well, more ticks of the background fall into a call.
    """
    one = lab.once(MANY[upstreams])[0].upstream("plain")
    turns = 200

    def call_s() -> float:
        began = time.thread_time()
        for _ in range(turns):
            answer = one.urlopen("GET", "/1k")
            assert answer.status == 200
            assert answer.data
        return (time.thread_time() - began) / turns

    call_s()
    yield Gauge(call_s)


@contextmanager
def reading_among(lab: Lab, *, upstreams: int, what: str) -> Iterator[Work]:
    """CPU per upstream of a scrape or of `status()`; or the share of a core that is spent while nothing is asked."""
    hr, registry, _ = lab.once(MANY[upstreams])

    def idle() -> float:
        began, cpu_began = time.monotonic(), time.process_time()
        time.sleep(2.0)
        return (time.process_time() - cpu_began) / (time.monotonic() - began)

    if what == "idle":
        yield Gauge(idle)
        return
    from prometheus_client import generate_latest

    act = {"scrape": lambda: generate_latest(registry), "status": hr.status}[what]

    def read_s() -> float:
        began = time.process_time()
        act()
        return (time.process_time() - began) / upstreams

    yield Gauge(read_s)


@contextmanager
def bytes_of(lab: Lab, *, library: str) -> Iterator[Work]:
    """Resident bytes per idle upstream, of 1,000 in a fresh process: a governed one, or one that a peer can call."""
    command = [sys.executable, "-c", _WEIGHED, str(Path(__file__).parent), library, lab.http, str(lab.folder)]
    yield Gauge(lambda: float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


_WEIGHED = """
import sys
speed, library, url, folder = sys.argv[1:]
sys.path[:0] = [speed, speed + "/..", speed + "/../.."]
import files
print(files.weighed(library, url, folder))
"""


def weighed(library: str, url: str, folder: str) -> float:
    """Bytes per upstream, in this process."""
    number = 1000
    lab = Lab(url, "", "", Path(folder))
    if library == "headrace":
        with _many(lab, upstreams=2):
            pass  # what is imported and read once in a process
        with _many(lab, upstreams=number) as (_, _, more_bytes):
            return more_bytes / number
    stock = importlib.import_module(library)
    gc.collect()
    before = _resident_bytes()
    if library == "urllib3":
        pools = stock.PoolManager(num_pools=number)
        kept: object = [
            pools.connection_from_url(f"http://service-{at}.internal:8443") for at in range(number)
        ]
    else:
        kept = one = stock.Session()
        for at in range(number):
            one.mount(f"http://service-{at}.internal:8443/", stock.adapters.HTTPAdapter())
    gc.collect()
    more_bytes = _resident_bytes() - before
    del kept
    return more_bytes / number
