"""Where the calls of one library lead: the routes published for it, and the hosts that no route names.

Calls read `routes`, which is one reference, without a lock. `adapters.install` replaces it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from headrace.forks import current_pid, pid_page
from headrace.policy.plan import InstallPlan
from headrace.policy.printable import printable
from headrace.policy.routes import RouteTable
from headrace.runtime import process
from headrace.runtime.inbound import inbound_var
from headrace.runtime.snapshot import Snapshot
from headrace.runtime.upstream import Upstream

_MOST_HOSTS = 1000
_LONGEST_HOST = 255  # octets of a name in DNS, RFC 1035 §2.3.4

_unknown: dict[str, int] = {}
_unknown_lock = threading.Lock()


class Routing:
    """The routes of one library.

    Args:
        wants: Whether a configuration governs that library.

    Attributes:
        routes: All that is named by the published configurations that want the library.
    """

    __slots__ = ("_wants", "routes")

    def __init__(self, wants: Callable[[InstallPlan], bool]) -> None:
        self._wants = wants
        self.routes: RouteTable[Upstream] = RouteTable(())

    def wanted_by(self, snapshot: Snapshot) -> bool:
        """Whether the configuration of *snapshot* governs this library."""
        return self._wants(snapshot.configuration.install)

    def find(self, url: str) -> Upstream | None:
        """The upstream of *url*, by the snapshot that the inbound request began with, else by the one in force."""
        if (pid_page[0] or current_pid()) != process.pid:
            process.renew()
        inbound = inbound_var.get()
        if (
            inbound is not None
            and not inbound.is_over
            and self._wants(inbound.snapshot.configuration.install)
        ):
            bound = inbound.snapshot.routes.match_url(url)
            # A request that has outlived `reload.drain` finds its pool stopped. It goes on with what is in force.
            if bound is not None and not bound[1].endpoint.pool.leases.stopped:
                return bound[1]
        found = self.routes.match_url(url)
        return None if found is None else found[1]

    def of_origin(self, scheme: str, host: str, port: int) -> Upstream | None:
        """An upstream of this origin, that of its root if there is one; *host* lower-case. Used for counting only."""
        inbound = inbound_var.get()
        if (
            inbound is not None
            and not inbound.is_over
            and self._wants(inbound.snapshot.configuration.install)
        ):
            found = inbound.snapshot.routes.of_origin(scheme, host, port)
            if found is not None:
                return found
        return self.routes.of_origin(scheme, host, port)

    def names_origin(self, scheme: str, host: str, port: int) -> bool:
        """Whether any URL of this origin may belong to an upstream; *host* lower-case."""
        if self.routes.names_origin(scheme, host, port):
            return True
        inbound = inbound_var.get()
        return (
            inbound is not None
            and not inbound.is_over
            and self._wants(inbound.snapshot.configuration.install)
            and inbound.snapshot.routes.names_origin(scheme, host, port)
        )


def count_unknown(url: str) -> None:
    """Count a call to a host, or a path, that no file names. Thread-safe."""
    host = url.split("/", 3)[2].rpartition("@")[2] if url.count("/") >= 2 else url
    host = printable(host[:_LONGEST_HOST])
    with _unknown_lock:
        if host in _unknown or len(_unknown) < _MOST_HOSTS:
            _unknown[host] = _unknown.get(host, 0) + 1


def forget_unknown() -> None:
    """Start counting unknown hosts anew. Thread-safe."""
    with _unknown_lock:
        _unknown.clear()


def busiest_unknown_hosts(most: int = 20) -> list[tuple[str, int]]:
    """Hosts that no file names, with the calls that passed through to them, busiest first."""
    with _unknown_lock:
        rows = list(_unknown.items())
    return sorted(rows, key=lambda row: -row[1])[:most]


def forget_inherited() -> None:
    """In a forked child: the thread that held the lock does not exist here."""
    global _unknown_lock
    _unknown_lock = threading.Lock()
