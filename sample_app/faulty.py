"""A small HTTP service whose faults can be switched, and which counts what reaches it.

    GET  /anything            JSON: the service's name, the path, the header X-Rule it was sent
    POST /charges             JSON: the number of the charge; a key in Idempotency-Key is charged once
    PUT  /-/fault/slow        from now on: ok | slow | 503 | reset | drip; and once only: lost
    GET  /-/count             JSON: requests and connections that reached it (its own /-/ pages left out), charges

The fault that needs no switch: kill -9.
"""

from __future__ import annotations

import argparse
import json
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ("ok", "slow", "503", "reset", "drip", "lost")
SLOW_S = 1.5  # longer than the sample's timeouts.attempt
DRIP_S = 0.1  # between two bytes: no silence is long enough for a socket's timeout


class FaultyService(ThreadingHTTPServer):
    """Serves until the process is killed."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, name: str, port: int) -> None:
        super().__init__(("127.0.0.1", port), FaultyHandler)
        self.name = name
        self.fault = "ok"
        self.lock = threading.Lock()  # guards what follows
        self.requests = 0
        self.connections = 0
        self.charges: dict[str, int] = {}  # by key


class FaultyHandler(BaseHTTPRequestHandler):
    """One connection, kept alive."""

    protocol_version = "HTTP/1.1"
    server: FaultyService
    counts_as_connection = False

    def do_GET(self) -> None:
        if self.path == "/-/count":
            with self.server.lock:
                counts = {
                    "requests": self.server.requests,
                    "connections": self.server.connections,
                    "charges": len(self.server.charges),
                }
            self._answer(200, {**counts, "fault": self.server.fault})
            return
        with self.server.lock:
            self.server.requests += 1
            self.server.connections += not self.counts_as_connection
        self.counts_as_connection = True
        match self.server.fault:
            case "slow":
                time.sleep(SLOW_S)
            case "503":
                self._answer(503, {"error": f"{self.server.name} is unwell"})
                return
            case "reset":
                self._reset()
                return
            case "drip":
                self._drip()
                return
            case _:
                pass
        self._answer(
            200, {"service": self.server.name, "path": self.path, "rule": self.headers.get("X-Rule", "")}
        )

    def do_POST(self) -> None:
        if self.path != "/charges":
            self.do_GET()
            return
        key = self.headers.get("Idempotency-Key") or f"none, so a new one: {time.monotonic_ns()}"
        with self.server.lock:
            self.server.requests += 1
            number = self.server.charges.setdefault(key, len(self.server.charges) + 1)
        if self.server.fault == "lost":  # the work is done, and nobody hears of it
            self.server.fault = "ok"
            self._reset()
            return
        self._answer(201, {"charge": number})

    def do_PUT(self) -> None:
        fault = self.path.removeprefix("/-/fault/")
        if fault not in FAULTS:
            self._answer(404, {"error": f"no such fault; one of {', '.join(FAULTS)}"})
            return
        self.server.fault = fault
        self._answer(200, {"fault": fault})

    def finish(self) -> None:
        if self.counts_as_connection:
            with self.server.lock:
                self.server.connections -= 1
        try:
            super().finish()
        except OSError:
            pass  # reset on purpose

    def log_message(self, *_: object) -> None:
        """Quiet: the story does the talking."""

    def _reset(self) -> None:
        # Linger of 0 s: close() sends RST instead of FIN.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _drip(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "10000")
        self.end_headers()
        try:
            for _ in range(10000):
                self.wfile.write(b" ")
                time.sleep(DRIP_S)
        except OSError:
            self.close_connection = True  # the caller has had enough

    def _answer(self, status: int, body: dict[str, object]) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        content = json.dumps(body).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        try:
            self.wfile.write(content)
        except OSError:
            self.close_connection = True  # the caller did not wait


def serve(name: str) -> None:
    """Run the service called *name* as this process."""
    parser = argparse.ArgumentParser(description=f"The {name} service.")
    parser.add_argument("--port", type=int, required=True)
    FaultyService(name, parser.parse_args().port).serve_forever()
