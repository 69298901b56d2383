"""Rare facts worth a log line: one frozen type each, with plain fields and no secrets.

A field is a str, a number, None or a tuple of str, so that any log pipeline can keep it. `name` is the event's word
and `line` says it in a sentence. Nothing in here is built on the success path of a call. The module is long because
it is one list: the table of events in logs.md.
"""

from __future__ import annotations

import logging
import time
from typing import ClassVar, Literal, Protocol

from headrace.policy.frozen import frozen
from headrace.policy.plan import Mode
from headrace.policy.printable import printable


class Event(Protocol):
    """A fact that `logs.emit` takes."""

    @property
    def name(self) -> str:
        """The event's word, such as `breaker.opened`."""

    @property
    def level(self) -> int:
        """Level of stdlib logging."""

    @property
    def line(self) -> str:
        """The fact as one line of text."""


@frozen
class HeadraceStarted:
    """The first use in this process: rules in force, threads running.

    Attributes:
        files: Absolute paths, in the order they were merged.
        digest: Identity of the configuration, shortened.
        upstreams: How many upstreams the files have; count.
        mode_override: What `HEADRACE_MODE` says, or None when it is not set.
    """

    name: ClassVar[str] = "headrace.started"
    level: ClassVar[int] = logging.INFO
    files: tuple[str, ...]
    digest: str
    upstreams: int
    mode_override: Mode | None = None

    @property
    def line(self) -> str:
        override = f", mode {self.mode_override} by HEADRACE_MODE" if self.mode_override else ""
        return (
            f"{_count(self.upstreams, 'upstream')} from {_files(self.files)} (digest {self.digest}{override})"
        )


@frozen
class HeadraceStopped:
    """Closed: nothing is governed any more, threads and connections are gone."""

    name: ClassVar[str] = "headrace.stopped"
    level: ClassVar[int] = logging.INFO
    files: tuple[str, ...]

    @property
    def line(self) -> str:
        return f"stopped; {_files(self.files)} no longer governs this process"


@frozen
class ModeOverridden:
    """`HEADRACE_MODE` overrides every `mode` of the file: the kill switch. Loud: it is easily forgotten."""

    name: ClassVar[str] = "headrace.mode_overridden"
    level: ClassVar[int] = logging.WARNING
    mode: Mode

    @property
    def line(self) -> str:
        effect = {
            "off": "no call is governed",
            "observe": "no call is changed, what the rules would do is counted",
            "enforce": "every upstream is enforced",
        }[self.mode]
        return f"HEADRACE_MODE={self.mode} overrides every mode of the file: {effect}; unset it to end that"


@frozen
class ConfigApplied:
    """An edited configuration is in force.

    Attributes:
        added: Names that are new; the other three likewise.
        unchanged: How many upstreams kept the very same objects; count.
        duration_s: From the start of reading to the swap.
    """

    name: ClassVar[str] = "config.applied"
    level: ClassVar[int] = logging.INFO
    files: tuple[str, ...]
    digest: str
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    unchanged: int
    duration_s: float

    @property
    def line(self) -> str:
        parts = [
            f"{word} {_some(names)}"
            for word, names in (("added", self.added), ("removed", self.removed), ("changed", self.changed))
            if names
        ]
        parts.append(f"{self.unchanged} unchanged")
        took = f"digest {self.digest}, took {self.duration_s * 1000:.0f} ms"
        return f"{_files(self.files)} in force: {', '.join(parts)} ({took})"


@frozen
class ConfigRejected:
    """An edit that cannot be taken into force; the last good configuration stays.

    Attributes:
        problems: All problems in full, as `render_problems` wrote them; several lines.
        problem_count: How many there are; >= 1.
        digest_in_force: Identity of the configuration that stays.
        loaded_at: Clock time at which that one was loaded, as people read it: `14:02:11`.
    """

    name: ClassVar[str] = "config.rejected"
    level: ClassVar[int] = logging.ERROR
    files: tuple[str, ...]
    problems: str
    problem_count: int
    digest_in_force: str
    loaded_at: str

    @property
    def line(self) -> str:
        return (
            f"{_files(self.files)}: {_count(self.problem_count, 'problem')}; "
            f"the configuration loaded at {self.loaded_at} (digest {self.digest_in_force}) stays in force: "
            f"{_flat(self.problems)}"
        )


@frozen
class ConfigHeld:
    """A file that drops more than half of four or more upstreams: applied once it has stood for a while.

    Attributes:
        removed: Names that the file no longer has.
        upstreams: How many the configuration in force has; count.
        hold_s: How long the file must stand.
    """

    name: ClassVar[str] = "config.held"
    level: ClassVar[int] = logging.WARNING
    files: tuple[str, ...]
    removed: tuple[str, ...]
    upstreams: int
    hold_s: float

    @property
    def line(self) -> str:
        return (
            f"{_files(self.files)} drops {len(self.removed)} of {self.upstreams} upstreams "
            f"({_some(self.removed)}); it is applied if it stays like this for {self.hold_s:g} s"
        )


@frozen
class SecretRenewed:
    """The file of a secret holds another one: headers that are made of it are sent with that from now on.

    Attributes:
        upstream: The upstream that did not take the old one (401); None: the file was watched.
    """

    name: ClassVar[str] = "secret.renewed"
    level: ClassVar[int] = logging.INFO
    file: str
    upstream: str | None

    @property
    def line(self) -> str:
        why = "" if self.upstream is None else f" (read because upstream {self.upstream} has answered 401)"
        return f"{printable(self.file)} has changed: headers made of it are sent with what it holds now{why}"


@frozen
class CertificateExpires:
    """A certificate ends within 7 days, within 1 day, or has ended; once each.

    Attributes:
        kind: `client`, or `ca`: the one that ends first of those that the file held when it was taken.
        left_s: Seconds until it ends; negative: it has.
    """

    name: ClassVar[str] = "tls.expires"
    level: ClassVar[int] = logging.WARNING
    file: str
    kind: str
    upstreams: tuple[str, ...]
    left_s: float

    @property
    def line(self) -> str:
        what = "the client certificate in force" if self.kind == "client" else "a CA certificate in force"
        when = f"ends in {_span(self.left_s)}" if self.left_s > 0 else f"has ended {_span(-self.left_s)} ago"
        return f"{what}, of {printable(self.file)} ({_some(self.upstreams)}), {when}"


@frozen
class SecretOld:
    """The file of a secret is older than `secrets.max_age`; once for each that is written.

    Attributes:
        kind: `header`, `key` or `key_passphrase`.
    """

    name: ClassVar[str] = "secret.old"
    level: ClassVar[int] = logging.WARNING
    file: str
    kind: str
    upstreams: tuple[str, ...]
    age_s: float
    max_age_s: float

    @property
    def line(self) -> str:
        return (
            f"the secret in {printable(self.file)} ({self.kind}; {_some(self.upstreams)}) was written "
            f"{_span(self.age_s)} ago; secrets.max_age is {_span(self.max_age_s)}"
        )


@frozen
class CircuitChanged:
    """A circuit changed its state, with the numbers that caused it.

    Attributes:
        reason: Why, in the words of `policy.breaker.circuit`.
        failure_rate: Share of failures in the window, 0..1, or None below `minimum_calls`.
        calls: Successes and failures in the window, or verdicts of the probes; count. A call counts once,
            however many attempts it made.
        consecutive_failures: Calls failed in a row; count.
        slow_calls: How many of them took `slow_call.duration` or longer.
        threshold: What the rule compared with: a rate or a count; None when time decided. That of probes is the
            share that must succeed, `half_open.success_rate_threshold`.
        open_for_s: How long it stays, or was, open; None when it closed.
        is_observed: `mode: observe`: no call is refused because of it.
    """

    upstream: str
    from_state: Literal["closed", "open", "half_open"]
    to_state: Literal["closed", "open", "half_open"]
    reason: str
    failure_rate: float | None = None
    calls: int = 0
    failures: int = 0
    consecutive_failures: int = 0
    threshold: float | None = None
    open_for_s: float | None = None
    is_observed: bool = False
    slow_calls: int = 0

    @property
    def name(self) -> str:
        return "breaker.opened" if self.to_state == "open" else f"breaker.{self.to_state}"

    @property
    def level(self) -> int:
        return logging.WARNING if self.to_state == "open" and not self.is_observed else logging.INFO

    @property
    def line(self) -> str:
        state = self.to_state.replace("_", " ")
        opens = self.to_state == "open" and self.open_for_s is not None
        duration = f" for {self.open_for_s:.1f} s" if opens else ""
        return (
            f'upstream "{self.upstream}": circuit {"would be " if self.is_observed else ""}{state}{duration}, '
            f"was {self.from_state.replace('_', ' ')}: {self.reason} ({self._numbers})"
        )

    @property
    def _numbers(self) -> str:
        slow = f", {self.slow_calls} slow" if self.slow_calls else ""
        threshold = "" if self.threshold is None else f", threshold {self.threshold:g}"
        if self.from_state != "half_open":
            rate = "" if self.failure_rate is None else f"failure rate {self.failure_rate:.2f} over "
            run = f"{self.consecutive_failures} failed in a row"
            return f"{rate}{_count(self.calls, 'call')}, {run}{slow}{threshold}"
        # The threshold of probes is a share of successes, except that of slow ones. Beside a failure rate it would
        # mislead.
        if self.failure_rate is None:
            return f"{_count(self.calls, 'probe')}{slow}{threshold}"
        succeeded = f"success rate {1 - self.failure_rate:.2f} over {_count(self.calls, 'probe')}"
        return f"{succeeded}{slow}{threshold}"


@frozen
class UpstreamReset:
    """The application forgot what it had learned of an upstream: circuit and budget begin anew.

    Attributes:
        state: The state that the circuit was in.
        tokens: Retries that the budget would have paid; count.
    """

    name: ClassVar[str] = "upstream.reset"
    level: ClassVar[int] = logging.WARNING
    upstream: str
    state: str
    tokens: float

    @property
    def line(self) -> str:
        return (
            f'upstream "{self.upstream}": reset by hand; the circuit was {self.state.replace("_", " ")} and is '
            f"closed, the budget paid for {self.tokens:g} more retries and is as at the start"
        )


@frozen
class PoolResized:
    """An adaptive pool has got another size, with the numbers that led to it.

    Attributes:
        reason: `waiting` (it grew) or `surplus` (it shrank).
        waiting: Calls that were waiting; count.
        peak_inuse: Most connections in use at once during the last `shrink_after`; count.
        rate_rps: Calls per second over `rate_window`.
        baseline_rps: Calls per second that are usual, or None as long as that is not known.
    """

    name: ClassVar[str] = "pool.resized"
    level: ClassVar[int] = logging.INFO
    upstream: str
    from_size: int
    to_size: int
    reason: str
    waiting: int
    peak_inuse: int
    rate_rps: float
    baseline_rps: float | None = None

    @property
    def line(self) -> str:
        verb = "grown" if self.to_size > self.from_size else "shrunk"
        usual = "not yet known" if self.baseline_rps is None else f"{self.baseline_rps:.1f}"
        return (
            f'upstream "{self.upstream}": pool {verb} from {self.from_size} to {self.to_size} connections: '
            f"{self.reason} ({self.waiting} waiting, {self.peak_inuse} in use at most, "
            f"{self.rate_rps:.1f} calls per second, usual {usual})"
        )


_UNGOVERNED = {
    "proxy": ": it goes through a proxy",
    "tls": ": it has TLS settings of its own, which hold",
    "adapter": ": its adapter has settled its connections itself, which holds",
    "manager": ": its pool manager has settled its connections itself, which holds",
    "pool_class": ": the classes of its pool or its connections are more than urllib3's, and hold",
    "httpx": ": headrace does not govern httpx, it only counts its calls",
}


@frozen
class CallUngoverned:
    """A call that a rule names by URL but that passes through untouched; once per call site.

    Attributes:
        reason: `tls`, `proxy`, `adapter`, `manager`, `pool_class`, `httpx`: the label of
            `headrace_ungoverned_calls_total`.
        call_site: `file:line` of the caller.
    """

    name: ClassVar[str] = "call.ungoverned"
    level: ClassVar[int] = logging.WARNING
    reason: str
    upstream: str
    call_site: str

    @property
    def line(self) -> str:
        why = _UNGOVERNED.get(self.reason, "")
        where = f"the call at {self.call_site} is not governed ({self.reason}{why}); said once per call site"
        return f'upstream "{self.upstream}": {where}'


@frozen
class RetriesDelegated:
    """A caller that brings retries of its own: headrace makes one attempt per try; once per call site.

    Attributes:
        call_site: `file:line` of the caller.
    """

    name: ClassVar[str] = "retries.delegated"
    level: ClassVar[int] = logging.INFO
    upstream: str
    call_site: str

    @property
    def line(self) -> str:
        return (
            f'upstream "{self.upstream}": the call at {self.call_site} brings retries of its own, so headrace makes '
            f"one attempt per try; said once per call site"
        )


@frozen
class RetriesWithheld:
    """A failed call was not retried because of its method or its body; once per call site.

    Attributes:
        reason: `method` or `not_replayable`.
        why: The same in words, with the fix.
        call_site: `file:line` of the caller.
    """

    name: ClassVar[str] = "retries.withheld"
    level: ClassVar[int] = logging.INFO
    upstream: str
    method: str
    reason: str
    why: str
    call_site: str

    @property
    def line(self) -> str:
        return (
            f'upstream "{self.upstream}": {self.method} at {self.call_site} failed and was {self.why}; '
            f"said once per call site"
        )


@frozen
class PredicateFailed:
    """`failure_if` raised instead of answering, so the response counts by its status alone; once per kind of error.

    Attributes:
        function: What the file names.
        error: Class of what it raised.
    """

    name: ClassVar[str] = "breaker.failure_if_raised"
    level: ClassVar[int] = logging.ERROR
    upstream: str
    function: str
    error: str

    @property
    def line(self) -> str:
        return (
            f'upstream "{self.upstream}": failure_if {self.function} raised {self.error}, so answers count by their '
            f"status alone; said once per kind of error"
        )


@frozen
class CallOnEventLoop:
    """A blocking call on the thread of a running event loop had to wait, and did not; once per call site.

    Attributes:
        wanted: What it would have waited for.
        call_site: `file:line` of the caller.
    """

    name: ClassVar[str] = "call.on_event_loop"
    level: ClassVar[int] = logging.WARNING
    upstream: str
    wanted: str
    call_site: str

    @property
    def line(self) -> str:
        return (
            f'upstream "{self.upstream}": the call at {self.call_site} wanted to {self.wanted} on the thread of a '
            f"running event loop, which it would have stalled; it failed instead. Await it "
            f'(await hr.upstream("{self.upstream}").aio.get(…)), or make it in a thread (asyncio.to_thread, a def '
            f"handler); said once per call site"
        )


@frozen
class PatchedLate:
    """gevent has patched the process after headrace had made its threads and TLS contexts; said once."""

    name: ClassVar[str] = "gevent.late"
    level: ClassVar[int] = logging.WARNING

    @property
    def line(self) -> str:
        return (
            "gevent has patched this process after headrace began: calls over TLS hold up all "
            "greenlets. Call gevent.monkey.patch_all() before headrace begins, best of all first in the program "
            "(gunicorn's and Celery's gevent workers do)"
        )


@frozen
class LeaseLeaked:
    """A response or lease was dropped without being read or closed; its connection is gone, its slot free again.

    Attributes:
        call_site: `file:line` where the connection was taken, or how to learn it; said once for each.
    """

    name: ClassVar[str] = "pool.leaked"
    level: ClassVar[int] = logging.WARNING
    upstream: str
    call_site: str

    @property
    def line(self) -> str:
        return (
            f'upstream "{self.upstream}": a connection was dropped without its answer being read or closed; '
            f"taken at: {self.call_site}; said once per call site"
        )


@frozen
class LeaseHeld:
    """A connection is held for longer than `pool.leak_detection_threshold`; once per lease.

    Attributes:
        call_site: `file:line` where it was taken.
        held_s: Seconds so far.
    """

    name: ClassVar[str] = "pool.held"
    level: ClassVar[int] = logging.WARNING
    upstream: str
    call_site: str
    held_s: float

    @property
    def line(self) -> str:
        return (
            f'upstream "{self.upstream}": the connection taken at {self.call_site} is held for {self.held_s:.1f} s '
            f"by now; close the response, or read it to its end"
        )


@frozen
class PoolFault:
    """The bookkeeping failed for one lease, waiter or connection, which was given up; the others went on.

    Attributes:
        error: Type and text of what was raised.
        raised_at: `file:line`; said once for each.
    """

    name: ClassVar[str] = "pool.fault"
    level: ClassVar[int] = logging.ERROR
    upstream: str
    error: str
    raised_at: str

    @property
    def line(self) -> str:
        return (
            f'upstream "{self.upstream}": a connection was given up because of {self.error}, raised at '
            f"{self.raised_at}; the pool goes on; said once per place"
        )


@frozen
class PoolSuspect:
    """Heartbeats were missed in a row: the idle connections were closed.

    Attributes:
        misses: How many in a row; count.
        closed: Idle connections closed because of it; count.
    """

    name: ClassVar[str] = "pool.suspect"
    level: ClassVar[int] = logging.WARNING
    upstream: str
    misses: int
    closed: int

    @property
    def line(self) -> str:
        return (
            f'upstream "{self.upstream}": {_count(self.misses, "heartbeat")} missed in a row; '
            f"closed {_count(self.closed, 'idle connection')}, suspect until one gets an answer"
        )


@frozen
class WatchDegraded:
    """Edits are found by polling because the system's notifications are not to be had."""

    name: ClassVar[str] = "watch.degraded"
    level: ClassVar[int] = logging.WARNING
    reason: str

    @property
    def line(self) -> str:
        return f"watching by polling: {_flat(self.reason)}; edits are found within reload.poll"


@frozen
class DeadlineRefused:
    """A request came with a deadline already past and was answered with 504; said once.

    Attributes:
        header: Where the deadline was read.
    """

    name: ClassVar[str] = "deadline.refused"
    level: ClassVar[int] = logging.INFO
    header: str

    @property
    def line(self) -> str:
        return (
            f"a request came with a deadline already past ({self.header}): answered 504, its caller has given up; "
            f"further ones are counted, not logged"
        )


@frozen
class DeadlinesDistrusted:
    """Too many requests come with a deadline already past: they are served as if without it; said once.

    Attributes:
        header: Where the deadlines were read.
    """

    name: ClassVar[str] = "deadline.distrusted"
    level: ClassVar[int] = logging.WARNING
    header: str

    @property
    def line(self) -> str:
        return (
            f"one in five requests of the last 10 s was refused because {self.header} said that its time was over, "
            f"and more such come: they are served as if without it. A unit, a clock or a proxy may be wrong; said once"
        )


@frozen
class ErrorMapped:
    """`error_responses: map` answered for an application that let an upstream's error through."""

    name: ClassVar[str] = "error.mapped"
    level: ClassVar[int] = logging.WARNING
    upstream: str
    status: int
    error: str
    request_id: str | None = None

    @property
    def line(self) -> str:
        return (
            f'upstream "{self.upstream}": {_flat(self.error)}; '
            f"answered {self.status} for request {self.request_id or '-'}"
        )


@frozen
class TlsVerificationDisabled:
    """An upstream whose peer is not verified."""

    name: ClassVar[str] = "tls.verification_disabled"
    level: ClassVar[int] = logging.WARNING
    upstream: str

    @property
    def line(self) -> str:
        return f'upstream "{self.upstream}": tls.verify is false, anybody on the way can read its traffic'


@frozen
class ThreadLingers:
    """A thread of headrace that was told to end, and has not: what it waits for takes longer. It ends with that.

    Attributes:
        thread_name: Its name.
        waited_s: Seconds for which its end was waited for.
    """

    name: ClassVar[str] = "thread.lingers"
    level: ClassVar[int] = logging.WARNING
    thread_name: str
    waited_s: float

    @property
    def line(self) -> str:
        return (
            f"the thread {self.thread_name} was told to end and has not within {self.waited_s:g} s: it ends with what "
            f"it waits for, and no other is started in its place before"
        )


@frozen
class LifespanUnsupported:
    """An application raised before it asked for a message of its lifespan; headrace's own goes on. Django does so.

    Attributes:
        error: Type and text of what was raised: a middleware that cannot be built looks the same.
    """

    name: ClassVar[str] = "lifespan.unsupported"
    level: ClassVar[int] = logging.INFO
    error: str

    @property
    def line(self) -> str:
        return f"the application knows no lifespan, or failed before it ({_flat(self.error)}); it is served as it is"


@frozen
class TlsRotated:
    """The TLS files of an upstream have other contents, and new connections are made with these.

    Attributes:
        certificate, was: First 16 hex digits of the SHA-256 of the client certificate; None: there is none.
        not_after_s: Until when *certificate* holds, epoch seconds.
        closed: Idle connections closed because of it; count.
        draining: Connections in use, which are closed when they come back; count.
        drain_s: Seconds after which those that are still in use are broken off.
        chain, was_chain: Certificates in the file of the client certificate; 0: there is none.
    """

    name: ClassVar[str] = "tls.rotated"
    level: ClassVar[int] = logging.INFO
    upstream: str
    certificate: str | None
    not_after_s: int | None
    was: str | None
    closed: int
    draining: int
    drain_s: float
    chain: int
    was_chain: int

    @property
    def line(self) -> str:
        what = "what its TLS files trust has changed"
        if self.certificate is not None:
            what = (
                f"certificate {self.certificate}{_until(self.not_after_s)} has taken the place of {self.was}"
            )
        if self.certificate is not None and self.certificate == self.was:
            what = f"its TLS files have changed, the certificate is {self.certificate} as before"
        cut = ""
        if self.chain < self.was_chain:
            cut = (
                f"; its file has {_count(self.chain, 'certificate')}, and had {self.was_chain}: "
                "is the chain behind the first one missing?"
            )
        return (
            f'upstream "{self.upstream}": {what}; closed {_count(self.closed, "idle connection")}, '
            f"{self.draining} in use may go on for {self.drain_s:g} s{cut}"
        )


@frozen
class TlsRotationRefused:
    """What the TLS files of an upstream hold was refused for 2 s by now; the last good material stays in force.

    Attributes:
        reason: Which file, what is wrong, and the fix.
        in_force: First 16 hex digits of the SHA-256 of the client certificate in force; None: there is none.
        not_after_s: Until when that holds, epoch seconds.
    """

    name: ClassVar[str] = "tls.rotation_refused"
    level: ClassVar[int] = logging.ERROR
    upstream: str
    reason: str
    in_force: str | None
    not_after_s: int | None

    @property
    def line(self) -> str:
        stays = "the last good files stay in force"
        if self.in_force is not None:
            stays = f"certificate {self.in_force}{_until(self.not_after_s)} stays in force"
        return f'upstream "{self.upstream}": {_flat(self.reason)}; {stays}'


@frozen
class TlsWouldRefuse:
    """An observed upstream whose certificate `enforce` would refuse, while the stock library accepts it.

    Attributes:
        host: Whose certificate, with its port.
        issuer: Who issued it, as the certificate says; "" where it does not.
        reason: Why it would be refused, in OpenSSL's words.
    """

    name: ClassVar[str] = "tls.would_refuse"
    level: ClassVar[int] = logging.WARNING
    upstream: str
    host: str
    issuer: str
    reason: str

    @property
    def line(self) -> str:
        issuer = f", issued by {self.issuer}" if self.issuer else ""
        return (
            f'upstream "{self.upstream}": enforce would refuse the handshake with {self.host} ({self.reason}), '
            f"which the stock library accepts{issuer}; before you enforce, have tls go by a CA that it comes from"
        )


@frozen
class ConfigWarning:
    """A finding that does not stop the load."""

    name: ClassVar[str] = "config.warning"
    level: ClassVar[int] = logging.WARNING
    text: str

    @property
    def line(self) -> str:
        return _flat(self.text)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _until(not_after_s: int | None) -> str:
    if not_after_s is None:
        return ""
    try:
        return time.strftime(" (until %Y-%m-%d %H:%M UTC)", time.gmtime(not_after_s))
    except (OverflowError, ValueError, OSError):  # a C library without such years
        return ""


def _span(seconds: float) -> str:
    """*seconds* in the largest unit that leaves two or more of it."""
    for unit, length_s in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{seconds:.0f} s"


def _files(files: tuple[str, ...]) -> str:
    return ", ".join(files) or "no file"


def _some(names: tuple[str, ...], *, most: int = 8) -> str:
    """The first few names. A thousand upstreams are still one readable line; the record has them all."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _flat(text: str) -> str:
    """*text* as one line.

    The first continuation line, what is wrong, follows after a space; the next ones, what to do about it, after
    a semicolon; the next unindented line after ` | `.
    """
    joined, n_indented = "", 0
    for line in text.splitlines():
        if not line.strip():
            continue
        is_indented = line[:1].isspace()
        n_indented = n_indented + 1 if is_indented else 0
        joined += (
            "" if not joined else " | " if not is_indented else "; " if n_indented > 1 else " "
        ) + line.strip()
    return joined
