"""The table: every row that is measured, and the bounds that the project has set itself. To add one, add it here.

The file is long because it is the one list. What a row is compared with comes before it. Rooms: `peers` and
`niquests` know nothing of headrace; `governed` has it installed for requests, `urllib3` for urllib3 as well; other
rooms end with their group.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import clients
import files
import parts
import reconnects
from clients import GET, POST, Act, Ask, Client, asking, crowd
from table import CALLS, Group, Lab, Row, Target

GROUPS = (
    Group(
        "sync",
        "GET and POST of 1 KiB in urllib3's terms",
        "One call, connection kept. Floor: the raw socket, with a limit. Peer: `PoolManager.request`.",
        most_s=55,
    ),
    Group(
        "requests",
        "GET of 1 KiB in requests' terms",
        "One call, connection kept. Floor: the raw socket. Peer: `Session.get`, or the stock `requests.get`.",
        most_s=40,
    ),
    Group(
        "bodies",
        "Bodies",
        "One call. Floor: the raw socket, which decompresses the gzip. Peer: `PoolManager.request`, or `Session.get`.",
        most_s=50,
    ),
    Group(
        "threads",
        "Many threads, one upstream",
        "One call of one of the threads. Floor: a raw socket for each. Peer: a `PoolManager` with as many connections.",
        block_s=0.1,
        quick_block_s=0.03,
        most_s=55,
    ),
    Group(
        "tls",
        "GET of 1 KiB over TLS",
        "One call, connection kept. Floor: the raw TLS socket. Peer: `PoolManager.request`, or `Session.get`. Below: a "
        "connection for each call, which nginx closes. Floor: the same of a raw TLS socket that resumes. Peer: "
        "`PoolManager.request` with one context for all.",
        most_s=50,
    ),
    Group(
        "pool",
        "Checkout and return",
        "One turn. Floor: a bare queue. Peer: urllib3's pool, blocking.",
        most_s=25,
    ),
    Group(
        "breaker",
        "A closed circuit",
        "One call, what is around it subtracted. Peer: circuitbreaker.",
        most_s=20,
    ),
    Group(
        "metrics",
        "Counting one call",
        "Two totals and three histograms. Floor: one addition under a lock. Peer: prometheus_client, children kept.",
        most_s=10,
    ),
    Group(
        "middleware",
        "A request in process",
        "One request, the application itself subtracted. Peer: an empty `BaseHTTPMiddleware` of Starlette.",
        most_s=15,
    ),
    Group(
        "reload",
        "Edit to force",
        "One edit of one rule, while a caller calls all the time on the same core. The clock's milliseconds, not CPU.",
        rounds=11,
        quick_rounds=1,
        most_s=45,
    ),
    Group(
        "config",
        "Import, and a file",
        "A fresh process; or a file per upstream of it. Floor: its YAML alone, with PyYAML's C loader.",
        rounds=5,
        quick_rounds=1,
        most_s=30,
    ),
    Group(
        "scale",
        "Many upstreams in one file",
        "One call, CPU of its thread; background threads have a row of their own. Floor: a socket. Peer: one upstream.",
        rounds=5,
        quick_rounds=1,
        most_s=35,
    ),
    Group(
        "memory",
        "Memory",
        "Resident memory, per upstream that nobody calls, of 1,000; and after an import. Peer: an adapter of requests.",
        rounds=5,
        quick_rounds=1,
        most_s=25,
    ),
)

KEPT_ROOMS = frozenset({"peers", "governed", "urllib3", "niquests"})
"""Their processes live on from group to group."""


_QUICK_SIZES = (1, 1000)
"""Upstreams of a file that --quick has time for."""


# The modules of headrace are imported where they are used: this file is read in environments that do not have it.


def ours(name: str) -> Client:
    """A client of `ours.py` by its name."""

    @contextmanager
    def client(lab: Lab, ask: Ask) -> Iterator[Act]:
        import ours as own

        with getattr(own, name)(lab, ask) as act:
            yield act

    return client


def installed(client: Client, by: str) -> Client:
    """*client* as it is, while a Headrace of `ours.py` governs its library."""

    @contextmanager
    def governed(lab: Lab, ask: Ask) -> Iterator[Act]:
        import ours as own

        lab.once(getattr(own, by))
        with client(lab, ask) as act:
            yield act

    return governed


def elsewhere(client: Client) -> Client:
    """*client*, asking the same nginx by a name that is not in the file."""

    @contextmanager
    def ungoverned(lab: Lab, ask: Ask) -> Iterator[Act]:
        with client(Lab(lab.http.replace("127.0.0.1", "localhost"), "", "", lab.folder), ask) as act:
            yield act

    return ungoverned


# --- calls ------------------------------------------------------------------------------------------------


def sync() -> Iterator[Row]:
    for method, ask in (("GET", GET), ("POST", POST)):
        floor, pools, rust = f"raw socket, {method}", f"PoolManager.request, {method}", f"pyreqwest, {method}"
        row = functools.partial(Row, group="sync", floor=floor)
        yield row(name=floor, room="peers", make=asking(clients.raw_socket, ask), floor=None, is_counted=True)
        yield row(name=pools, room="peers", make=asking(clients.pool_manager, ask), is_counted=True)
        yield row(
            name=rust, room="peers", make=asking(clients.pyreqwest, ask), needs=("pyreqwest",), peer=pools
        )
        yield row(
            name=f"headrace, urlopen, {method}",
            room="governed",
            make=asking(ours("urlopen"), ask),
            peer=pools,
            is_counted=True,
            targets=(Target(2.3, floor, 1.9), Target(0.9, rust, 0.75), Target(20, CALLS)),
        )
        yield row(
            name=f"headrace installed, PoolManager.request, {method}",
            room="urllib3",
            make=asking(installed(clients.pool_manager, "by_urllib3"), ask),
            peer=pools,
            is_counted=True,
            targets=(Target(0.45, pools),) if method == "GET" else (),
        )
        yield row(
            name=f"pycurl, {method}",
            room="peers",
            make=asking(clients.pycurl, ask),
            needs=("pycurl",),
            peer=pools,
        )
    row = functools.partial(
        Row, group="sync", floor="raw socket, GET", peer="PoolManager.request, GET", room="peers"
    )
    yield row(name="http.client, GET", make=asking(clients.http_client, GET), is_counted=True)
    yield row(name="httpx2, GET", make=asking(clients.httpx2, GET), needs=("httpx2",), is_counted=True)
    yield row(name="aiohttp, GET, one at a time", make=asking(clients.aiohttp, GET), needs=("aiohttp",))
    yield row(
        name="urllib3 + tenacity + pybreaker + prometheus, GET",
        make=asking(clients.glue_urllib3, GET),
        needs=("tenacity", "pybreaker"),
        is_counted=True,
    )


def by_requests() -> Iterator[Row]:
    floor, stock = "raw socket", "Session.get"
    row = functools.partial(Row, group="requests", floor=floor, peer=stock, is_counted=True)
    yield row(name=floor, room="peers", make=asking(clients.raw_socket, GET), floor=None, peer=None)
    yield row(name=stock, room="peers", make=asking(clients.session, GET), peer=None)
    yield row(
        name="headrace, upstream().get",
        room="governed",
        make=asking(ours("handle"), GET),
        targets=(Target(0.15, stock, 0.12), Target(45, CALLS)),
    )
    yield row(
        name="headrace installed, Session.get",
        room="governed",
        make=asking(installed(clients.session, "by_requests"), GET),
        targets=(Target(0.6, stock), Target(470, CALLS)),
    )
    yield row(name="headrace, session().get", room="governed", make=asking(ours("own_session"), GET))
    yield row(
        name="headrace installed, Session.get, host not in the file",
        room="governed",
        make=asking(installed(elsewhere(clients.session), "by_requests"), GET),
    )
    yield row(
        name="niquests, Session.get", room="niquests", make=asking(clients.niquests, GET), needs=("niquests",)
    )
    yield row(
        name="requests + tenacity + pybreaker + prometheus",
        room="peers",
        make=asking(clients.glue_requests, GET),
        needs=("tenacity", "pybreaker"),
    )
    yield row(name="requests.get, a connection a call", room="peers", make=asking(clients.requests_get, GET))
    yield row(
        name="headrace installed, requests.get",
        room="governed",
        make=asking(installed(clients.requests_get, "by_requests"), GET),
        peer="requests.get, a connection a call",
    )


def bodies() -> Iterator[Row]:
    for what, path, at_most in (
        ("gzip, 8 KiB of JSON", "/gzip", 0.45),
        ("chunked, 8 KiB", "/chunked", 0.45),
        ("100 KiB", "/100k", 0.5),
        ("10 MiB", "/10m", 1.0),
    ):
        ask = Ask(path)
        floor, pools, stock = (
            f"{name}, {what}" for name in ("raw socket", "PoolManager.request", "Session.get")
        )
        row = functools.partial(Row, group="bodies", floor=floor)
        yield row(name=floor, room="peers", make=asking(clients.raw_socket, ask), floor=None)
        yield row(name=pools, room="peers", make=asking(clients.pool_manager, ask))
        yield row(
            name=f"pyreqwest, {what}",
            room="peers",
            make=asking(clients.pyreqwest, ask),
            needs=("pyreqwest",),
            peer=pools,
        )
        yield row(
            name=f"headrace, urlopen, {what}",
            room="governed",
            make=asking(ours("urlopen"), ask),
            peer=pools,
            targets=(Target(at_most, pools),),
        )
        yield row(name=stock, room="peers", make=asking(clients.session, ask))
        yield row(
            name=f"headrace, upstream().get, {what}",
            room="governed",
            make=asking(ours("handle"), ask),
            peer=stock,
        )


def threads() -> Iterator[Row]:
    for number in (8, 32, 128):
        ask = Ask(connections=number)
        floor, pools = f"raw sockets, {number}", f"PoolManager(maxsize={number}, block=True)"
        row = functools.partial(Row, group="threads", floor=floor)
        yield row(name=floor, room="peers", make=crowd(clients.raw_socket, ask, is_shared=False), floor=None)
        yield row(name=pools, room="peers", make=crowd(clients.pool_manager, ask))
        yield row(
            name=f"pyreqwest, {number} threads",
            room="peers",
            make=crowd(clients.pyreqwest, ask),
            needs=("pyreqwest",),
            peer=pools,
        )
        yield row(
            name=f"headrace, urlopen, {number} threads",
            room="governed",
            make=crowd(ours("urlopen"), ask),
            peer=pools,
            targets=(Target(0.35, pools),) if number > 8 else (),
        )


def tls() -> Iterator[Row]:
    ask = Ask(tls=True)
    floor, pools, stock = "raw socket", "PoolManager.request", "Session.get"
    row = functools.partial(Row, group="tls", floor=floor)
    yield row(name=floor, room="peers", make=asking(clients.raw_socket, ask), floor=None)
    yield row(name=pools, room="peers", make=asking(clients.pool_manager, ask), is_counted=True)
    for name, client in (("pyreqwest", clients.pyreqwest), ("pycurl", clients.pycurl)):
        yield row(name=name, room="peers", make=asking(client, ask), needs=(name,), peer=pools)
    yield row(
        name="headrace, urlopen",
        room="governed",
        make=asking(ours("urlopen"), ask),
        peer=pools,
        is_counted=True,
    )
    yield row(name=stock, room="peers", make=asking(clients.session, ask), is_counted=True)
    yield row(
        name="headrace, upstream().get",
        room="governed",
        make=asking(ours("handle"), ask),
        peer=stock,
        is_counted=True,
    )
    yield from _reconnects()


def _reconnects() -> Iterator[Row]:
    """A connection for each call. Of RSA the clock's time alone: of a full handshake the server has the work."""
    for kind in reconnects.KINDS:
        is_ecdsa, at_most = kind.endswith("ECDSA"), 0.7 if "1.2" in kind else 0.85
        for way, what in ((reconnects.on_cpu, "CPU"), (reconnects.by_the_clock, "by the clock")):
            if what == "CPU" and not is_ecdsa:
                continue
            # A reading of the clock takes as long in a short look as in a long one.
            floor = f"raw socket, one session kept, {kind}, {what}"
            row = functools.partial(Row, group="tls", is_quick=what == "CPU", floor=floor)
            yield row(name=floor, room="peers", make=way(reconnects.raw_socket, kind), floor=None)
            theirs, default = f"PoolManager.request, {kind}, {what}", f"requests.get, {kind}, {what}"
            yield row(name=theirs, room="peers", make=way(reconnects.shared_context, kind))
            has_default = is_ecdsa and "1.3" in kind
            if has_default:
                yield row(name=default, room="peers", make=way(reconnects.requests_default, kind))
            yield row(
                name=f"headrace, full, {kind}, {what}",
                room="reconnects",
                make=way(reconnects.full, kind),
                peer=theirs,
            )
            yield row(
                name=f"headrace, resumed, {kind}, {what}",
                room="reconnects",
                make=way(reconnects.resumed, kind),
                peer=theirs,
                targets=(
                    *((Target(at_most, theirs),) if is_ecdsa else ()),
                    *((Target(0.1, default),) if has_default else ()),
                ),
            )
    yield Row(
        group="tls",
        name="headrace, tls.identities, added to a handshake",
        floor="raw socket, one session kept, TLS 1.2, ECDSA, CPU",
        room="reconnects",
        make=reconnects.identity,
        targets=(Target(20.0),),
    )


# --- parts ------------------------------------------------------------------------------------------------


def pool() -> Iterator[Row]:
    row = functools.partial(Row, group="pool", room="pool")
    floor, stock = "queue.LifoQueue alone", "urllib3's pool, block=True"
    yield row(name=floor, make=functools.partial(parts.checkout, side="queue"))
    yield row(name=stock, make=functools.partial(parts.checkout, side="urllib3"), floor=floor)
    yield row(
        name="headrace's", make=functools.partial(parts.checkout, side="lease"), floor=floor, peer=stock
    )
    for what, field, hold_s in (
        ("32 threads on 4 slots", "cpu_s", 0.0),
        ("32 threads on 4 slots, held 1 ms, p99", "p99_s", 0.001),
    ):
        crowded = functools.partial(parts.crowded, hold_s=hold_s, what=field)
        yield row(name=f"{stock}, {what}", make=functools.partial(crowded, side="urllib3"))
        yield row(
            name=f"headrace's, {what}", make=functools.partial(crowded, side="lease"), peer=f"{stock}, {what}"
        )


def breaker() -> Iterator[Row]:
    row = functools.partial(Row, group="breaker")
    yield row(name="two readings of the clock", room="breaker", make=parts.simply(parts.clock_alone))
    yield row(
        name="headrace, permit and record",
        room="breaker",
        make=parts.simply(parts.permit_and_record),
        minus="two readings of the clock",
        targets=(Target(0.4),),
    )
    bare = "a function that does nothing"
    yield row(name=bare, room="breaker", make=parts.simply(lambda: parts.nothing))
    for name in ("pybreaker", "circuitbreaker", "aiobreaker", "purgatory", "interlock-cb"):
        yield row(
            name=f"{name}, around it",
            room="peers",
            make=parts.simply(functools.partial(parts.other_breaker, name)),
            minus=bare,
            needs=("aiobreaker", "circuitbreaker", "interlock", "purgatory", "pybreaker"),
        )
    yield row(
        name="headrace, protect, around it",
        room="governed",
        make=parts.protected,
        minus=bare,
        peer="circuitbreaker, around it",
    )


def metrics() -> Iterator[Row]:
    row = functools.partial(Row, group="metrics", room="metrics", is_counted=True)
    floor, kept = "one addition under a lock", "prometheus_client, children kept"
    yield row(name=floor, make=parts.simply(parts.locked_addition), is_counted=False)
    for name, are_kept in ((kept, True), ("prometheus_client, labels() at each call", False)):
        make = functools.partial(parts.prometheus_call, are_children_kept=are_kept)
        yield row(name=name, make=parts.simply(make), floor=floor)
    yield row(
        name="headrace", make=parts.simply(parts.counted_call), floor=floor, peer=kept, targets=(Target(0.7),)
    )


def middleware() -> Iterator[Row]:
    row = functools.partial(Row, group="middleware", room="governed")
    theirs = "BaseHTTPMiddleware, added"
    for kind in ("ASGI", "WSGI"):
        bare, request = f"{kind} application alone", functools.partial(parts.inbound, kind=kind)
        yield row(name=bare, make=functools.partial(request, is_governed=False))
        if kind == "ASGI":
            yield row(name=theirs, make=parts.inbound_starlette, minus=bare)
        yield row(
            name=f"headrace.{kind}Middleware, added",
            make=functools.partial(request, is_governed=True),
            minus=bare,
            peer=theirs if kind == "ASGI" else None,
            targets=(Target(3.0),),
        )


def reload() -> Iterator[Row]:
    for upstreams in (1, 1000):
        room = f"reload-{upstreams}"
        row = functools.partial(Row, group="reload", room=room, unit="ms")
        bounds: dict[str, Any] = (
            {"edit_to_force_s": 300.0, "longest_call_s": 50.0} if upstreams == 1000 else {}
        )
        for what, method in (
            ("edit to the first call under it", "edit_to_force_s"),
            ("longest call meanwhile", "longest_call_s"),
            ("reload(), CPU of its thread", "reload_s"),
        ):
            yield row(
                name=f"{upstreams:,} upstream{'s' * (upstreams > 1)}: {what}",
                make=functools.partial(files.edited, upstreams=upstreams, what=method),
                targets=(Target(bounds[method]),) if method in bounds else (),
            )


def config() -> Iterator[Row]:
    row = functools.partial(Row, group="config", room="config", unit="ms")
    dependencies = "the modules of others that ASGIMiddleware imports"
    yield row(name=dependencies, make=functools.partial(files.imported, what="dependencies"))
    yield row(
        name="from headrace import ASGIMiddleware, above these",
        make=functools.partial(files.imported_above, title="ASGIMiddleware"),
        targets=(Target(100.0),),
    )
    yield row(
        name="and a file of one upstream loaded, above these",
        make=functools.partial(files.imported_above, title="and load"),
    )
    row = functools.partial(Row, group="config", unit="µs/upstream")
    for upstreams in files.SIZES:
        room, parsed = f"config-{upstreams}", f"{upstreams:,}: the YAML alone, C loader"
        yield row(
            name=parsed,
            room=room,
            make=functools.partial(files.file_of, upstreams=upstreams, how="parse"),
            is_quick=upstreams in _QUICK_SIZES,
        )
        for how, what in (("load", "load()"), ("build", "Headrace(file)")):
            yield row(
                name=f"{upstreams:,}: {what}",
                room=room,
                make=functools.partial(files.file_of, upstreams=upstreams, how=how),
                floor=parsed,
                targets=(Target(1.3, f"1,000: {what}"),) if upstreams == 10_000 else (),
                is_quick=upstreams in _QUICK_SIZES,
            )


def scale() -> Iterator[Row]:
    first = "urlopen, 1 upstream"
    yield Row(group="scale", name="raw socket", room="peers", make=asking(clients.raw_socket, GET))
    for upstreams in files.SIZES:
        room = f"scale-{upstreams}"
        name = f"urlopen, {upstreams:,} upstream{'s' * (upstreams > 1)}"
        yield Row(
            group="scale",
            name=name,
            room=room,
            make=functools.partial(files.call_among, upstreams=upstreams),
            floor="raw socket",
            peer=None if name == first else first,
            is_quick=upstreams in _QUICK_SIZES,
        )
        if upstreams >= 1000:
            reading = functools.partial(files.reading_among, upstreams=upstreams)
            row = functools.partial(Row, group="scale", room=room)
            for what, words, unit in (
                ("status", "status()", "µs/upstream"),
                ("scrape", "a scrape", "µs/upstream"),
                ("idle", "a core, while nothing is asked", "%"),
            ):
                if what == "scrape" and upstreams > 1000:
                    continue  # ten seconds each
                yield row(
                    name=f"{upstreams:,} upstreams: {words}",
                    make=functools.partial(reading, what=what),
                    unit=unit,
                    is_quick=upstreams in _QUICK_SIZES,
                )


def memory() -> Iterator[Row]:
    row = functools.partial(Row, group="memory", room="memory", unit="KiB")
    kinds: tuple[tuple[str, str, str | None], ...] = (
        ("urllib3, a pool of a PoolManager", "urllib3", None),
        ("requests, an adapter of a Session", "requests", None),
        ("headrace, an upstream", "headrace", "requests, an adapter of a Session"),
    )
    for name, library, peer in kinds:
        yield row(name=name, make=functools.partial(files.bytes_of, library=library), peer=peer)
    row = functools.partial(Row, group="memory", room="memory", unit="MiB")
    for name, what, less in (
        ("a fresh interpreter", "nothing", None),
        (
            "the modules of others that ASGIMiddleware imports, above it",
            "dependencies",
            "a fresh interpreter",
        ),
        ("from headrace import ASGIMiddleware, above it", "ours", "a fresh interpreter"),
    ):
        yield row(name=name, make=functools.partial(files.imported, what=what, is_weighed=True), minus=less)


_TABLE = (
    sync,
    by_requests,
    bodies,
    threads,
    tls,
    pool,
    breaker,
    metrics,
    middleware,
    reload,
    config,
    scale,
    memory,
)
ROWS: dict[str, Row] = {row.key: row for part in _TABLE for row in part()}


def rows(*, is_quick: bool) -> list[Row]:
    """All of them, or those of --quick."""
    return [row for row in ROWS.values() if row.is_quick or not is_quick]
