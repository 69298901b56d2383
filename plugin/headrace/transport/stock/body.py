"""Reading a body in pieces: between two pieces it is checked whether there is time, and room, for more.

A coded body (gzip and the like) may be a thousand times as large as what comes over the wire. urllib3's `read()`
decodes all of it in one go, and no shutdown of a socket ends that (failures.md 70). Other bodies are read whole
where nothing limits them: there, the wire takes the time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from urllib3 import response as urllib3_response
from urllib3.exceptions import ProtocolError
from urllib3.response import BaseHTTPResponse

from headrace.transport.attempt import Attempt

PIECE_BYTES: Final = 1024 * 1024
"""Decoded bytes between two checks: 2 to 13 ms of work. A megabyte of gzip costs 6 % more than in one go."""


class BodyTooLarge(Exception):
    """A body is larger than `pool.max_response_body` allows.

    Attributes:
        max_bytes: The limit.
    """

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"more than {max_bytes} bytes")
        self.max_bytes = max_bytes


def piece_bytes(max_bytes: int | None) -> int:
    """How much to read at a time: never much more than *max_bytes*."""
    return PIECE_BYTES if max_bytes is None else min(PIECE_BYTES, max_bytes + 1)


def is_read_whole(answer: BaseHTTPResponse, attempt: Attempt) -> bool:
    """Whether the body of *answer* may be read in one go.

    Raises:
        BodyTooLarge: Its head says that it is larger than the limit.
    """
    coding = answer.headers.get("content-encoding")
    max_bytes = attempt.max_body_bytes
    if max_bytes is None:
        return coding is None or coding in _IN_ONE_GO
    length = answer.length_remaining
    if length is not None and coding is None and length > max_bytes:
        raise BodyTooLarge(max_bytes)
    return False


def joined(pieces: Iterable[bytes], attempt: Attempt) -> bytes:
    """*pieces* as one body. Blocks.

    Raises:
        BodyTooLarge: They are larger than the limit of the call.
        ProtocolError: The time of *attempt* is up.
        HTTPError, requests.RequestException: The pieces raise these.
    """
    max_bytes, taken, n_taken = attempt.max_body_bytes, [], 0
    for piece in pieces:
        if attempt.cut:
            raise ProtocolError("cut off while the body was decoded")
        n_taken += len(piece)
        if max_bytes is not None and n_taken > max_bytes:
            raise BodyTooLarge(max_bytes)
        taken.append(piece)
    return b"".join(taken)


def body_of(answer: BaseHTTPResponse, attempt: Attempt, *, decode: bool) -> bytes:
    """The body of *answer* to its end, decoded or as it came. Blocks.

    Raises:
        BodyTooLarge, HTTPError: As `joined`.
    """
    if (not decode and attempt.max_body_bytes is None) or is_read_whole(answer, attempt):
        return answer.read(decode_content=decode)
    size = piece_bytes(attempt.max_body_bytes)
    return joined(iter(lambda: answer.read(size, decode_content=decode), b""), attempt)


def _codings_in_one_go(brotli: Any) -> frozenset[str]:
    """The codings that urllib3 decodes in one go, with a warning, when it is asked for a piece: an old brotli's."""
    try:
        if brotli is not None:
            brotli.Decompressor().process(b"", output_buffer_limit=1)
    except TypeError:
        return frozenset({"br"})
    except Exception:  # brotlicffi has the limit, under another name
        pass
    return frozenset()


_IN_ONE_GO = _codings_in_one_go(getattr(urllib3_response, "brotli", None))
