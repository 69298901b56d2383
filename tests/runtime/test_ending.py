"""What a process says of its end: nothing. On Python 3.12 no thread can be had from the end of the program on."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.observe.isolation import is_ending
from support.faultserver import FaultServer
from support.governed import rules

BEGINNING = """
import atexit, logging, sys, time
logging.basicConfig()
import headrace, requests
url, file = sys.argv[1:]
hr = headrace.install(file)
"""


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


def ended(
    folder: Path, server: FaultServer, program: str, body: str = "", *, url: str | None = None
) -> tuple[int, str]:
    """How often the server was asked, and all that the process has written."""
    file, url = folder / "upstreams.yaml", url or server.url
    file.write_text(rules(url, body))
    done = subprocess.run(
        [sys.executable, "-c", BEGINNING + textwrap.dedent(program), url, str(file)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return len(server.requests), done.stdout + done.stderr


def test_a_program_that_ends_right_after_it_was_installed_is_not_told_of_a_watch_that_only_polls(
    tmp_path: Path, server: FaultServer
) -> None:
    """The watching thread cannot start watchdog's any more, and nobody is there to edit a file for."""
    assert ended(tmp_path, server, "") == (0, "")


def test_the_first_call_of_a_program_that_ends_is_made_and_not_warned_of(
    tmp_path: Path, server: FaultServer
) -> None:
    """It has no deadline thread, and the name is looked up on its own."""
    server_of = server.url.replace("127.0.0.1", "localhost")
    program = """
        atexit.register(lambda: print(requests.get(url).headrace.upstream))
    """
    assert ended(tmp_path, server, program, url=server_of) == (1, "billing\n")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("    pool: {heartbeat: {interval: 100ms}}\n", id="heartbeats"),
        pytest.param("    pool: {min_idle: 2, idle_timeout: 500ms}\n", id="warm connections"),
    ],
)
def test_housekeeping_that_finds_no_thread_at_the_end_says_nothing(
    tmp_path: Path, server: FaultServer, body: str
) -> None:
    """An application that takes its time to end: several rounds come while no thread can be had."""
    program = """
        assert requests.get(url).ok
        atexit.register(time.sleep, 1.8)
    """
    assert ended(tmp_path, server, program, body) == (1, "")


def test_an_error_of_a_machine_that_has_no_threads_left_is_another() -> None:
    assert not is_ending(RuntimeError("can't start new thread"))
    assert not is_ending(OSError("at interpreter shutdown"))
