"""Root reads any file. Where root runs the tests, as in containers, one of a file that may not be read needs this."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_VERSION = 0x20080522  # of the call: _LINUX_CAPABILITY_VERSION_3
_DAC = (1 << 1) | (1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: see capabilities(7)


@contextmanager
def permissions_count() -> Iterator[None]:
    """Within it this thread, and those that it starts, may read no more than the mode of a file says."""
    if os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("root may read everything here")
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION, 0)  # 0: the calling thread
    before = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice, for more than 32 of them
    _do(libc.capget(header, before))
    less = (ctypes.c_uint32 * 6)(*before)
    less[0] &= ~_DAC
    _do(libc.capset(header, less))
    try:
        yield
    finally:
        _do(libc.capset(header, before))


def _do(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
