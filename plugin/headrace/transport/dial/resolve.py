"""Name look-up with a limit: `getaddrinfo` cannot be interrupted, so it runs on a thread that may be left behind.

**One look-up per name.** Whoever asks for a name that is being looked up waits for the same answer. A name whose server
is silent holds one thread, however many calls ask for it.

**A thread per look-up**, which begins with it and ends with it: 40 µs, once per new connection. As long as there
are few that do not hang, it starts at once (`policy.dialling.may_begin_at`), else it waits its turn.

**In the thread of the caller** are looked up: a numeric host, which takes 3 µs and cannot hang; every name, where
`socket.getaddrinfo` is not CPython's own (gevent's lets others run, and somebody's may look into a thread-local or a
context variable for a pin); and what no thread is to be had for, as when the interpreter is ending.
"""

from __future__ import annotations

import _socket
import asyncio
import os
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from math import inf
from types import FunctionType
from typing import Any, TypeAlias

from headrace.clock import monotonic
from headrace.policy.dialling import may_begin_at
from headrace.transport.dial.opening import Gate, Opening, open_gate
from headrace.transport.dial.sockets import Address
from headrace.transport.standstill import opened_in_time

_Key: TypeAlias = "tuple[str, int, int]"

_SOCKET_PY = socket.SocketIO.readinto.__code__.co_filename
_LONGEST_WAIT_S = threading.TIMEOUT_MAX


class ResolveTimeout(TimeoutError):
    """A name was not looked up in time; without an errno, as each limit of ours."""


class _LookUp:
    """One look-up, and who waits for it.

    Attributes:
        begun_at: On the clock; None: it waits its turn.
        gates: What those who wait for it wait at: locks, and `_LoopGate`s.
        error: What it raised. Only copies of it are raised: to one object, all of them would add their traces.
        is_over: It has an answer, or an error, or was given up.
    """

    __slots__ = ("addresses", "begun_at", "error", "gates", "is_over", "key")

    def __init__(self, key: _Key) -> None:
        self.key = key
        self.begun_at: float | None = None
        self.gates: list[Gate] = []
        self.addresses: list[Address] | None = None
        self.error: BaseException | None = None
        self.is_over = False


class Resolver:
    """The name look-ups of a process. Thread-safe."""

    __slots__ = ("_begun", "_by_key", "_clock", "_lock", "_pid", "_queue")

    def __init__(self, *, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self.forget_inherited()

    def forget_inherited(self) -> None:
        """In a forked child: the threads are the parent's, and what they look up never comes."""
        self._pid = os.getpid()
        self._lock = threading.RLock()  # a finalizer may make a call
        self._by_key: dict[_Key, _LookUp] = {}
        self._queue: deque[_LookUp] = deque()
        self._begun: dict[_LookUp, float] = {}

    def addresses(
        self, host: str, port: int, family: int, *, ends_at: float, opening: Opening
    ) -> list[Address]:
        """What `getaddrinfo` says for TCP to *host*, in its order. Blocks.

        Args:
            ends_at: When it must be there, monotonic seconds; inf: no limit. Only kept where it is looked up on a
                thread.
            opening: Where it can be broken off.

        Raises:
            ResolveTimeout: It is not there in time.
            ConnectionAbortedError: It was broken off.
            Exception: What `getaddrinfo` raised.
        """
        if not is_own(socket.getaddrinfo, "getaddrinfo", _SOCKET_PY) or sys.is_finalizing():
            return _look_up(host, port, family)
        if host[-1:].isdigit() or ":" in host:
            try:
                return _numeric(host, port, family)
            except socket.gaierror:
                pass  # a name after all
        if self._pid != os.getpid():
            self.forget_inherited()  # by raw fork(2), which no hook hears of
        while True:
            found = self._shared((host, port, family), ends_at, opening)
            if found is not None:
                return found

    async def await_addresses(self, host: str, port: int, family: int) -> list[Address]:
        """The same for the running event loop, which goes on meanwhile. Its caller bounds it, by a cancellation.

        What the blocking side looks up in its caller's thread, because of what somebody has put in the place of
        `getaddrinfo`, has a thread of the loop's here, with the caller's context.

        Raises:
            Exception: What `getaddrinfo` raised.
        """
        if not is_own(socket.getaddrinfo, "getaddrinfo", _SOCKET_PY) or sys.is_finalizing():
            return await asyncio.to_thread(_look_up, host, port, family)
        if host[-1:].isdigit() or ":" in host:
            try:
                return _numeric(host, port, family)
            except socket.gaierror:
                pass  # a name after all
        if self._pid != os.getpid():
            self.forget_inherited()
        key = (host, port, family)
        while True:
            gate = _LoopGate(asyncio.get_running_loop())
            look_up = None
            try:
                look_up = self._join(key, gate)
                while not look_up.is_over:
                    await gate.opened(self._begin_waiting() - self._clock())
            finally:
                if look_up is not None:
                    self._leave(look_up, gate)
            if look_up.error is not None:
                raise _copy_of(look_up.error)
            if look_up.addresses is not None:
                return list(look_up.addresses)

    def _shared(self, key: _Key, ends_at: float, opening: Opening) -> list[Address] | None:
        """The answer of the look-up of *key* under way, or of a new one; None: it was given up."""
        opening.gate = gate = threading.Lock()
        gate.acquire()
        look_up = None
        try:
            look_up = self._join(key, gate)
            while not look_up.is_over:
                opening.go_on()
                room_at = self._begin_waiting()
                left_s = max(min(ends_at, room_at) - self._clock(), 0.0)
                if not opened_in_time(gate, min(left_s, _LONGEST_WAIT_S)) and self._clock() >= ends_at:
                    raise ResolveTimeout("timed out")
        finally:
            opening.gate = None
            if look_up is not None:
                self._leave(look_up, gate)
        if look_up.error is not None:
            raise _copy_of(look_up.error)
        return None if look_up.addresses is None else list(look_up.addresses)

    def _join(self, key: _Key, gate: Gate) -> _LookUp:
        with self._lock:
            look_up = self._by_key.get(key)
            if look_up is None:
                look_up = _LookUp(key)
                look_up.gates.append(gate)
                # In this order: an interrupt in between leaves one in the queue that nobody waits for.
                self._queue.append(look_up)
                self._by_key[key] = look_up
            else:
                look_up.gates.append(gate)
            return look_up

    def _leave(self, look_up: _LookUp, gate: Gate) -> None:
        """Wait no more for *look_up*. Where nobody does any more, it does not begin."""
        with self._lock:
            if gate in look_up.gates:
                look_up.gates.remove(gate)
            if not look_up.gates and look_up.begun_at is None and not look_up.is_over:
                self._forget(look_up)

    def _forget(self, look_up: _LookUp) -> None:
        look_up.is_over = True
        if self._by_key.get(look_up.key) is look_up:
            del self._by_key[look_up.key]
        if look_up in self._queue:
            self._queue.remove(look_up)
        self._begun.pop(look_up, None)

    def _begin_waiting(self) -> float:
        """Begin those that wait their turn, as far as there is room. When to ask again; inf: one that ends does it."""
        while True:
            with self._lock:
                if not self._queue:
                    return inf
                now = self._clock()
                room_at = may_begin_at(self._begun.values(), now)
                if room_at > now:
                    return room_at
                look_up = self._queue[0]
            try:
                if self._takes(look_up, now):
                    self._start(look_up)
            except BaseException:  # an interrupt: nobody knows whether it has begun
                self._end(look_up)
                raise

    def _takes(self, look_up: _LookUp, now: float) -> bool:
        """Whether *look_up* is still to be begun; then it counts as begun *now*."""
        with self._lock:
            if look_up.begun_at is not None or look_up.is_over:
                return False
            look_up.begun_at = self._begun[look_up] = now
            self._queue.remove(look_up)
            return True

    def _start(self, look_up: _LookUp) -> None:
        thread = threading.Thread(target=self._work, args=(look_up,), name="headrace-resolve", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # there is none to be had
            self._run(look_up)

    def _work(self, look_up: _LookUp | None) -> None:
        """A thread: *look_up*, and then those that wait their turn."""
        while look_up is not None:
            self._run(look_up)
            with self._lock:
                now = self._clock()
                is_room = bool(self._queue) and may_begin_at(self._begun.values(), now) <= now
                look_up = self._queue[0] if is_room else None
                if look_up is not None:
                    self._takes(look_up, now)

    def _run(self, look_up: _LookUp) -> None:
        try:
            look_up.addresses = _look_up(*look_up.key)
        except Exception as error:
            look_up.error = error
        finally:
            self._end(look_up)

    def _end(self, look_up: _LookUp) -> None:
        with self._lock:
            self._forget(look_up)
            gates, look_up.gates = look_up.gates, []
        for gate in gates:
            open_gate(gate)

    def __repr__(self) -> str:
        return f"<Resolver: {len(self._begun)} under way, {len(self._queue)} waiting>"


class _LoopGate:
    """What a task of an event loop waits at until another thread opens it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._opened = asyncio.Event()

    def release(self) -> None:
        """Open it. Thread-safe. RuntimeError where the loop is closed: then nobody waits any more."""
        self._loop.call_soon_threadsafe(self._opened.set)

    async def opened(self, limit_s: float) -> None:
        """Wait until it is open, at most *limit_s*; inf: no limit."""
        if limit_s == inf:
            await self._opened.wait()
            return
        try:
            await asyncio.wait_for(self._opened.wait(), max(limit_s, 0.0))
        except TimeoutError:
            pass


def is_own(function: Any, name: str, file: str) -> bool:
    """Whether *function* is the one called *name* that *file* defines. What wraps it copies its name, not its code."""
    code = function.__code__ if type(function) is FunctionType else None
    return (
        code is not None
        and code.co_filename == file
        and code.co_name == name
        and not hasattr(function, "__wrapped__")
    )


def _numeric(host: str, port: int, family: int) -> list[Address]:
    # As CPython's own does, which makes enums of the numbers. The next step would take them apart again.
    return _socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)


def _look_up(host: str, port: int, family: int) -> list[Address]:
    get: Any = socket.getaddrinfo
    # As urllib3 calls it: what somebody has put in its place may take no more.
    return list(get(host, port, family, socket.SOCK_STREAM))


def _copy_of(error: BaseException) -> BaseException:
    try:
        copy = type(error)(*error.args)
    except Exception:  # a class with arguments of its own
        copy = OSError(str(error))
    copy.__cause__ = None
    return copy


resolver = Resolver()
"""Those of this process."""
