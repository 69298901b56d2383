"""Which TLS session is offered, and when another one is read: decided without sockets, on a clock of the test's own."""

from __future__ import annotations

import threading
from math import inf

import pytest

from headrace.transport.dial.sessions import CONSUMED, MOST_MISSES, Kept, Key, Sessions

KEY = ("billing.internal", 443)
TTL_S = 1000.0


class Server:
    """What a client that keeps sessions goes through with one server.

    Attributes:
        reads: How often a session was read.
    """

    def __init__(self, sessions: Sessions | None = None, key: Key = KEY) -> None:
        self.sessions = sessions or Sessions(size=4, ttl_s=TTL_S)
        self.key = key
        self.now = 0.0
        self.wall = 1e9
        self.reads = 0
        self.hint_s = 0.0
        self.expires_at = inf
        self.works = True
        self.new = 0

    def offer(self) -> Kept | None:
        return self.sessions.offer(self.key, now=self.now, wall=self.wall)

    def settle(self, offered: Kept | None, *, resumed: bool, session: object = None) -> bool:
        """Whether a session was read."""
        if not self.sessions.settle(self.key, offered, resumed=resumed, now=self.now):
            return False
        self.reads += 1
        self.new += 1
        self.sessions.keep(
            self.key,
            session or f"session {self.new}",
            offered,
            works=self.works,
            hint_s=self.hint_s,
            expires_at=self.expires_at,
            now=self.now,
            wall=self.wall,
        )
        return True

    def connect(self, *, resumes: bool = True) -> str:
        """What one connection was: full or resumed, and whether a session was read of it."""
        offered = self.offer()
        resumed = offered is not None and resumes
        read = self.settle(offered, resumed=resumed)
        return ("resumed" if resumed else "full") + (", read" if read else "")


@pytest.fixture
def server() -> Server:
    return Server()


def test_one_session_is_read_and_offered_again_and_again(server: Server) -> None:
    assert [server.connect() for _ in range(5)] == ["full, read", *["resumed"] * 4]


def test_it_is_renewed_at_half_of_its_life_and_the_new_one_lives_as_long(server: Server) -> None:
    server.connect()
    server.now = TTL_S / 2 - 1
    assert server.connect() == "resumed"
    server.now = TTL_S / 2
    assert [server.connect() for _ in range(3)] == ["resumed, read", "resumed", "resumed"]
    server.now = TTL_S + TTL_S / 2 - 1
    assert server.connect() == "resumed, read"


def test_it_ends_with_its_ttl(server: Server) -> None:
    server.connect()
    server.now = TTL_S
    assert server.connect() == "full, read"


@pytest.mark.parametrize(("hint_s", "life_s"), [(600.0, 600.0), (2 * TTL_S, TTL_S), (0.0, TTL_S)])
def test_the_server_may_shorten_its_life_and_not_prolong_it(
    server: Server, hint_s: float, life_s: float
) -> None:
    server.hint_s = hint_s
    server.connect()
    kept = server.offer()
    assert kept is not None
    assert (kept.renew_at, kept.ends_at) == (life_s / 2, life_s)
    server.now = life_s
    assert server.connect() == "full, read"


def test_it_ends_with_the_certificate_of_the_server_whatever_the_monotonic_clock_says(server: Server) -> None:
    server.expires_at = server.wall + 100
    server.connect()
    server.wall += 99
    assert server.connect() == "resumed"
    server.wall += 1  # the machine slept: the other clock did not move
    assert server.offer() is None
    assert server.connect() == "full, read"
    assert server.offer() is None  # one that is over is not kept


def test_one_that_was_refused_is_replaced_by_that_of_the_same_connection(server: Server) -> None:
    server.connect()
    for _ in range(3):
        server.connect()
    assert server.connect(resumes=False) == "full, read"  # the server has changed its key
    assert [server.connect() for _ in range(3)] == ["resumed"] * 3


def test_a_server_that_changes_its_key_now_and_then_is_not_taken_for_one_that_never_resumes(
    server: Server,
) -> None:
    for _ in range(3 * MOST_MISSES):
        assert server.connect(resumes=False) == "full, read"
        assert [server.connect() for _ in range(3)] == ["resumed"] * 3


def test_a_server_that_never_resumes_is_left_alone_and_tried_again_after_the_ttl(server: Server) -> None:
    ends = [server.connect(resumes=False) for _ in range(100)]
    assert ends == [*["full, read"] * MOST_MISSES, *["full"] * (100 - MOST_MISSES)]
    server.now = TTL_S
    assert [server.connect() for _ in range(2)] == ["full, read", "resumed"]


def test_a_server_without_tickets_is_left_alone(server: Server) -> None:
    server.works = False
    assert [server.connect() for _ in range(10)] == [*["full, read"] * MOST_MISSES, *["full"] * 7]


def test_a_server_that_takes_each_ticket_twice_only_is_not_that_or_the_ttl_ends_it(server: Server) -> None:
    """Full, resumed, refused; and again: it takes a ticket once. From then on the newest is read each time."""
    ends = []
    taken: dict[object, int] = {}
    for _ in range(12):
        offered = server.offer()
        resumed = offered is not None and taken.get(offered.session, 0) == 0
        if offered is not None:
            taken[offered.session] = taken.get(offered.session, 0) + 1
        read = server.settle(offered, resumed=resumed)
        ends.append(("resumed" if resumed else "full") + (", read" if read else ""))
    found_out = ["full, read", *["resumed", "full, read"] * CONSUMED]
    assert ends == [*found_out, *["resumed, read"] * (12 - len(found_out))]
    server.now = TTL_S
    server.connect()
    assert [server.connect() for _ in range(2)] == ["resumed"] * 2


def test_while_tickets_are_taken_once_no_two_connections_get_the_same(server: Server) -> None:
    server.connect()
    for _ in range(CONSUMED):
        server.connect()
        server.connect(resumes=False)
    first, second = server.offer(), server.offer()
    assert first is not None
    assert second is None


def test_what_the_server_has_not_renewed_is_not_read_again_and_does_not_live_longer(server: Server) -> None:
    """TLS 1.2: resuming gives back the session that was offered."""
    server.connect()
    server.now = TTL_S / 2
    offered = server.offer()
    assert offered is not None
    assert server.settle(offered, resumed=True, session=offered.session)
    assert server.connect() == "resumed"
    server.now = TTL_S - 1
    assert server.connect() == "resumed"
    server.now = TTL_S
    assert server.connect() == "full, read"


def test_many_that_connect_at_once_find_one_session_and_its_refusal_counts_once(server: Server) -> None:
    offered = [server.offer() for _ in range(16)]
    wanted = [server.sessions.settle(KEY, one, resumed=False, now=0.0) for one in offered]
    assert wanted == [True] * 16
    for _ in range(16):
        if server.sessions.is_wanted(KEY, None):
            server.reads += 1
            server.sessions.keep(
                KEY, "one", None, works=True, hint_s=0, expires_at=inf, now=0.0, wall=server.wall
            )
    assert server.reads == 1
    offered = [server.offer() for _ in range(16)]
    assert len({id(one) for one in offered}) == 1
    wanted = [server.sessions.settle(KEY, one, resumed=False, now=0.0) for one in offered]
    assert server.sessions._known[KEY].misses == 1


def test_a_session_whose_handshake_failed_is_not_offered_again(server: Server) -> None:
    server.connect()
    offered = server.offer()
    assert offered is not None
    server.sessions.drop(KEY, offered)
    assert server.connect() == "full, read"
    later = server.offer()
    server.sessions.drop(KEY, offered)  # told late: another one is kept by now
    assert server.offer() is later is not None


def test_each_name_and_port_has_its_own_and_the_least_used_makes_room() -> None:
    sessions = Sessions(size=2, ttl_s=TTL_S)
    first, port, name = (Server(sessions, key) for key in (("a", 443), ("a", 444), ("b", 443)))
    assert [one.connect() for one in (first, port)] == ["full, read"] * 2
    assert first.connect() == "resumed"
    assert name.connect() == "full, read"
    assert first.connect() == "resumed"
    assert port.connect() == "full, read"


def test_threads_that_connect_all_at_once_leave_it_whole() -> None:
    sessions = Sessions(size=2, ttl_s=TTL_S)
    errors = []

    def go(number: int) -> None:
        server = Server(sessions, (f"host{number % 3}", 443))
        try:
            for turn in range(300):
                server.connect(resumes=turn % 5 > 0)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=go, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert len(sessions._known) == 2
