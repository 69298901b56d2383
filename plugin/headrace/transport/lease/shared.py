"""Connections with several places: which leases are on which of them.

HTTP/2 and its like carry several answers over one connection at a time. `LeasePool.share` says how many; until then a
connection has one place, and nothing here is asked. One dict is the truth: each such connection in use, with the
tokens of the leases on it. So its length is a number of connections, as that of `_inuse` is, and a lease that is lost
is found by its token. Idle connections with several places are among those that stand apart (`_apart`). All functions
are pure but for what their names say; the pool's lock guards what they are given.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias, TypeVar
from weakref import ref

from headrace.transport.lease.place import Connection, Lease

C = TypeVar("C")

Shared: TypeAlias = dict[Connection[C], dict[ref[Lease[C]], str | None]]
"""Connection -> token of a lease on it -> where that was taken, if that is noted. No connection without a lease."""


def is_for(connection: Connection[C], owner: object | None, own_only: bool) -> bool:
    """Whether *owner* may use *connection*; of an *own_only* owner: whether it is its own."""
    if connection.owner is None:
        return not own_only
    return owner is not None and connection.owner() is owner


def find_free_place(
    shared: Shared[C],
    idle: Iterable[Connection[C]],
    *,
    now: float,
    max_uses: int,
    owner: object | None,
    own_only: bool,
) -> Connection[C] | None:
    """The connection that the next lease of *owner* is a place on; None: no place is free.

    Those in use come first, the one that is so for the longest time before the others: what is not needed becomes
    idle. Then *idle*, which is asked in its order. A connection in use that is over, or that ends, has no free place.
    """
    for connection, tokens in shared.items():
        if (
            len(tokens) < connection.capacity
            and connection.ends_as is None
            and connection.uses < max_uses
            and now < connection.expires_at
            and is_for(connection, owner, own_only)
        ):
            return connection
    for connection in idle:
        if connection.is_shared and connection.capacity > 0 and is_for(connection, owner, own_only):
            return connection
    return None


def connection_of(shared: Shared[C], token: ref[Lease[C]]) -> Connection[C] | None:
    """The connection that the lease with *token* is on."""
    for connection, tokens in shared.items():
        if token in tokens:
            return connection
    return None


def begin_to_drain(shared: Shared[C]) -> bool:
    """Lend no more places of the connection with the fewest leases, which closes with the last; False: none is left."""
    staying = [connection for connection in shared if connection.ends_as is None]
    if staying:
        min(staying, key=lambda connection: len(shared[connection])).ends_as = "surplus"
    return bool(staying)
