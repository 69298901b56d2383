"""Event loops of both kinds, each run as `asyncio.run` runs its own. A fixture.

`tests/conftest.py` hands it to every test.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

import pytest
import uvloop

T = TypeVar("T")

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


class OnLoop(Protocol):
    """Runs a coroutine on a new loop, to its end and to that of the loop."""

    def __call__(self, what: Coroutine[Any, Any, T], /) -> T: ...


def run_with(new_loop: Callable[[], asyncio.AbstractEventLoop], what: Coroutine[Any, Any, T]) -> T:
    """What *what* returns, on a loop that *new_loop* makes. Blocks."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(what)


@pytest.fixture(params=LOOPS)
def on_loop(request: pytest.FixtureRequest) -> OnLoop:
    """The test is run on each kind of loop."""
    new_loop = LOOPS[request.param]
    return lambda what: run_with(new_loop, what)
