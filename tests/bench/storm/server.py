"""The upstream of the storm, in a process of its own: healthy, failing whole, healthy again, as it is told.

Prints its port. The first segment of a path says which side is calling. `GET /!fail`
and `GET /!heal` switch; `GET /!count` answers, as JSON, the requests so far by side,
those while failing apart: {"urllib3": [healthy, failing]}.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from typing import ClassVar

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy"


class Upstream(asyncio.Protocol):
    """One connection."""

    failing = False
    counts: ClassVar[defaultdict[str, list[int]]] = defaultdict(lambda: [0, 0])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        """Heads only: the storm sends GETs."""
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
            side = head.split(b" ", 2)[1].split(b"/")[1].decode()
            self.transport.write(self.control(side) if side.startswith("!") else self.answer(side))

    def answer(self, side: str) -> bytes:
        """One request of *side*."""
        Upstream.counts[side][Upstream.failing] += 1
        return UNAVAILABLE if Upstream.failing else OK

    def control(self, word: str) -> bytes:
        """One request of the bench itself."""
        if word != "!count":
            Upstream.failing = word == "!fail"
        body = json.dumps(Upstream.counts).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


async def main() -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
