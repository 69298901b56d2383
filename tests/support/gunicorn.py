"""gunicorn as a process of its own, serving a module that a test writes."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from support.waiting import wait_until


@contextlib.contextmanager
def gunicorn(
    folder: Path, module: str, *, conf: str, **env: str
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Its address and its master, serving `app` of *module* with *conf* as `gunicorn.conf.py`, both put into *folder*.

    Told to end (SIGTERM) and waited for afterwards, so that what workers write when they exit is written.
    """
    (folder / "service.py").write_text(textwrap.dedent(module))
    (folder / "gunicorn.conf.py").write_text(textwrap.dedent(conf) + "\nbind = '127.0.0.1:0'\n")
    log = folder / "gunicorn.log"
    with (
        log.open("w") as stream,
        subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "--graceful-timeout", "60", "service:app"],
            cwd=folder,
            env={**os.environ, **env},
            stderr=stream,
            text=True,
        ) as master,
    ):
        try:

            def address() -> list[str]:
                if master.poll() is not None:
                    raise AssertionError(log.read_text())
                return re.findall(r"http://127\.0\.0\.1:\d+", log.read_text())

            wait_until(address, timeout_s=60, what="gunicorn listening")
            yield address()[0], master
        except BaseException:
            print(log.read_text())
            raise
        finally:
            if master.poll() is None:
                master.terminate()
            try:
                master.wait(90)
            except subprocess.TimeoutExpired:
                master.kill()
                raise
