"""The set-ups of `frameworks.md`, server by framework, as real processes over the applications that the page shows."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from celery import Celery

from support.faultserver import FaultServer
from support.interrupts import let_children_be_interrupted
from support.pages import section, text_of, write
from support.waiting import wait_until

PAGE, HEADING = "frameworks", "How to start it"


@dataclass(frozen=True)
class Cell:
    """One that the page says works."""

    command: str
    framework: str

    @property
    def program(self) -> str:
        """The name of the server."""
        return self.command.partition(" ")[0]

    def __str__(self) -> str:
        return f"{self.framework}: {self.command}"


def cells(kind: str) -> list[Cell]:
    """Those of the table whose first column is headed *kind*, in its order."""
    found: list[Cell] = []
    for table in re.findall(r"((?:^\|.*\n)+)", section(PAGE, HEADING), flags=re.MULTILINE):
        head, _, *rows = ([cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines())
        if head[0] == kind:
            for command, *said in rows:
                names = zip(head[1:], said, strict=True)
                found += [Cell(command.strip("`"), name) for name, word in names if word == "yes"]
    assert found, kind
    return found


DJANGO = """
import os
from django.urls import path
from django.http import HttpResponse
import requests

ALLOWED_HOSTS, ROOT_URLCONF, SECRET_KEY, USE_TZ = ["*"], "urls", "x", True
MIDDLEWARE = []
"""
DJANGO_URLS = """
from django.http import HttpResponse
from django.urls import path
import requests

def invoice(request, number):
    return HttpResponse(requests.get(f"https://billing.internal/invoices/{number}"), "application/json")

urlpatterns = [path("invoices/<int:number>", invoice)]
"""


def write_application(folder: Path, cell: Cell, upstream: FaultServer) -> str:
    """Write the page's application of *cell* into *folder*. Its name there, as servers take it."""
    if cell.framework != "Django":
        key = "Celery" if cell.program == "celery" else cell.framework
        write(folder, "orders.py", f"{PAGE}: {key}/1", upstream)
        if key == "Celery":
            with (folder / "orders.py").open("a") as module:
                module.write(CELERY.replace("https://billing.internal", upstream.url))
        return "orders:app"
    (folder / "settings.py").write_text(DJANGO + text_of(f"{PAGE}: Django/2"))
    urls = DJANGO_URLS.replace("https://billing.internal", upstream.url)
    (folder / "urls.py").write_text(urls + text_of(f"{PAGE}: Django/3"))
    entry = text_of(f"{PAGE}: Django/1")
    (folder / "wsgi.py").write_text(entry)
    (folder / "asgi.py").write_text(entry.replace("wsgi", "asgi").replace("WSGI", "ASGI"))
    return f"{'asgi' if cell in cells('ASGI') else 'wsgi'}:application"


_INTERRUPTED = frozenset({"uvicorn", "fastapi", "waitress-serve"})
"""What dies of SIGTERM in the end, on purpose or for want of a handler. An interrupt is an orderly end for them."""


CELERY = """
import requests
from celery import Celery

app = Celery("orders")

@app.task
def invoice(number):
    return requests.get(f"https://billing.internal/invoices/{number}").json()
"""


@dataclass
class Program:
    """A running server.

    Attributes:
        url: Empty until it has said where it listens.
    """

    process: subprocess.Popen[bytes]
    log: Path
    ends_by: signal.Signals = signal.SIGTERM
    url: str = ""

    @property
    def output(self) -> str:
        """What it has written to both streams so far."""
        return self.log.read_text("utf-8", "replace")

    def stop(self) -> int:
        """Tell it to end. Its exit code. Blocks."""
        self.process.send_signal(self.ends_by)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it goes on after {self.ends_by.name}:\n{self.output}") from None


def is_there(name: str) -> bool:
    """Whether the program *name* is installed in this environment."""
    return Path(sys.executable).with_name(name).exists()


@contextlib.contextmanager
def program(command: str, folder: Path, env: Mapping[str, str]) -> Iterator[Program]:
    """*command*, run in *folder* out of this environment; killed in the end if it still runs."""
    name, *arguments = shlex.split(command)
    log = folder / "output.txt"
    with log.open("wb") as stream:
        let_children_be_interrupted()
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name(name)), *arguments],
            cwd=folder,
            env=_environment(env),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running = Program(process, log)
    try:
        yield running
    except BaseException:
        print(running.output)
        raise
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it leaves behind, too
        process.wait()


@contextlib.contextmanager
def server(cell: Cell, folder: Path, application: str, *, is_awaited: bool = True) -> Iterator[Program]:
    """The server of *cell*, with *application*, on a port of 127.0.0.1 that nobody uses.

    Args:
        is_awaited: Until it accepts connections.
    """
    line = cell.command.replace("orders:app", application)
    port = 0
    if cell.program == "granian":  # it does not say which port it got
        port = _free_port()
    name, *arguments = line.split(" ")
    match name:
        case "uvicorn" | "granian":
            more = ["--port", str(port)]
        case "fastapi":
            more, arguments = [], [*arguments, "--host", "127.0.0.1", "--port", "0"]
        case "waitress-serve":
            more = ["--listen", "127.0.0.1:0"]
        case "uwsgi":
            more, arguments = [], [one.replace(":8000", ":0") for one in arguments]
        case _:
            more = ["--bind", "127.0.0.1:0"]
    env = {"DJANGO_SETTINGS_MODULE": "settings", "UWSGI_VIRTUALENV": sys.prefix}
    with program(" ".join([name, *more, *arguments]), folder, env) as running:

        def listens() -> bool:
            assert running.process.poll() is None, running.output
            found = re.search(r"127\.0\.0\.1:([1-9]\d*)", running.output)
            at = port or (int(found[1]) if found else 0)
            if not at:
                return False
            running.url = f"http://127.0.0.1:{at}"
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", at)) == 0

        if name in _INTERRUPTED:
            running.ends_by = signal.SIGINT
        if is_awaited:
            wait_until(listens, timeout_s=60, what=f"{cell} listening")
        yield running


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    return {**kept, "PYTHONWARNINGS": "default", "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", **env}


def _free_port() -> int:
    """Below those that the kernel gives to clients, so that none of them takes it meanwhile."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


def edit(file: Path, text: str) -> None:
    """Put *text* in the place of *file*, as editors and deployments do."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


class Tasks:
    """A broker in a folder, and the one who sends tasks to it. Celery's workers find it by `env`.

    Attributes:
        env: What a worker needs to know.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._queue, self._unsent = folder, folder.with_name(f"{folder.name}-unsent")
        self._unsent.mkdir()
        places = {
            "data_folder_in": str(folder),
            "data_folder_out": str(folder),
            "control_folder": str(folder),
        }
        config = folder / "celeryconfig.py"
        config.write_text(
            "broker_url = 'filesystem://localhost/'\n"
            f"broker_transport_options = {places | {'polling_interval': 0.05}}\n"
        )
        self.env = {"CELERY_CONFIG_MODULE": "celeryconfig", "PYTHONPATH": str(folder)}
        self._app = Celery("tasks", broker="filesystem://localhost/")
        self._app.conf.broker_transport_options = places | {"data_folder_out": str(self._unsent)}

    def send(self, name: str, *args: object) -> None:
        """Put a call of the task *name* into the queue."""
        self._app.send_task(name, args, ignore_result=True)
        for message in self._unsent.iterdir():
            # All at once: kombu opens the file before it writes it, and a worker that comes in between loses the task.
            message.rename(self._queue / message.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._app.close()
