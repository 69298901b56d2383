"""TLS sessions that are kept, so that the next handshake with the same server is a short one.

Reading a session costs as much as it saves under TLS 1.3: 120 to 250 µs. "Take the newest each time" gains nothing
there. So one is kept for each server and offered again and again, which RFC 8446 discourages (appendix C.4) only where
an observer is not to know that two connections are of the same client. A new one is read when there is none, when it
was refused, and at half of its life. Servers that take each ticket only once are found out, and get the newest.

What is decided here is pure: instants are given, and a session is any object.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from math import inf
from typing import Any, Final, TypeAlias

from headrace.policy.frozen import slotted

MOST_MISSES: Final = 3
"""Sessions in a row that were of no use, after which nothing more is read of that server.

Some servers never resume: those without tickets, and those whose tickets never work (nginx with neither cache nor
tickets, OpenSSL 3.0). There each read would be for nothing.
"""

CONSUMED: Final = 2
"""Sessions in a row that were taken once and not again, after which each is offered once. A single one says nothing:
the server may just have changed its key."""

Key: TypeAlias = tuple[str, int]
"""The name that the server is asked for, and its port."""


@slotted(eq=False)
class Kept:
    """A session that may be offered.

    Attributes:
        session: What `wrap_socket` takes.
        renew_at: From then on a newer one is read, monotonic seconds.
        ends_at: When it is over, monotonic seconds.
        expires_at: When the certificate of the server is over, Unix time. A resumed handshake does not look at it.
        uses: Handshakes that it made short.
    """

    session: Any
    renew_at: float
    ends_at: float
    expires_at: float
    uses: int = 0


@slotted
class Known:
    """What is known of one server.

    Attributes:
        kept: Its session, or None.
        misses: Sessions in a row that were of no use.
        consumed: Sessions in a row that were of use once.
        rests_until: Until then nothing is offered or read.
        once_until: Until then each session is offered once.
    """

    kept: Kept | None = None
    misses: int = 0
    consumed: int = 0
    rests_until: float = -inf
    once_until: float = -inf

    def offer(self, *, now: float, wall: float) -> Kept | None:
        """The session for the next handshake, or None. Mutates.

        Args:
            now: Monotonic seconds.
            wall: Unix time.
        """
        kept = self.kept
        if kept is None or now < self.rests_until:
            return None
        if now >= kept.ends_at or wall >= kept.expires_at:
            self.kept = None
            return None
        if now < self.once_until:
            self.kept = None
        return kept

    def settle(self, offered: Kept | None, *, resumed: bool, now: float, ttl_s: float) -> bool:
        """Whether a session is to be read of the connection whose handshake had *offered*. Mutates."""
        if offered is not None:
            self._learn(offered, resumed=resumed, now=now, ttl_s=ttl_s)
        if now < self.rests_until:
            return False
        kept = self.kept
        return kept is None or (resumed and kept is offered and now >= kept.renew_at)

    def _learn(self, offered: Kept, *, resumed: bool, now: float, ttl_s: float) -> None:
        if resumed:
            offered.uses += 1
            self.misses = 0
            if offered.uses > 1:
                self.consumed = 0
            return
        if self.kept is offered:
            self.kept = None
        elif now >= self.once_until:
            return  # others were offered it as well, and have told of it
        if offered.uses == 0:
            self.missed(now=now, ttl_s=ttl_s)
        elif offered.uses == 1:
            self.consumed += 1
            if self.consumed >= CONSUMED:
                self.consumed, self.once_until = 0, now + ttl_s
        else:
            self.consumed = 0

    def missed(self, *, now: float, ttl_s: float) -> None:
        """A session was of no use: it cannot be resumed, or was refused. Mutates."""
        self.misses += 1
        if self.misses >= MOST_MISSES:
            self.kept, self.misses, self.rests_until = None, 0, now + ttl_s

    def keep(self, session: Any, *, life_s: float, expires_at: float, now: float, wall: float) -> None:
        """Keep *session* in place of the one before, for *life_s*. Mutates."""
        if life_s > 0.0 and wall < expires_at:
            self.kept = Kept(session, now + life_s / 2, now + life_s, expires_at)

    def is_the_same(self, offered: Kept) -> None:
        """The server has not renewed *offered*: it is not read again. Mutates."""
        offered.renew_at = inf


class Sessions:
    """The sessions of one upstream under one TLS context. Thread-safe.

    One is never offered under another context, name or port: a resumed handshake checks neither the name nor the
    chain nor its dates.

    Attributes:
        size: Most servers of which something is kept.
        ttl_s: Longest life of a session, whatever the server says.
    """

    __slots__ = ("_known", "_lock", "size", "ttl_s")

    def __init__(self, *, size: int, ttl_s: float) -> None:
        self.size = size
        self.ttl_s = ttl_s
        self._lock = threading.Lock()
        self._known: OrderedDict[Key, Known] = OrderedDict()

    def offer(self, key: Key, *, now: float, wall: float) -> Kept | None:
        """The session to offer to the server of *key*, or None."""
        with self._lock:
            return self._of(key).offer(now=now, wall=wall)

    def settle(self, key: Key, offered: Kept | None, *, resumed: bool, now: float) -> bool:
        """Whether a session is to be read of the connection whose handshake had *offered*."""
        with self._lock:
            return self._of(key).settle(offered, resumed=resumed, now=now, ttl_s=self.ttl_s)

    def drop(self, key: Key, offered: Kept) -> None:
        """Offer *offered* no more: the handshake has failed."""
        with self._lock:
            known = self._of(key)
            if known.kept is offered:
                known.kept = None

    def is_wanted(self, key: Key, offered: Kept | None) -> bool:
        """Whether nobody has kept another session since the handshake that had *offered*."""
        with self._lock:
            return self._of(key).kept in (None, offered)

    def keep(
        self,
        key: Key,
        session: Any,
        offered: Kept | None,
        *,
        works: bool,
        hint_s: float,
        expires_at: float,
        now: float,
        wall: float,
    ) -> None:
        """Keep *session*, read of a connection whose handshake had *offered*.

        Args:
            works: It can be resumed at all.
            hint_s: What the server says of its life; 0: nothing.
            expires_at: When the certificate of the server is over, Unix time.
        """
        with self._lock:
            known = self._of(key)
            if not works:
                known.missed(now=now, ttl_s=self.ttl_s)
            elif offered is not None and session == offered.session:  # by its id
                known.is_the_same(offered)
            else:
                life_s = min(self.ttl_s, hint_s or inf)
                known.keep(session, life_s=life_s, expires_at=expires_at, now=now, wall=wall)

    def _of(self, key: Key) -> Known:
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = Known()
            while len(self._known) > self.size:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(key)
        return known
