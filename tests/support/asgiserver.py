"""A real ASGI server within the test's own process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from typing import Any

import uvicorn

_LOG = logging.getLogger("uvicorn.error")


class _Alarms(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))


class Server:
    """uvicorn on a thread of its own, on a free port. One at a time."""

    def __init__(self, app: Any, *, lifespan: Any = "auto") -> None:
        self._alarms = _Alarms()
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        config = uvicorn.Config(app, lifespan=lifespan, log_config=None, log_level="error", ws="none")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self._run)

    @property
    def alarms(self) -> list[str]:
        """What it has logged as errors, with the tracebacks."""
        return self._alarms.texts

    def _run(self) -> None:
        with contextlib.suppress(SystemExit):  # its answer to a startup that failed
            asyncio.run(self.server.serve(sockets=[self.socket]))

    def __enter__(self) -> Server:
        _LOG.addHandler(self._alarms)
        _LOG.propagate = False
        self.thread.start()
        give_up_at = time.monotonic() + 20
        while not self.server.started and self.thread.is_alive():
            assert time.monotonic() < give_up_at
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        _LOG.removeHandler(self._alarms)
        _LOG.propagate = True
        self.socket.close()
        assert not self.thread.is_alive()
