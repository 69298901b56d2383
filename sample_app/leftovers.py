"""What a process still has once headrace is closed: the story reads this after a shutdown.

Reports go into the directory $SAMPLE_REPORTS; without it nothing is written.
"""

from __future__ import annotations

import atexit
import json
import os
import threading
from pathlib import Path
from typing import Any


def report_at_exit() -> None:
    """For WSGI: at exit.

    Registered when the application is imported, so it runs after headrace's own
    atexit handler, which was registered later, at the first request.
    """
    atexit.register(_report)


class ReportsAfterShutdown:
    """For ASGI: outside of headrace's middleware, when all of the lifespan's shutdown is over.

    Not at exit: uvicorn ends by raising the signal it got, and SIGTERM runs no atexit handlers.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return

        async def send_and_report(message: Any) -> None:
            if message["type"] == "lifespan.shutdown.complete":
                _report()
            await send(message)

        await self.app(scope, receive, send_and_report)


def _report() -> None:
    directory = os.environ.get("SAMPLE_REPORTS")
    if directory:
        threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("headrace")]
        Path(directory, f"{os.getpid()}.json").write_text(json.dumps({"threads": threads}))
