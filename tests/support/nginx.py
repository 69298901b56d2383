"""A real nginx on ports of its own, with a configuration of the test's own.

    with Nginx(folder, program, "location / { return 200 ok; }") as nginx:
        requests.get(nginx.url)
        nginx.reload()
        nginx.wait_for(lambda: len(nginx.lines) == 1)

It runs in the foreground as a child of the tests: a master and one worker. The
listening socket is made here and inherited (the way nginx hands its own over at an
upgrade), so that no port is guessed.
"""

from __future__ import annotations

import getpass
import os
import re
import signal
import socket
import subprocess
import textwrap
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from support.waiting import wait_until

_CONFIGURATION = """\
daemon off;
{user}
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log notice;
events {{ worker_connections {connections}; }}
http {{
    log_format seen '$connection $connection_requests $request_method $request_uri $status '
                    '$ssl_client_serial $ssl_session_reused';
    access_log {folder}/access.log seen;
    default_type text/plain;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    scgi_temp_path {folder}/scgi;
    uwsgi_temp_path {folder}/uwsgi;
{http}
    server {{
        listen 127.0.0.1:{port}{ssl};
{tls}
        location = /nginx-status {{ stub_status; access_log off; }}
{server}
    }}
}}
"""

_TLS = """\
ssl_certificate {folder}/chain.pem;
ssl_certificate_key {folder}/key.pem;
"""

TLS = "ssl_protocols TLSv1.3;\nssl_session_tickets on;\n"
"""Directives about TLS, where a test gives no others."""


@dataclass(frozen=True, slots=True)
class Line:
    """One request as nginx logged it.

    Attributes:
        connection: Serial number of the connection; unique for the life of the server.
        nth: Number of the request on its connection, from 1.
        client: Serial of the client certificate, in hex; `-`: there was none.
        resumed: The connection went on with a TLS session.
    """

    connection: int
    nth: int
    method: str
    target: str
    status: int
    client: str
    resumed: bool


class Nginx:
    """A running nginx on 127.0.0.1. Starts when it is made; close it, or use `with`.

    Args:
        folder: An empty folder for configuration, logs and temporary files.
        program: Path of the program.
        server: Directives of the one `server` block.
        http: Directives beside it (`limit_conn_zone …`).
        ca: trustme.CA: TLS, with a certificate of it for 127.0.0.1 and localhost.
        tls: Which TLS; `{folder}` is that of the server.
        connections: How many it holds; beyond that it closes idle ones.
    """

    host = "127.0.0.1"

    def __init__(
        self,
        folder: Path,
        program: str,
        server: str,
        *,
        http: str = "",
        ca: Any = None,
        tls: str = TLS,
        connections: int = 512,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.tls = ca is not None
        self.port = self._marks = 0
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._server, self._http, self._connections = server, http, connections
        self._tls = _TLS + tls
        if ca is not None:
            issued = ca.issue_cert("127.0.0.1", "localhost")
            issued.private_key_pem.write_to_path(str(folder / "key.pem"))
            (folder / "chain.pem").write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        self.start()

    @property
    def url(self) -> str:
        """`http://127.0.0.1:port`, https with TLS; no slash at the end."""
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"

    @property
    def lines(self) -> list[Line]:
        """The requests logged so far. A line is written after its answer has left: use `wait_for`."""
        found = []
        for text in (self.folder / "access.log").read_text().splitlines(keepends=True):
            if text.endswith("\n"):
                connection, nth, method, target, status, client, reused = text.split()
                line = Line(int(connection), int(nth), method, target, int(status), client, reused == "r")
                found.append(line)
        return found

    def settled(self) -> list[Line]:
        """The requests of which the answer has left by now, all logged. Blocks; with TLS only.

        The one worker logs in the order in which it answers. So it is sent one that is no TLS, which it refuses: where
        that is logged, all before it are.
        """
        self._marks += 1
        target = f"/mark/{self._marks}"
        with socket.create_connection((self.host, self.port), timeout=30) as sock:
            sock.sendall(f"GET {target} HTTP/1.0\r\n\r\n".encode())
            while sock.recv(4096):
                pass
        self.wait_for(lambda: any(line.target == target for line in reversed(self.lines)))
        return [line for line in self.lines if not line.target.startswith("/mark/")]

    @property
    def open_connections(self) -> int:
        """Connections that its side has not closed, by the system's own list (proc(5))."""
        rows = [row.split()[1:4] for row in Path("/proc/net/tcp").read_text().splitlines()]
        return sum(local.endswith(f":{self.port:04X}") and state == "01" for local, _, state in rows)

    @property
    def accepted(self) -> int:
        """Connections accepted since it was started, over reloads, without those of this question. Not with TLS."""
        with urllib.request.urlopen(f"{self.url}/nginx-status", timeout=30) as answer:
            counts = re.search(r"(\d+) (\d+) (\d+)", answer.read().decode())
        assert counts is not None
        self._asked += 1
        return int(counts[1]) - self._asked

    def wait_for(self, is_true: Callable[[], object], *, timeout_s: float = 30.0) -> None:
        """Return once *is_true()* holds. Blocks."""
        wait_until(is_true, timeout_s=timeout_s, what=f"what was expected of nginx ({self.errors[-500:]!r})")

    @property
    def errors(self) -> str:
        """The error log."""
        log = self.folder / "error.log"
        return log.read_text() if log.exists() else ""

    def start(self) -> None:
        """Run it, again on the same port after `stop()`. Blocks until it serves."""
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        with listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self.host, self.port))
            listener.listen(511)
            listener.set_inheritable(True)
            self.port = listener.getsockname()[1]
            self._configure()
            self._asked = 0
            self._process = subprocess.Popen(
                [self._program, "-e", f"{self.folder}/error.log", "-c", f"{self.folder}/nginx.conf"],
                env={**os.environ, "NGINX": f"{listener.fileno()};"},
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            self.wait_for(lambda: self._workers() or self._process.poll() is not None)  # type: ignore[union-attr]
        assert self._process.poll() is None, self.errors

    def reload(self) -> None:
        """As `nginx -s reload`. Blocks until the old worker, which closes its idle connections, has ended."""
        assert self._process is not None
        old = self._workers()
        self._process.send_signal(signal.SIGHUP)
        self.wait_for(lambda: (new := self._workers()) and not new & old)

    def stop(self) -> None:
        """Orderly (SIGQUIT): requests under way are answered, idle connections closed. Blocks."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(60)

    def close(self) -> None:
        """End it at once. Idempotent."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()  # to the master: it ends its worker, too
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _configure(self) -> None:
        text = _CONFIGURATION.format(
            # Only root may choose, and its worker would otherwise be nobody, who cannot enter the folder.
            user=f"user {getpass.getuser()};" if os.geteuid() == 0 else "",
            connections=self._connections,
            folder=self.folder,
            http=textwrap.indent(self._http, " " * 4),
            port=self.port,
            ssl=" ssl" if self.tls else "",
            tls=textwrap.indent(self._tls.format(folder=self.folder) if self.tls else "", " " * 8),
            server=textwrap.indent(self._server, " " * 8),
        )
        (self.folder / "nginx.conf").write_text(text)

    def _workers(self) -> set[int]:
        """Process ids of the workers now; the master makes one once it has its listening socket."""
        assert self._process is not None
        pid = self._process.pid
        try:
            return {int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
        except OSError:
            return set()
