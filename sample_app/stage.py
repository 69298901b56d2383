"""The processes of the story: started on free ports, always taken down again."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
START_S = 30.0
STOP_S = 15.0
REPLY_S = 10.0

FORMS: Mapping[str, tuple[str, ...]] = {
    "Starlette under uvicorn": (
        *("uvicorn", "sample_app.orders_starlette:app", "--host", "127.0.0.1", "--port", "{port}"),
        *("--log-level", "warning", "--timeout-graceful-shutdown", "5"),
    ),
    "Flask under gunicorn": (
        *("gunicorn", "sample_app.orders_flask:app", "--bind", "127.0.0.1:{port}"),
        *("--workers", "1", "--threads", "16", "--graceful-timeout", "5", "--log-level", "warning"),
    ),
}
"""How each form of the orders service is run, after `python -m`."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What an HTTP request was answered with."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def fetch(port: int, path: str, *, method: str = "GET") -> Reply:
    """One request to 127.0.0.1 on a connection of its own. Blocks for at most REPLY_S per read."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REPLY_S)
    try:
        connection.request(method, path, headers={"Connection": "close"})
        response = connection.getresponse()
        return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


def free_port() -> int:
    """A port that nothing listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(what: str, holds: Callable[[], bool], *, within_s: float, every_s: float = 0.02) -> float:
    """Seconds until *holds* was true. Blocks.

    Raises:
        TimeoutError: It did not become true within *within_s*; the text says *what*.
    """
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > within_s:
            raise TimeoutError(f"not within {within_s:g} s: {what}")
        time.sleep(every_s)
    return time.monotonic() - began


class Process:
    """One child process, listening on one port, in a session of its own (a Ctrl-C is ours to pass on).

    What it writes goes to `log`.
    """

    def __init__(
        self, name: str, module: tuple[str, ...], *, port: int, env: Mapping[str, str], log: Path
    ) -> None:
        self.name, self.port, self.log = name, port, log
        self._module, self._env = module, dict(env)
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Blocks until it listens."""
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", *(part.format(port=self.port) for part in self._module)],
                cwd=PROJECT,
                env={**os.environ, **self._env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(f"{self.name} listens on {self.port}", self._is_up, within_s=START_S)

    def kill(self) -> None:
        """kill -9, the whole session. Idempotent."""
        self._signal(signal.SIGKILL)

    def stop(self) -> float:
        """Ask to shut down (SIGTERM) and wait; kill after STOP_S. Answers the seconds it took. Idempotent."""
        began = time.monotonic()
        if self._popen is not None and self._popen.poll() is None:
            self._popen.terminate()
            try:
                self._popen.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()
                raise TimeoutError(f"{self.name} did not shut down within {STOP_S:g} s of SIGTERM") from None
        return time.monotonic() - began

    @property
    def exit_status(self) -> int | None:
        return None if self._popen is None else self._popen.poll()

    def is_session_empty(self) -> bool:
        """Whether neither it nor a process it started is left."""
        if self._popen is None:
            return True
        try:
            os.killpg(self._popen.pid, 0)
        except ProcessLookupError:
            return True
        return False

    def _is_up(self) -> bool:
        if self._popen is not None and self._popen.poll() is not None:
            raise RuntimeError(
                f"{self.name} ended with status {self._popen.returncode}:\n{self.log.read_text()}"
            )
        return is_listening(self.port)

    def _signal(self, number: int) -> None:
        if self._popen is None:
            return
        try:
            os.killpg(self._popen.pid, number)
        except ProcessLookupError:
            pass
        self._popen.wait(STOP_S)


class Stage:
    """Billing, inventory and forms of the orders service around one copy of upstreams.yaml."""

    def __init__(self, directory: Path, forms: tuple[str, ...]) -> None:
        self.directory = directory
        self.file = directory / "upstreams.yaml"
        self.file.write_text((PROJECT / "sample_app" / "upstreams.yaml").read_text())
        self.reports = directory / "reports"
        self.reports.mkdir()
        self.billing = self._process("billing", ("sample_app.billing", "--port", "{port}"))
        self.inventory = self._process("inventory", ("sample_app.inventory", "--port", "{port}"))
        env = {
            "BILLING_URL": f"http://127.0.0.1:{self.billing.port}",
            "INVENTORY_URL": f"http://127.0.0.1:{self.inventory.port}",
            "HEADRACE_FILE": str(self.file),
            "SAMPLE_REPORTS": str(self.reports),
        }
        self.orders = {form: self._process(form, FORMS[form], env) for form in forms}

    def start(self) -> None:
        for process in self.processes:
            process.start()

    @property
    def processes(self) -> list[Process]:
        return [self.billing, self.inventory, *self.orders.values()]

    def write(self, text: str) -> None:
        """Replace the file as editors do: a new file renamed over it, never half of one."""
        fresh = self.file.with_suffix(".new")
        fresh.write_text(text)
        fresh.rename(self.file)

    def _process(self, name: str, module: tuple[str, ...], env: Mapping[str, str] | None = None) -> Process:
        log = self.directory / f"{name.replace(' ', '-').lower()}.log"
        return Process(
            name, module, port=free_port(), env={"PYTHONPATH": str(PROJECT), **(env or {})}, log=log
        )


@contextmanager
def stage(directory: Path, *forms: str) -> Iterator[Stage]:
    """A running stage; whatever happens, no process of it is left afterwards."""
    made = Stage(directory, forms)
    try:
        made.start()
        yield made
    finally:
        for process in made.processes:
            process.kill()
