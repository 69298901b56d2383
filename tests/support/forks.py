"""Forked children that a test can always await: what runs in one is bounded, and so is the wait for it."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading
import warnings
from collections.abc import Callable

#: Seconds that a child may take for what the test asks of it. SIGALRM kills it then.
CHILD_S = 10

#: Children of one bare fork that may be lost to CPython itself before the test gives up. One is rare already.
LOSSES = 10


def ordinary_fork() -> int:
    """`os.fork`, with Python's hooks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: other threads run; that is the point
        return os.fork()


def bare_fork() -> int:
    """fork(2) itself, as uWSGI does: none of Python's hooks run. PyDLL keeps the GIL, so that the child has it."""
    return int(ctypes.PyDLL(None).fork())


def in_child(act: Callable[[], object], *, fork: Callable[[], int] = ordinary_fork) -> int:
    """Exit status of a child that runs *act*: 0, 1 when it raised, or minus the signal (SIGALRM: it hung).

    A child of a bare fork may hang in CPython before it has run a line: another thread of the parent had asked for
    the GIL (the child hands it over to a thread that does not exist), or held one of the interpreter's own locks.
    Nothing here can mend that, and no alarm is set yet. So a child says when it is ready: it has given up the GIL,
    taken it again, and seen a thread begin and end. One that is not ready in time is killed, and another one is made.
    """
    for _ in range(LOSSES):
        hearing, saying = os.pipe()
        pid = fork()
        if pid == 0:
            status = 1
            try:
                signal.alarm(CHILD_S)
                thread = threading.Thread(target=os.getpid)
                thread.start()
                thread.join()
                os.write(saying, b".")
                signal.alarm(CHILD_S)
                act()
                status = 0
            except Exception:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(status)
        os.close(saying)
        is_ready = bool(select.select([hearing], [], [], CHILD_S)[0]) and os.read(hearing, 1) == b"."
        os.close(hearing)
        if not is_ready:
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if is_ready:
            return status
    raise AssertionError(f"{LOSSES} children were forked and none of them ran")
