"""Which process this is, without a system call: one page that the kernel empties in a forked child.

Everything that a fork must not share asks at each call, since raw fork(2), as uWSGI does it, skips Python's fork hook.
getpid(2) is a system call each time (glibc keeps no number since 2.25): 40 ns on a bare machine, 100 to 250 in a
virtual one, and several of them for each call. Cryptographic libraries have to be told the same, and for them Linux has
`MADV_WIPEONFORK` (4.14): a child finds zeros, however it was forked. A look at the page takes 20 ns.

    pid = pid_page[0] or current_pid()

Some emulators answer any madvise(2) with success, and do nothing. So one is tried that must fail, as BoringSSL does it.
Where it is not to be had, the page stays empty, and each call asks the kernel.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Sequence
from typing import Final

_MADV_WIPEONFORK = 18
_MADV_INVALID = -1


def _page() -> memoryview[int] | None:
    if sys.platform != "linux":
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_MADV_WIPEONFORK)
    except (OSError, ValueError):
        return None
    try:
        page.madvise(_MADV_INVALID)
    except OSError:
        return memoryview(page).cast("i")
    return None


_kept: Final = _page()

pid_page: Final[Sequence[int]] = (0,) if _kept is None else _kept
"""At 0: this process, or 0 where that is not known yet. Only read."""


def current_pid() -> int:
    """This process, as the kernel says; known from then on."""
    pid = os.getpid()
    if _kept is not None:
        _kept[0] = pid
    return pid
