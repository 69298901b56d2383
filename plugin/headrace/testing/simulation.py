"""The rules of a file on a virtual clock, against upstreams that do what a test says.

The deciding parts are the real ones: the configuration loader, the exchange, the circuit, the
retry budget and the engine's loop. Only the wire is played: an attempt takes as long as
the script says, and is cut where the file's own limits would have cut it. There is no
socket, no thread, no real time, and no chance unless a seed is given. The module is long because of its documentation:
all that a test may write is described here, and the code is the smaller part.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike

from headrace.config import load
from headrace.config.check.problems import did_you_mean
from headrace.config.source.units import format_duration
from headrace.engine.blocking import run
from headrace.errors import UnknownUpstream
from headrace.policy.breaker.circuit import Circuit, CircuitState, CircuitView, Transition
from headrace.policy.deadline_header import allowed_s
from headrace.policy.decision import Divert, End, EndReason
from headrace.policy.exchange import Exchange
from headrace.policy.frozen import frozen
from headrace.policy.plan import UpstreamPlan
from headrace.policy.record import Record
from headrace.policy.request import Request
from headrace.policy.retry import RetryAllowance, RetryBudget, is_keyed, key_header
from headrace.policy.served import Served
from headrace.testing.clock import VirtualClock
from headrace.testing.script import Script, ScriptExhausted, What, reply, seconds
from headrace.testing.timeline import Timeline
from headrace.testing.traffic import Traffic, play
from headrace.testing.wire import CallerLeft, ScriptedAttempt


class Simulation:
    """One file's upstreams, all on one clock that begins at 0.

    Every rule is played as if `mode: enforce` were written. The question here is what a rule will do,
    not whether it is in force. `call` makes one call at a time, `traffic` many that overlap.

    Args:
        file: The YAML file, or several (later wins).
        env: The environment for the file's `${env:…}` and `HEADRACE_…`. The process's own is not
            read, so that the result depends only on what the test says.
        seed: Of every random draw. None: each draw is the middle of its range. So
            `open_for` is its base, a back-off half its bound, and instants are round.

    Raises:
        ConfigError: The files have problems; all of them are in the text.
    """

    def __init__(
        self,
        file: str | PathLike[str] | Sequence[str | PathLike[str]],
        *,
        env: Mapping[str, str] | None = None,
        seed: int | None = None,
    ) -> None:
        self._configuration = load(file, env=env or {})
        self._clock = VirtualClock(0.0)
        rng = _middle_of_range if seed is None else random.Random(seed).random
        self._inbound: _Inbound | None = None
        self._upstreams = {
            name: SimulatedUpstream(self, plan, self._clock, rng)
            for name, plan in self._configuration.upstreams.items()
        }

    @property
    def now_s(self) -> float:
        """Seconds since the simulation began."""
        return self._clock.now

    @property
    def digest(self) -> str:
        """Digest of the configuration, as in the status of a process that has it in force."""
        return self._configuration.digest

    @property
    def inbound(self) -> _Inbound | None:
        """The inbound request that calls belong to at the moment."""
        return self._inbound

    def upstream(self, name: str) -> SimulatedUpstream:
        """The upstream called *name*. It is the same object each time.

        Raises:
            UnknownUpstream: The file has no such name.
        """
        found = self._upstreams.get(name)
        if found is None:
            near = did_you_mean(name, list(self._upstreams))
            fix = f"did you mean {near}?" if near else f"it has: {', '.join(self._upstreams)}"
            raise UnknownUpstream(f'upstream "{name}" is not in the file; {fix}')
        return found

    def advance(self, duration: str) -> None:
        """Let *duration*, written as in the file (`5s`), pass. Mutates."""
        self._clock.advance(seconds(duration))

    @contextlib.contextmanager
    def request(self, *, deadline: str | None = None) -> Iterator[None]:
        """Calls made inside belong to one inbound request: one allowance of retries, and one deadline.

        Args:
            deadline: How long its caller waits, from now. None: it does not say. `service.deadline` counts, too.
        """
        outer = self._inbound
        service = self._configuration.service
        given_s = allowed_s(service.deadline, None if deadline is None else seconds(deadline))
        self._inbound = _Inbound(
            RetryAllowance([None] * service.max_retries_per_request),
            None if given_s is None else self._clock.now + given_s,
        )
        try:
            yield
        finally:
            self._inbound = outer

    def __repr__(self) -> str:
        return f"<Simulation at {self._clock.now:g} s, {', '.join(self._upstreams)}>"


@frozen
class _Inbound:
    allowance: RetryAllowance
    deadline_at: float | None


class SimulatedUpstream:
    """One upstream: say what it does, call it, and look at the result.

    Attributes:
        timeline: Attempts (at their end), pauses (at their beginning), transitions, refusals.
        transitions: Of the circuit: when, and to which state.
        arrived: Attempts of which at least a byte may have reached it.
    """

    def __init__(
        self, simulation: Simulation, plan: UpstreamPlan, clock: VirtualClock, rng: Callable[[], float]
    ) -> None:
        self._simulation = simulation
        self._plan = plan
        self._clock = clock
        self._rng = rng
        self._script = Script()
        self._circuit = Circuit(
            plan.circuit_breaker,
            rng=rng,
            on_transition=self._note_transition,
            on_waived=lambda refused: self._note(f"would be refused: {refused}"),
        )
        self._budget = RetryBudget(plan.retry.budget)
        self.timeline: Timeline = Timeline()
        self.transitions: Timeline = Timeline()
        self.arrived: int = 0

    def answers(
        self,
        *what: What,
        times: int = 1,
        takes: str | None = None,
        retry_after: str | None = None,
        body: bytes = b"",
    ) -> None:
        """Append to the script: the next attempts meet *what*, one each, all of it *times* over. Mutates.

        Args:
            what: Status codes, and words for no answer, such as `timeout` or `reset`; see `script.What`.
            takes: Time until then, as `80ms`. A time longer than a limit of the file is cut there.
                None: no time at all, and for `timeout` until it is cut.
            retry_after: The answer's `Retry-After`.
            body: The answer's, for the file's `failure_if`.

        Raises:
            ValueError: Something is none of these. The text says what to write.
        """
        if not what or times < 1:
            raise ValueError("nothing to answer: give at least one status or word, and times= of at least 1")
        replies = [reply(one, takes=takes, retry_after=retry_after, body=body) for one in what]
        self._script.waiting.extend(replies * times)

    def always(
        self,
        what: What | Callable[[float], What],
        *,
        takes: str | None = None,
        retry_after: str | None = None,
        body: bytes = b"",
    ) -> None:
        """What every attempt meets once the script is played out. Mutates.

        Args:
            what: As for `answers`, or a function of the instant (seconds since the simulation began) that
                answers it: an outage from the tenth to the fortieth second, for example.
        """
        if callable(what):
            says = what
            self._script.then_always(
                lambda at_s: reply(says(at_s), takes=takes, retry_after=retry_after, body=body)
            )
        else:
            always = reply(what, takes=takes, retry_after=retry_after, body=body)
            self._script.then_always(lambda at_s: always)

    def call(self, method: str = "GET", *, replayable: bool = True, keyed: bool = False) -> CallResult:
        """Make one call, to its end, with attempts and pauses. Advances the clock by the time that this takes.

        Args:
            replayable: False: the body is a generator, which can be sent only once.
            keyed: The call brings an idempotency key, under the header that the file names. A key that the file has
                or makes need not be named.

        Raises:
            ScriptExhausted: An attempt was made and nothing says what it meets.
        """
        inbound = self._simulation.inbound
        deadline_at = None if inbound is None else inbound.deadline_at
        headers = (key_header(self._plan.retry),) if keyed else ()
        return self._call(method.upper(), replayable=replayable, headers=headers, deadline_at=deadline_at)

    def _call(
        self, method: str, *, replayable: bool, headers: Sequence[str], deadline_at: float | None
    ) -> CallResult:
        plan, clock = self._plan, self._clock
        began = clock.now
        exchange = self._exchange(method, replayable=replayable, headers=headers, deadline_at=deadline_at)
        pauses: list[float] = []

        def sleep(delay_s: float) -> None:
            self._note(f"pause {_duration(delay_s)}")
            pauses.append(delay_s)
            clock.advance(delay_s)

        attempt = ScriptedAttempt(plan, self._script, clock, self._note)
        end: End | None = None
        try:
            end = run(exchange, attempt, clock=clock, sleep=sleep)
        except CallerLeft:
            pass
        except ScriptExhausted as nothing:
            raise ScriptExhausted(
                f'upstream "{plan.name}": attempt {len(exchange.outcomes) + 1} of a {method} at {clock.now:g} s meets '
                f"nothing, for the script is played out; say what comes next with answers(…), or from there on with "
                f"always(…). So far:\n{self.timeline}"
            ) from nothing
        finally:
            self.arrived += attempt.sent
        reason = EndReason.CANCELLED if end is None else end.reason
        if exchange.refused is not None:
            self._note(f"refused: {exchange.refused}")
        elif exchange.denied is not None:
            self._note(f"no further attempt: {exchange.denied}")
        elif not exchange.outcomes and reason is not EndReason.CANCELLED:
            self._note(f"not sent: {reason}")
        result = CallResult(
            headrace=Record(
                plan.name,
                method,
                None,
                reason,
                exchange.retry_after_s,
                self._simulation.digest,
                exchange.outcomes,
                exchange.verdicts,
            ),
            status=None if exchange.kept is None else exchange.kept.status,
            pauses_s=tuple(pauses),
            began_s=began,
            took_s=clock.now - began,
        )
        if isinstance(end, Divert):
            return self._divert(
                result, end, replayable=replayable, headers=headers, deadline_at=exchange.deadline_at
            )
        return result

    def traffic(self, *, every: str, times: int, method: str = "GET") -> Traffic:
        """Make *times* calls, one *every* so often. They overlap: none waits for another. Advances the clock.

        The timeline tells of the circuit only. No pool is in the way, and a refused call gets no fallback.

        Args:
            every: Written as in the file (`10ms`): 100 calls a second.

        Raises:
            ScriptExhausted: An attempt was made and nothing says what it meets.
        """
        if times < 1:
            raise ValueError("nothing to call: give times= of at least 1")

        def begin() -> tuple[Exchange, ScriptedAttempt]:
            inbound = self._simulation.inbound
            deadline_at = None if inbound is None else inbound.deadline_at
            exchange = self._exchange(method.upper(), replayable=True, headers=(), deadline_at=deadline_at)
            attempt = ScriptedAttempt(self._plan, self._script, self._clock, _tell_nobody)
            made.append(attempt)
            return exchange, attempt

        made: list[ScriptedAttempt] = []
        try:
            return play(begin, self._clock, every_s=seconds(every), times=times)
        finally:
            self.arrived += sum(attempt.sent for attempt in made)

    def _exchange(
        self, method: str, *, replayable: bool, headers: Sequence[str], deadline_at: float | None
    ) -> Exchange:
        plan, inbound = self._plan, self._simulation.inbound
        return Exchange(
            plan,
            self._circuit,
            self._budget,
            Request(
                None,
                method,
                None,
                plan.timeouts,
                replayable=replayable,
                keyed=is_keyed(plan, method, headers),
            ),
            now=self._clock.now,
            rng=self._rng,
            served=Served(deadline_at, None if inbound is None else inbound.allowance),
        )

    def _divert(
        self,
        refused: CallResult,
        divert: Divert,
        *,
        replayable: bool,
        headers: Sequence[str],
        deadline_at: float | None,
    ) -> CallResult:
        """What the refused call gets instead. The headers that the call sets go along, its key included."""
        if divert.upstream is None:
            fallback = self._plan.fallback
            assert fallback is not None, "the exchange diverts by its plan"
            self._note(f"fallback: {fallback.status}")
            refused.headrace.fallback_for = self._plan.name
            return replace(refused, status=fallback.status)
        self._note(f'fallback: upstream "{divert.upstream}"')
        other = self._simulation.upstream(divert.upstream)
        method = refused.headrace.method
        result = other._call(method, replayable=replayable, headers=headers, deadline_at=deadline_at)
        result.headrace.fallback_for = self._plan.name
        return replace(
            result,
            pauses_s=refused.pauses_s + result.pauses_s,
            began_s=refused.began_s,
            took_s=refused.took_s + result.took_s,
        )

    @property
    def circuit(self) -> CircuitState:
        """State of the circuit: equal to `closed`, `open`, `half_open`.

        An open period that is over ends with the next call.
        """
        return self._circuit.state

    @property
    def circuit_view(self) -> CircuitView:
        """The circuit's numbers now, as the status shows them."""
        return self._circuit.view(self._clock.now)

    @property
    def budget_tokens(self) -> float:
        """Retries that the budget would pay for now."""
        return self._budget.balance(self._clock.now)

    @property
    def unplayed(self) -> int:
        """Entries of the script that no attempt has met yet; count."""
        return len(self._script.waiting)

    def __repr__(self) -> str:
        return (
            f'<upstream "{self._plan.name}" at {self._clock.now:g} s: circuit {self.circuit}, '
            f"{self.arrived} attempts arrived, {self.unplayed} scripted replies left>"
        )

    def _note(self, what: str) -> None:
        self.timeline.note(self._clock.now, what)

    def _note_transition(self, transition: Transition) -> None:
        to = transition.to_state
        what = f"circuit {to} ({transition.reason})"
        if transition.open_for_s is not None:
            what = f"circuit {to} for {_duration(transition.open_for_s)} ({transition.why})"
        self.timeline.note(transition.at_s, what)
        self.transitions.note(transition.at_s, to.value)


@frozen
class CallResult:
    """What became of a call. A refused call is a result here, too; nothing is raised.

    Attributes:
        headrace: The record, as on a response or exception of a real call.
        status: Of the answer that the caller gets, or None when the caller gets an error.
        pauses_s: Seconds.
        began_s: Seconds since the simulation began.
        took_s: Seconds, pauses and all.
    """

    headrace: Record
    status: int | None
    pauses_s: tuple[float, ...]
    began_s: float
    took_s: float

    @property
    def reason(self) -> EndReason:
        """Why it ended: equal to the word in the table of records.md."""
        return self.headrace.reason

    def __str__(self) -> str:
        return "\n".join(self.headrace.notes())


def _tell_nobody(what: str) -> None:
    """For the many attempts of `traffic`: nobody would read them on a timeline."""


def _duration(value_s: float) -> str:
    return format_duration(round(value_s, 6))


def _middle_of_range() -> float:
    return 0.5
