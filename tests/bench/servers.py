"""`soak_server.py` in a process of its own: an upstream whose work is not on this process's clock."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SERVER = Path(__file__).with_name("soak_server.py")


@contextlib.contextmanager
def upstream(faults_per_thousand: int = 0) -> Iterator[int]:
    """The port it listens on. Kills it at the end."""
    with subprocess.Popen(
        [sys.executable, str(SERVER), str(faults_per_thousand)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()
