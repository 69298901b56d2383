"""urllib3's response, subclassed: it reports when it is dropped, breaks off or grows too large."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from urllib3.exceptions import HTTPError
from urllib3.response import HTTPResponse

from headrace.policy.outcome import Fault
from headrace.transport.stock.body import BodyTooLarge, piece_bytes
from headrace.transport.stock.draining import drained
from headrace.transport.stock.faults import callers_own, fault_of
from headrace.transport.stock.framing import next_chunk_bytes
from headrace.transport.stock.garbage import is_garbage, told_as_broken

if TYPE_CHECKING:
    from headrace.transport.lease.pool import CloseReason, Lease


class GovernedResponse(HTTPResponse):
    """urllib3's response, which tells its connection when it was dropped rather than closed."""

    def close(self) -> None:
        """Close the body and the connection, read or not."""
        # io's finalizer sets this on an object that it is about to close (iobase_finalize in CPython's iobase.c).
        conn: Any = self._connection
        if "_finalizing" in self.__dict__ and hasattr(conn, "ends_as"):
            conn.ends_as = "leaked"
        super().close()

    def _update_chunk_length(self) -> None:
        if self.chunk_left is None:
            self.chunk_left = next_chunk_bytes(self)

    def drain_conn(self) -> None:
        """Read this answer if it is small, else close it: stock's loop drops it for another try or a redirect.

        Stock reads it to its end, however long it is.
        """
        if drained(self, decode=False) is None:
            self.close()


class StreamedResponse(GovernedResponse):
    """The same, where the caller reads the body.

    Attributes:
        lease: The lease of the connection that the body is read over, also after the connection was closed during a
            read.
        let_go: Lets it outlive the inbound request that it was opened in; None: it ends with no request.
        on_break: Called once, in the reading thread, with the error that a read ends with, its fault, whether a
            limit of the socket was hit, and the reason of the close if we shut the connection.
        max_bytes: Most bytes that the body may have, decoded where the reader has it decoded; None: no limit.
        on_excess: Makes the error that the reader gets for a body of more than *max_bytes*.
    """

    lease: Lease[Any] | None = None
    let_go: Callable[[], object] | None = None
    on_break: Callable[[Exception, Fault, bool, CloseReason | None], None] | None = None
    max_bytes: int | None = None
    on_excess: Callable[[], Exception] | None = None

    def drain_conn(self) -> None:
        """The same; how the drain ends says nothing about the upstream."""
        self.on_break = None
        super().drain_conn()

    def stream(
        self, amt: int | None = 2**16, decode_content: bool | None = None
    ) -> Generator[bytes, None, None]:
        """The body in pieces, as in urllib3. Blocks."""
        yield from super().stream(amt, decode_content)
        # Stock takes a body for whole if its connection was closed during the read.
        if self.lease is not None and self.lease.aborted is not None:
            with self._error_catcher():
                pass

    @contextmanager
    def _error_catcher(self) -> Iterator[None]:
        # The one place where urllib3 gives errors of the body their class.
        lease = self.lease
        try:
            with super()._error_catcher():
                if lease is not None and lease.aborted is not None:
                    raise _broken_off(lease)
                try:
                    yield
                except Exception as error:
                    # If its file is closed meanwhile, http.client may raise anything.
                    if lease is None or lease.aborted is None:
                        if is_garbage(error):
                            raise told_as_broken(error) from error
                        raise
                    raise _broken_off(lease) from error
                # A body that ends with its connection looks whole when we shut the connection.
                if lease is not None and lease.aborted is not None:
                    raise _broken_off(lease)
        except HTTPError as error:
            own = callers_own(error)
            if own is not None:
                raise own  # noqa: B904 - urllib3's error says nothing about it
            tell, self.on_break = self.on_break, None
            if tell is not None:
                tell(error, *fault_of(error, "sent"), None if lease is None else lease.aborted)
            raise


class LimitedResponse(StreamedResponse):
    """The same, with a limit on the size of the body, however it is read."""

    max_bytes: int
    _n_taken = 0

    def read(
        self, amt: int | None = None, decode_content: bool | None = None, cache_content: bool = False
    ) -> bytes:
        """As in urllib3; a whole body is read in pieces."""
        if amt is not None and amt >= 0:
            return self._counted(super().read(amt, decode_content, cache_content))
        size, pieces = piece_bytes(self.max_bytes), []
        while piece := super().read(size, decode_content):
            pieces.append(self._counted(piece))
        whole = b"".join(pieces)
        if cache_content:
            self._body = whole
        return whole

    def read1(self, amt: int | None = None, decode_content: bool | None = None) -> bytes:
        """As in urllib3."""
        if amt is None or amt < 0:
            amt = piece_bytes(self.max_bytes)
        return self._counted(super().read1(amt, decode_content))

    def read_chunked(self, amt: int | None = None, decode_content: bool | None = None) -> Iterator[bytes]:  # type: ignore[override]
        """As in urllib3; a chunk that is too long for one piece comes in several."""
        for piece in super().read_chunked(amt or piece_bytes(self.max_bytes), decode_content):
            yield self._counted(piece)

    def _counted(self, piece: bytes) -> bytes:
        self._n_taken += len(piece or b"")
        if self._n_taken <= self.max_bytes:
            return piece
        self.on_break = None  # nothing broke
        error = BodyTooLarge(self.max_bytes) if self.on_excess is None else self.on_excess()
        self.close()
        raise error


_ABANDONED = (
    "the inbound request that this answer was opened in has ended, and so did the answer; "
    "headrace.detach(answer) has one outlive its request"
)


def _broken_off(lease: Lease[Any]) -> ConnectionAbortedError:
    return ConnectionAbortedError(
        _ABANDONED if lease.aborted == "abandoned" else "the call was broken off during the body"
    )
