"""One round of heartbeats: a GET on each of several idle connections, all at once, by one thread."""

from __future__ import annotations

import selectors
from collections.abc import Callable, Sequence

from headrace.clock import monotonic
from headrace.policy.frozen import slotted
from headrace.transport.standstill import GRACE_S
from headrace.transport.stock.connection import GovernedHTTPConnection
from headrace.transport.stock.pool import is_between_answers

MOST_BYTES = 64 * 1024
_SHORTEST_S = 0.01
_LONGEST_WAIT_S = 3600.0  # epoll refuses to wait for longer than 24.8 days


@slotted
class Beat:
    """One idle connection, lent for the round.

    Attributes:
        target: Path and query to ask for.
        ends_at: When the answer must be there, monotonic seconds.
        answered: The result: a whole answer came in time, with any status, and
            the connection can be used further.
    """

    conn: GovernedHTTPConnection
    target: str
    headers: tuple[tuple[str, str], ...]
    ends_at: float
    answered: bool = False


def beat(round_: Sequence[Beat], *, on_answer: Callable[[Beat], object] = lambda _: None) -> None:
    """Ask on every connection of *round_*, then read the answers as they come. Blocks until the last `ends_at`.

    Mutates: sets `answered`. Never raises because of a peer.

    Args:
        on_answer: Called with each beat as soon as it has answered, without waiting for those that have not.
    """
    with selectors.DefaultSelector() as selector:
        for one in round_:
            if _send_beat(one) and one.conn.sock is not None:
                try:
                    selector.register(one.conn.sock, selectors.EVENT_READ, one)
                except (OSError, ValueError, KeyError):
                    pass  # closed meanwhile: a miss for this connection and for no other
        while selector.get_map():
            left_s = max(key.data.ends_at for key in selector.get_map().values()) - monotonic()
            # Looked at even when it is late: what has come is an answer.
            ready = selector.select(min(max(left_s, 0.0), _LONGEST_WAIT_S))
            if not ready and left_s <= 0:
                return
            for key, _ in ready:
                selector.unregister(key.fileobj)
                key.data.answered = _read(key.data)
                if key.data.answered:
                    on_answer(key.data)


def _send_beat(one: Beat) -> bool:
    conn = one.conn
    conn.timeout = max(_SHORTEST_S, one.ends_at - monotonic())
    try:
        conn.request("GET", one.target, headers=dict(one.headers), preload_content=False)
    except Exception:  # any error of a broken connection or its peer is a miss
        return False
    return True


def _read(one: Beat) -> bool:
    conn = one.conn
    conn.timeout = max(GRACE_S, one.ends_at - monotonic())
    try:
        response = conn.getresponse()
        body = response.read(MOST_BYTES + 1, decode_content=False)
    except Exception:
        return False
    return len(body) <= MOST_BYTES and is_between_answers(conn)
