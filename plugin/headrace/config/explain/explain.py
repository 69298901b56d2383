"""What the rules make of one URL, and which line says so: the text of `headrace explain`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from headrace.config.check.problems import dotted
from headrace.config.explain.effective import EffectiveValues
from headrace.config.explain.verdict import explain_method, explain_outcome
from headrace.config.load import Inspection
from headrace.config.source.sources import mode_override
from headrace.config.source.tree import MASK, without_user
from headrace.policy.outcome import Fault
from headrace.policy.plan import Configuration, UpstreamPlan, UrlPrefix
from headrace.policy.printable import printable
from headrace.policy.routes import RouteTable, url_of


def route_table(configuration: Configuration) -> RouteTable[UpstreamPlan]:
    """The routes of *configuration*, upstreams with `mode: off` included."""
    return RouteTable(
        (prefix, plan) for plan in configuration.upstreams.values() for prefix in (plan.base, *plan.match)
    )


def explain(
    inspection: Inspection,
    url: str,
    *,
    method: str | None = None,
    status: int | None = None,
    fault: Fault | None = None,
    env: Mapping[str, str],
) -> str:
    """The text for *url*: its upstream, the order of a call, every effective value and where it comes from.

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
        return f"{shown_url}\n  no upstream claims it: the call passes through ungoverned\n"
    prefix, plan = found
    values = EffectiveValues(settings, written, plan.name)
    lines = [
        shown_url,
        *_upstream_lines(values, prefix, plan, env),
        "",
        "a call, in this order",
        *_order(plan, values),
        "",
    ]
    if status is not None or fault is not None:
        lines += [*explain_outcome(values, plan, method or "GET", status=status, fault=fault, env=env), ""]
    elif method is not None:
        lines += [*explain_method(values, plan, method, env=env), ""]
    rows = list(values.rows())
    width = max(len(name) for name, _, _ in rows)
    value_width = min(max(len(value) for _, value, _ in rows), 36)
    lines += [
        "effective values",
        *(f"  {name:<{width}}  {value:<{value_width}}  {who}" for name, value, who in rows),
    ]
    return "\n".join(lines) + "\n"


def _upstream_lines(
    values: EffectiveValues, prefix: UrlPrefix, plan: UpstreamPlan, env: Mapping[str, str]
) -> Iterator[str]:
    if prefix == plan.base:
        path: tuple[str | int, ...] = ("base_url",)
    else:
        path = ("match", plan.match.index(prefix))
    shown = MASK if values.written.is_secret((*values.base, *path)) else url_of(prefix)
    yield f"  upstream {plan.name}, by {dotted(path)}: {shown} ({values.who(*path)})"
    yield f"  mode {values.text('mode')} ({values.who('mode')})"
    override = mode_override(env)
    if override is not None:
        yield f"  HEADRACE_MODE={override} is set here and overrides every mode"


def _fallback(plan: UpstreamPlan, values: EffectiveValues) -> str:
    if values.is_given("fallback", "upstream"):
        return f"upstream {values.text('fallback', 'upstream')} is asked"
    return f"the fallback, a {values.text('fallback', 'status')}"


def _order(plan: UpstreamPlan, values: EffectiveValues) -> Iterator[str]:
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
    if plan.mode == "off":
        yield "  mode is off: the call is left alone, none of what follows applies"
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
    for number, (name, words) in enumerate(steps, start=1):
        yield f"  {number:>2}. {name:<9} {words}"
