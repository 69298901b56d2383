"""Which process this is, as a page of memory says that a fork empties."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable

import pytest

from headrace.forks import _kept, current_pid, pid_page

raw_fork: Callable[[], int] = ctypes.CDLL(None).fork


@pytest.mark.parametrize(
    "fork", [pytest.param(os.fork, id="os.fork"), pytest.param(raw_fork, id="fork(2), as uWSGI does it")]
)
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_never_takes_itself_for_its_parent(fork: Callable[[], int]) -> None:
    parent = pid_page[0] or current_pid()
    assert parent == os.getpid()

    child = fork()
    if child == 0:
        before = pid_page[0]
        asked = before or current_pid()
        os._exit(before != 0 or asked != os.getpid() or (pid_page[0] or current_pid()) != os.getpid())
    _, status = os.waitpid(child, 0)

    assert status == 0
    assert (pid_page[0] or current_pid()) == parent


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel is asked each time")
def test_on_linux_the_kernel_is_asked_once() -> None:
    current_pid()

    assert _kept is not None
    assert pid_page[0] == os.getpid()
