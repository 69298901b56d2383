"""What the rules make of one URL, and which line says so: what `headrace explain` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from headrace.config.check.problems import Path, dotted
from headrace.config.explain.effective import EffectiveValues
from headrace.config.explain.nearest import nearest, unclaimable
from headrace.config.explain.verdict import explain_method, explain_outcome
from headrace.config.load import Inspection
from headrace.config.source.sources import mode_override
from headrace.config.source.tree import MASK, without_user
from headrace.config.source.written import Written
from headrace.policy.frozen import frozen
from headrace.policy.outcome import Fault
from headrace.policy.plan import Configuration, UpstreamPlan
from headrace.policy.printable import printable
from headrace.policy.routes import RouteTable, url_of


def route_table(configuration: Configuration) -> RouteTable[UpstreamPlan]:
    """The routes of *configuration*, upstreams with `mode: off` included."""
    return RouteTable(
        (prefix, plan) for plan in configuration.upstreams.values() for prefix in (plan.base, *plan.match)
    )


@frozen
class Step:
    """One step of a call, in the fixed order."""

    name: str
    words: str


@frozen
class Value:
    """A value in force, as text, and where it comes from."""

    key: str
    value: str
    where: str


@frozen
class Explanation:
    """What the rules make of calls to one URL. Plain data, without secrets.

    Attributes:
        url: Without a password.
        upstream: The one that claims it, or None.
        by: The key that claims it, such as `base_url`.
        prefix: What that key says, and *where* it says it.
        mode: As the file has it, and *mode_where*.
        override: What HEADRACE_MODE says here, or None.
        unclaimed: Why no upstream claims it, a sentence for each reason; empty where one does.
        nearest: The upstream that nearly does, or None.
        order: The steps of a call.
        verdict: What becomes of the outcome that was asked about; empty without one.
        values: Every value in force.
    """

    url: str
    upstream: str | None = None
    by: str | None = None
    prefix: str | None = None
    where: str | None = None
    mode: str | None = None
    mode_where: str | None = None
    override: str | None = None
    unclaimed: tuple[str, ...] = ()
    nearest: str | None = None
    order: tuple[Step, ...] = ()
    verdict: tuple[str, ...] = ()
    values: tuple[Value, ...] = ()

    def text(self) -> str:
        """The same for people."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield self.url
        if self.upstream is None:
            yield "  no upstream claims it: the call passes through ungoverned"
            if self.nearest is not None:
                yield f"  nearest is upstream {self.nearest}, by {self.by}: {self.prefix} ({self.where})"
            yield from (f"    {reason}" for reason in self.unclaimed)
            return
        yield f"  upstream {self.upstream}, by {self.by}: {self.prefix} ({self.where})"
        yield f"  mode {self.mode} ({self.mode_where})"
        if self.override is not None:
            yield f"  HEADRACE_MODE={self.override} is set here and overrides every mode"
        yield from ("", "a call, in this order")
        if self.mode == "off":
            yield "  mode is off: the call is left alone, none of what follows applies"
        yield from (
            f"  {number:>2}. {step.name:<9} {step.words}" for number, step in enumerate(self.order, 1)
        )
        yield ""
        if self.verdict:
            yield from (*self.verdict, "")
        width = max(len(one.key) for one in self.values)
        value_width = min(max(len(one.value) for one in self.values), 36)
        yield "effective values"
        yield from (f"  {one.key:<{width}}  {one.value:<{value_width}}  {one.where}" for one in self.values)


def explain(
    inspection: Inspection,
    url: str,
    *,
    method: str | None = None,
    status: int | None = None,
    fault: Fault | None = None,
    env: Mapping[str, str],
) -> Explanation:
    """What becomes of calls to *url*: its upstream, the order of a call, every effective value and where it comes from.

    Args:
        inspection: Without problems.
        method: Upper case; also say when it is retried.
        status: Also say whether this answer to *method* (or GET) would be retried and counted as failure.
        fault: The same of an attempt without an answer; not both.
        env: For HEADRACE_MODE.
    """
    configuration, settings, written = inspection.configuration, inspection.settings, inspection.written
    assert configuration is not None
    assert settings is not None
    assert written is not None
    shown_url = printable(without_user(url))
    found = route_table(configuration).match_url(url)
    if found is None:
        return _unclaimed(shown_url, url, configuration, written)
    prefix, plan = found
    values = EffectiveValues(settings, written, plan.name)
    verdict: Iterator[str] = iter(())
    if status is not None or fault is not None:
        verdict = explain_outcome(values, plan, method or "GET", status=status, fault=fault, env=env)
    elif method is not None:
        verdict = explain_method(values, plan, method, env=env)
    path: Path = ("base_url",) if prefix == plan.base else ("match", plan.match.index(prefix))
    return Explanation(
        url=shown_url,
        upstream=plan.name,
        by=dotted(path),
        prefix=MASK if written.is_secret((*values.base, *path)) else url_of(prefix),
        where=values.who(*path),
        mode=values.text("mode"),
        mode_where=values.who("mode"),
        override=mode_override(env),
        order=tuple(_order(plan, values)),
        verdict=tuple(verdict),
        values=tuple(Value(*row) for row in values.rows()),
    )


def _unclaimed(shown_url: str, url: str, configuration: Configuration, written: Written) -> Explanation:
    if (reason := unclaimable(url)) is not None:
        return Explanation(shown_url, unclaimed=(reason,))
    near = nearest(url, configuration, written)
    if near is None:
        return Explanation(shown_url, unclaimed=("no upstream has this host, or one like it",))
    mark = written.mark(("upstreams", near.upstream, *near.path))
    return Explanation(
        shown_url,
        by=dotted(near.path),
        prefix=url_of(near.prefix),
        where=f"{mark.file}:{mark.line}" if mark.line else mark.file,
        unclaimed=near.differs,
        nearest=near.upstream,
    )


def _fallback(plan: UpstreamPlan, values: EffectiveValues) -> str:
    if values.is_given("fallback", "upstream"):
        return f"upstream {values.text('fallback', 'upstream')} is asked"
    return f"the fallback, a {values.text('fallback', 'status')}"


def _order(plan: UpstreamPlan, values: EffectiveValues) -> Iterator[Step]:
    """ "Life of a call": the fixed order, with the limits that apply at each step."""
    text = values.text
    size = text("pool", "max_connections")
    if plan.pool.adaptive is not None:
        size = f"{text('pool', 'adaptive', 'min')} to {size}"
    judge = (
        ""
        if plan.circuit_breaker.failure_if is None
        else f", or {text('circuit_breaker', 'failure_if')} says so"
    )
    refused = "" if plan.fallback is None else f"; refused: {_fallback(plan, values)}"
    steps = [
        ("snapshot", "the configuration in force is read once, for the whole call"),
        ("upstream", f"by URL or by handle: {plan.name}"),
        ("deadline", f"{text('timeouts', 'deadline')} for everything below"),
        ("retry", f"up to {text('retry', 'max_attempts')} attempts, and what the budget allows"),
        ("breaker", f"a permit of the circuit ({text('circuit_breaker', 'mode')}){refused}"),
        (
            "lease",
            f"a connection out of {size}, waited for {text('timeouts', 'acquire')}",
        ),
        (
            "attempt",
            f"{text('timeouts', 'attempt')}, of it connect {text('timeouts', 'connect')}"
            + ("" if plan.tls is None else f", TLS handshake {text('timeouts', 'tls_handshake')}")
            + ("" if plan.timeouts.caller == "honour" else "; a call's own timeout= changes nothing"),
        ),
        ("outcome", "an answer or a fault, noted where the transport ends"),
        ("classify", f"failure of the upstream? {text('circuit_breaker', 'failure_on')}{judge}"),
        ("decision", f"retry on {text('retry', 'retry_on')}, or finish"),
    ]
    yield from (Step(name, words) for name, words in steps)
