"""TCP to the first address that answers, and name look-up with a limit: real sockets, real threads."""

from __future__ import annotations

import contextlib
import contextvars
import errno
import functools
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import Any

import pytest

from headrace.clock import monotonic
from headrace.policy.dialling import MOST_YOUNG
from headrace.transport.dial.opening import Opening
from headrace.transport.dial.resolve import Resolver, ResolveTimeout
from headrace.transport.dial.sockets import first_to_answer
from support.forks import bare_fork, in_child, ordinary_fork
from support.holes import Address, Names, address_of, black_hole, closed_port, names
from support.waiting import wait_until

ENOUGH_S = 10.0
"""Far longer than what is tested takes, on a machine under load as well."""


@pytest.fixture
def hole() -> Iterator[int]:
    with black_hole() as port:
        yield port


@pytest.fixture
def good() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def dial(ports: list[int], *, limit_s: float = ENOUGH_S, opening: Opening | None = None, **kw: Any) -> int:
    """The port that answered."""
    with first_to_answer(
        [address_of(port) for port in ports],
        ends_at=monotonic() + limit_s,
        opening=opening or Opening(),
        **kw,
    ) as sock:
        return sock.getpeername()[1]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "order",
    [
        pytest.param("g", id="one"),
        pytest.param("gh", id="the first answers"),
        pytest.param("hg", id="behind a black hole"),
        pytest.param("hhg", id="behind two"),
        pytest.param("rg", id="behind one that refuses"),
        pytest.param("hrg", id="behind both"),
    ],
)
def test_whoever_answers_first_is_taken_and_the_others_are_closed(order: str, hole: int, good: int) -> None:
    """failures.md 78."""
    ports = {"g": good, "h": hole, "r": closed_port()}
    before = open_descriptors()
    began = monotonic()

    assert dial([ports[letter] for letter in order], limit_s=60.0) == good

    assert monotonic() - began < ENOUGH_S  # of 60 s; a black hole costs 0.25 s
    assert open_descriptors() == before


def test_the_last_of_many_has_its_turn_within_a_short_limit(hole: int, good: int) -> None:
    assert dial([*[hole] * 9, good], limit_s=1.5) == good  # at 250 ms each its turn would come after 2.25 s


def test_addresses_that_do_not_answer_take_the_limit_together(hole: int) -> None:
    before = open_descriptors()
    began = monotonic()

    with pytest.raises(TimeoutError) as caught:
        dial([hole] * 3, limit_s=0.3)

    assert caught.value.errno is None
    assert 0.3 <= monotonic() - began < 3.0
    assert open_descriptors() == before


def test_one_that_answers_after_its_turn_is_taken_all_the_same() -> None:
    """The kernel goes on connecting: with a second address, and without."""
    for others in (0, 1):
        with socket.socket() as listener, black_hole() as silent:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            fillers = []
            for _ in range(2):
                fillers.append(socket.socket())
                fillers[-1].setblocking(False)
                fillers[-1].connect_ex(listener.getsockname())
            taken: list[socket.socket] = []

            def drain(listener: socket.socket = listener, taken: list[socket.socket] = taken) -> None:
                time.sleep(0.5)
                listener.settimeout(ENOUGH_S)
                with contextlib.suppress(OSError):
                    while True:
                        taken.append(listener.accept()[0])

            thread = threading.Thread(target=drain)
            thread.start()
            port = listener.getsockname()[1]
            try:
                assert dial([port, *[silent] * others]) == port  # a second SYN goes out after a second
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                thread.join()
                for sock in (*fillers, *taken):
                    sock.close()


def test_the_error_is_that_of_the_last_one_to_fail() -> None:
    with pytest.raises(ConnectionRefusedError):
        dial([closed_port(), closed_port()])


NO_FAMILY: Address = (255, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 1))
"""What getaddrinfo says of a family that this machine has not: IPv6 switched off, for one."""


def test_a_family_that_there_is_not_is_passed_over(good: int) -> None:
    first_to_answer([NO_FAMILY, address_of(good)], ends_at=inf, opening=Opening()).close()
    with pytest.raises(OSError, match=os.strerror(errno.EAFNOSUPPORT)):
        first_to_answer([NO_FAMILY], ends_at=inf, opening=Opening())
    with pytest.raises(ConnectionRefusedError):  # that says more
        first_to_answer([address_of(closed_port()), NO_FAMILY], ends_at=inf, opening=Opening())


def test_no_address_at_all_is_an_error_as_in_urllib3() -> None:
    with pytest.raises(OSError, match="empty list"):
        first_to_answer([], ends_at=inf, opening=Opening())


def test_options_and_source_are_set_on_each_socket_before_it_connects(hole: int, good: int) -> None:
    for ports in ([good], [hole, good]):
        with first_to_answer(
            [address_of(port) for port in ports],
            ends_at=monotonic() + ENOUGH_S,
            opening=Opening(),
            options=[
                (socket.IPPROTO_TCP, socket.TCP_MAXSEG, 700),
                (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            ],
            source=("127.0.0.2", 0),
        ) as sock:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert (
                sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 700
            )  # too late once it is connected
            assert sock.getsockname()[0] == "127.0.0.2"


def test_a_source_of_another_family_is_no_error_of_the_name(good: int) -> None:
    ours = address_of(good)
    other: Address = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", good))
    first_to_answer([other, ours], ends_at=inf, opening=Opening(), source=("127.0.0.1", 0)).close()
    with pytest.raises(OSError, match=r"cannot connect from|Cannot assign|not supported") as caught:
        first_to_answer([other], ends_at=inf, opening=Opening(), source=("127.0.0.1", 0))
    assert not isinstance(caught.value, socket.gaierror)


def test_it_can_be_broken_off_at_any_time(hole: int) -> None:
    """Within the first address's turn, in the race, and before either."""
    for after_s in (0.0, 0.1, 0.5):
        opening = Opening()
        timer = threading.Timer(after_s, opening.break_off)
        timer.start()
        if not after_s:
            timer.join()
        began = monotonic()
        with pytest.raises(ConnectionAbortedError):
            dial([hole, hole], limit_s=60.0, opening=opening)
        assert monotonic() - began < ENOUGH_S
        assert opening.sockets == []


class Signalled(BaseException):
    pass


@pytest.mark.parametrize("after_s", [0.1, 0.4], ids=["in the first one's turn", "in the race"])
def test_a_signal_handler_that_raises_leaves_no_descriptor(hole: int, after_s: float) -> None:
    def handler(*_: Any) -> None:
        raise Signalled

    before, opening = open_descriptors(), Opening()
    earlier = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, after_s)
        with pytest.raises(Signalled):
            dial([hole, hole], opening=opening)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)
    assert (open_descriptors(), opening.sockets) == (before, [])


def test_a_timeout_of_the_callers_own_handler_leaves_as_it_is(hole: int) -> None:
    """failures.md 68."""

    def handler(*_: Any) -> None:
        raise TimeoutError("mine")

    earlier = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(TimeoutError, match="mine"):
            dial([hole, hole])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)


def test_a_class_of_sockets_that_negotiates_while_it_connects_is_not_raced(
    hole: int, good: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As PySocks does. Each address has a share of the time."""
    waited: list[float | None] = []

    class Negotiating(socket.socket):
        def connect(self, address: Any) -> None:
            waited.append(self.gettimeout())
            super().connect(address)

    before = open_descriptors()
    monkeypatch.setattr(socket, "socket", Negotiating)
    assert dial([hole, closed_port(), good], limit_s=3.0) == good
    assert len(waited) == 3
    assert waited[0] == pytest.approx(1.0, abs=0.5)
    assert open_descriptors() == before
    with pytest.raises(TimeoutError):
        dial([hole], limit_s=0.2)


# Name look-up


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    with names(monkeypatch) as told:
        told.known["good.test"] = [address_of(0)]
        yield told


def look_up(
    resolver: Resolver, name: str, *, limit_s: float = ENOUGH_S, opening: Opening | None = None
) -> Any:
    return resolver.addresses(name, 80, 0, ends_at=monotonic() + limit_s, opening=opening or Opening())


class Calls:
    """Look-ups on threads of the test; what each answered or raised."""

    def __init__(self) -> None:
        self.results: list[Any] = []
        self._threads: list[threading.Thread] = []

    def start(self, act: Callable[[], Any]) -> None:
        def run() -> None:
            try:
                self.results.append(act())
            except Exception as error:
                self.results.append(error)

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def join(self) -> list[Any]:
        for thread in self._threads:
            thread.join(6 * ENOUGH_S)
            assert not thread.is_alive()
        return self.results


def test_a_name_is_looked_up_on_a_thread_that_ends_with_it(told: Names) -> None:
    assert look_up(Resolver(), "good.test") == [address_of(80)]
    ((_, thread),) = told.asked
    assert thread == "headrace-resolve"
    wait_until(
        lambda: "headrace-resolve" not in {one.name for one in threading.enumerate()}, what="no thread left"
    )


def test_a_name_that_hangs_ends_at_the_limit(told: Names) -> None:
    """failures.md 78."""
    told.hang("hangs.test")
    began = monotonic()
    with pytest.raises(ResolveTimeout):
        look_up(Resolver(), "hangs.test", limit_s=0.3)
    assert 0.3 <= monotonic() - began < 3.0


def test_many_callers_of_one_name_share_one_look_up(told: Names) -> None:
    resolver, calls, gate = Resolver(), Calls(), told.hang("good.test")
    for _ in range(20):
        calls.start(lambda: look_up(resolver, "good.test"))
    wait_until(lambda: told.count("good.test") == 1, what="the look-up")
    with pytest.raises(ResolveTimeout):
        look_up(resolver, "good.test", limit_s=0.05)  # who leaves takes nothing from the others
    gate.set()

    results = calls.join()
    assert results == [[address_of(80)]] * 20
    assert len({id(one) for one in results}) == 20
    assert told.count("good.test") == 1


def test_each_caller_gets_an_error_of_his_own(told: Names) -> None:
    resolver, calls, gate = Resolver(), Calls(), told.hang("none.test")
    for _ in range(3):
        calls.start(lambda: look_up(resolver, "none.test"))
    wait_until(lambda: told.count("none.test") == 1, what="the look-up")
    gate.set()

    results = calls.join()
    assert [(type(one), one.errno) for one in results] == [(socket.gaierror, socket.EAI_NONAME)] * 3
    assert len({id(one) for one in results}) == 3


def test_the_next_call_looks_up_anew(told: Names) -> None:
    resolver = Resolver()
    for _ in range(2):
        look_up(resolver, "good.test")
    assert told.count("good.test") == 2


def test_names_that_hang_do_not_starve_a_healthy_one(told: Names) -> None:
    """failures.md 78."""
    resolver, calls = Resolver(), Calls()
    for nth in range(MOST_YOUNG + 2):
        told.hang(f"hangs-{nth}.test")
        calls.start(functools.partial(look_up, resolver, f"hangs-{nth}.test", limit_s=6 * ENOUGH_S))
    wait_until(lambda: len(told.asked) == MOST_YOUNG, what="as many as may begin at once")

    assert look_up(resolver, "good.test") == [address_of(80)]  # after a second, when they no longer count

    for gate in told.hanging.values():
        gate.set()
    calls.join()


def test_one_that_ends_makes_room_for_those_that_wait(told: Names) -> None:
    resolver, calls, gate = Resolver(), Calls(), threading.Event()
    for nth in range(3 * MOST_YOUNG):
        told.hanging[f"n{nth}.test"] = gate
        told.known[f"n{nth}.test"] = [address_of(0)]
        calls.start(functools.partial(look_up, resolver, f"n{nth}.test"))
    wait_until(lambda: len(told.asked) >= MOST_YOUNG, what="as many as may begin at once")
    gate.set()
    assert calls.join() == [[address_of(80)]] * (3 * MOST_YOUNG)


def test_what_nobody_waits_for_any_more_does_not_begin(told: Names) -> None:
    resolver, calls, gate = Resolver(), Calls(), threading.Event()
    for nth in range(MOST_YOUNG):
        told.hanging[f"n{nth}.test"] = gate
        calls.start(functools.partial(look_up, resolver, f"n{nth}.test"))
    wait_until(lambda: len(told.asked) == MOST_YOUNG, what="as many as may begin at once")
    with pytest.raises(ResolveTimeout):
        look_up(resolver, "good.test", limit_s=0.05)
    gate.set()
    calls.join()
    assert told.count("good.test") == 0
    assert repr(resolver) == "<Resolver: 0 under way, 0 waiting>"


def test_a_look_up_can_be_broken_off(told: Names) -> None:
    told.hang("hangs.test")
    opening = Opening()
    timer = threading.Timer(0.1, opening.break_off)
    timer.start()
    began = monotonic()
    with pytest.raises(ConnectionAbortedError):
        look_up(Resolver(), "hangs.test", limit_s=60.0, opening=opening)
    assert monotonic() - began < ENOUGH_S


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "127.1"])
def test_a_number_is_no_name(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", lambda self: pytest.fail("a thread"))
    (found, *_) = look_up(Resolver(), host)
    assert found[4][0] == {"127.1": "127.0.0.1"}.get(host, host)


def test_a_name_that_ends_with_a_digit_is_a_name(told: Names) -> None:
    told.known["good.test"] = told.known["db1.test"] = [address_of(0)]
    assert look_up(Resolver(), "db1.test") == [address_of(80)]


pin: contextvars.ContextVar[str] = contextvars.ContextVar("pin")


def test_what_somebody_has_put_in_place_of_getaddrinfo_runs_where_he_expects_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pins are kept in thread-locals and context variables. A wrapper that copies the name is no less a wrapper."""
    asked: list[tuple[str, int]] = []
    real = socket.getaddrinfo

    @functools.wraps(real)
    def spy(host: Any, *args: Any, **kw: Any) -> Any:
        asked.append((pin.get(), threading.get_ident()))
        return real("127.0.0.1", *args, **kw)

    monkeypatch.setattr(socket, "getaddrinfo", spy)
    pin.set("mine")
    assert look_up(Resolver(), "pinned.test") == [address_of(80)]
    assert asked == [("mine", threading.get_ident())]


def test_where_there_is_no_thread_the_caller_looks_up(told: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert look_up(Resolver(), "good.test") == [address_of(80)]
    assert told.asked == [("good.test", threading.current_thread().name)]


class Interrupt(BaseException):
    pass


def test_an_interrupt_amid_the_start_of_a_thread_leaves_the_name_to_others(
    told: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: threading.Thread) -> None:
        raise Interrupt

    resolver = Resolver()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(Interrupt):
            look_up(resolver, "good.test")
    assert look_up(resolver, "good.test") == [address_of(80)]


def run(code: str) -> str:
    """What *code* prints, in an interpreter of its own."""
    script = textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=6 * ENOUGH_S,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_at_the_end_of_the_interpreter_a_name_is_found_and_a_name_that_hangs_holds_nothing_up() -> None:
    text = run(
        """
        import atexit, threading, time
        import _socket
        from math import inf
        from headrace.transport.dial.opening import Opening
        from headrace.transport.dial.resolve import resolver

        real = _socket.getaddrinfo
        def look_up(host, *args):
            if host == "hangs.test":
                time.sleep(60)
            return real(host, *args)
        _socket.getaddrinfo = look_up
        try:
            resolver.addresses("hangs.test", 80, 0, ends_at=time.monotonic() + 0.1, opening=Opening())
        except TimeoutError:
            print("late")
        atexit.register(lambda: print(bool(resolver.addresses("localhost", 80, 0, ends_at=inf, opening=Opening()))))
        """
    )
    assert text.split() == ["late", "True"]


def test_once_other_threads_are_frozen_the_caller_looks_up(
    told: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "is_finalizing", lambda: True)
    assert look_up(Resolver(), "good.test") == [address_of(80)]
    assert told.asked == [("good.test", threading.current_thread().name)]


@pytest.mark.parametrize("fork", [ordinary_fork, bare_fork])
def test_a_forked_child_begins_anew(told: Names, fork: Callable[[], int]) -> None:
    """The parent's threads are not there, what they look up never comes, and their lock is never released."""
    parent, resolver, gate = os.getpid(), Resolver(), told.hang("good.test")
    with pytest.raises(ResolveTimeout):
        look_up(resolver, "good.test", limit_s=0.05)

    def act() -> None:
        assert os.getpid() != parent
        gate.set()
        assert look_up(resolver, "good.test") == [address_of(80)]

    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with resolver._lock:
            held.set()
            done.wait(ENOUGH_S)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(ENOUGH_S)
    try:
        assert in_child(act, fork=fork) == 0
    finally:
        done.set()
        thread.join()
