"""What every test may use, and what the whole run has to leave behind: nothing."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from support.authorities import authority as authority
from support.authorities import ca as ca
from support.authorities import secure as secure
from support.failed import pytest_runtest_makereport as pytest_runtest_makereport
from support.loops import on_loop as on_loop

_DESCRIPTORS = Path("/proc/self/fd")

PARSERS = ("auto", "stdlib")

# Hypothesis would call an example of 200 ms a failure. A busy machine is none.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--parser stdlib` runs all tests on stock's wire path; without it, those marked `both_parsers` run on both."""
    parser.addoption("--parser", choices=PARSERS, help="who reads answers off the wire, in every test")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What speaks of the wire is asked of both paths."""
    if metafunc.config.getoption("--parser") is None and any(
        metafunc.definition.iter_markers("both_parsers")
    ):
        metafunc.parametrize("parser", PARSERS, indirect=True)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is collected stays to the end: the collector need not go through ten thousand tests again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True)
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who reads answers off the wire in this process. A file's `pool.parser: stdlib` does the same for its upstream."""
    chosen: str = getattr(request, "param", None) or request.config.getoption("--parser") or "auto"
    if chosen == "stdlib" and any(request.node.iter_markers("wire_path")):
        # If it failed, its traceback would hold an answer that nobody reads. The collector warns of that one's socket,
        # as it does under stock urllib3, in whatever test it runs in.
        pytest.skip("it asks for the wire path")
    if chosen == "stdlib":
        monkeypatch.setattr("headrace.transport.stock.pool.may_speak", lambda *_: False)
    return chosen


@pytest.fixture(scope="session")
def require_program() -> Callable[[str], str]:
    """Answers a program's path; without it the test is skipped, and fails where CI=true (nothing is left out there)."""

    def require(name: str) -> str:
        # Servers are in sbin, which is not on everybody's PATH.
        path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin")
        if path is not None:
            return path
        text = f"the program {name!r} is not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{text}; with CI=true no test may be skipped for it")
        pytest.skip(text)

    return require


@pytest.fixture(autouse=True)
def the_root_logger_stays_as_it_is() -> Iterator[None]:
    """Litestar sets it to INFO and hangs a queue into it. Interrupts of later tests then leave logging's locks held."""
    root = logging.getLogger()
    before, level = tuple(root.handlers), root.level
    yield
    root.setLevel(level)
    for handler in tuple(root.handlers):
        if handler not in before and not type(handler).__module__.startswith("_pytest"):
            root.removeHandler(handler)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """The run ends without a thread of headrace and without a socket that it did not begin with."""
    before = _sockets()
    yield
    gc.collect()  # a forgotten socket that is garbage is reported by its ResourceWarning, not here
    threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("headrace-")]
    assert threads == [], "threads still running"
    sockets = _sockets() - before
    assert sockets == set(), "sockets still open"


def _sockets() -> set[str]:
    """This process's open sockets, as the kernel names them; empty where there is no /proc."""
    if not _DESCRIPTORS.is_dir():
        return set()
    found = set()
    for descriptor in _DESCRIPTORS.iterdir():
        try:
            target = os.readlink(descriptor)
        except OSError:
            continue  # the one that lists the directory
        if target.startswith("socket:"):
            found.add(target)
    return found
