"""A real ASGI server within the test's own process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from typing import Any

import uvicorn


class Server:
    """uvicorn on a thread of its own, on a free port."""

    def __init__(self, app: Any, *, lifespan: Any = "auto") -> None:
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        config = uvicorn.Config(app, lifespan=lifespan, log_level="critical", ws="none")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with contextlib.suppress(SystemExit):  # its answer to a startup that failed
            asyncio.run(self.server.serve(sockets=[self.socket]))

    def __enter__(self) -> Server:
        self.thread.start()
        give_up_at = time.monotonic() + 20
        while not self.server.started and self.thread.is_alive():
            assert time.monotonic() < give_up_at
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        self.socket.close()
        assert not self.thread.is_alive()
