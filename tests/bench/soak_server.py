"""An upstream for the soak, in a process of its own: counts first lines, and fails as often as it is told.

    python soak_server.py FAULTS_PER_THOUSAND

Prints its port. `GET /count` answers the number of first lines so far (not counting
itself); anything else gets 1 KiB, or by turns a 503, a reset, or a truncated body.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
import sys

BODY = b"x" * 1024
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 1024\r\n\r\n" + BODY
UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy"
TRUNCATED = b"HTTP/1.1 200 OK\r\nContent-Length: 1024\r\n\r\n" + BODY[:100]


class Upstream(asyncio.Protocol):
    """One connection."""

    served = 0
    faults = itertools.cycle(("unavailable", "reset", "truncated"))
    per_thousand = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        """Heads only: the soak sends GETs."""
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
            self.answer(head)

    def answer(self, head: bytes) -> None:
        """One request."""
        cls = Upstream
        if head.startswith(b"GET /count "):
            count = b"%d" % cls.served
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(count), count))
            return
        cls.served += 1
        if not (cls.per_thousand and cls.served % 1000 < cls.per_thousand * 10 and cls.served % 10 == 0):
            self.transport.write(OK)
            return
        fault = next(cls.faults)
        if fault == "unavailable":
            self.transport.write(UNAVAILABLE)
        elif fault == "reset":
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        else:
            self.transport.write(TRUNCATED)
            self.transport.close()


async def main() -> None:
    """Serve until killed."""
    Upstream.per_thousand = int(sys.argv[1])
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
