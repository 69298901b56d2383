"""What the rules make of one URL, and which line says so: the text of `headrace explain`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from headrace.config.keys import Key, key_at, yaml_text
from headrace.config.load import Inspection
from headrace.config.problems import Path, dotted
from headrace.config.settings import Pool, Settings, Timeouts
from headrace.config.sources import mode_override
from headrace.config.tree import MASK, leaves, node_at, without_user
from headrace.config.written import Rank, Written
from headrace.policy.outcome import condition
from headrace.policy.plan import Configuration, UpstreamPlan, UrlPrefix
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
    method: str = "GET",
    status: int | None = None,
    env: Mapping[str, str],
) -> str:
    """The text for *url*: its upstream, the order of a call, every effective value and where it comes from.

    Args:
        inspection: Without problems.
        status: Also say whether this answer would be retried and counted as failure.
        env: For HEADRACE_MODE.
    """
    configuration, settings, written = inspection.configuration, inspection.settings, inspection.written
    assert configuration is not None
    assert settings is not None
    assert written is not None
    shown_url = without_user(url)
    found = route_table(configuration).match_url(url)
    if found is None:
        return f"{shown_url}\n  no upstream claims it: the call passes through ungoverned\n"
    prefix, plan = found
    values = _Values(settings, written, plan.name)
    lines = [
        shown_url,
        *_upstream_lines(values, prefix, plan, env),
        "",
        "a call, in this order",
        *_order(plan, values),
        "",
    ]
    if status is not None:
        lines += [f"{method} answered with {status}", *_verdict(values, plan, method, status), ""]
    rows = list(values.rows())
    width = max(len(name) for name, _, _ in rows)
    value_width = min(max(len(value) for _, value, _ in rows), 36)
    lines += [
        "effective values",
        *(f"  {name:<{width}}  {value:<{value_width}}  {who}" for name, value, who in rows),
    ]
    return "\n".join(lines) + "\n"


_DEFAULTS = {"timeouts": Timeouts(), "pool": Pool()}
_LIMITS = {  # that cut a default
    "timeouts": (("timeouts", "deadline"), ("timeouts", "attempt")),
    "pool": (("pool", "max_connections"), ("pool", "idle_timeout")),
}


class _Values:
    """Effective values of one upstream as text, secrets masked, and who said so."""

    def __init__(self, settings: Settings, written: Written, name: str) -> None:
        self.settings = settings
        self.written = written
        self.base: Path = ("upstreams", name)

    def text(self, *path: str) -> str:
        around = _LIMITS[path[0]] if self._is_cut(path) else ()
        if any(self._is_hidden((*self.base, *limit)) for limit in (path, *around)):
            return MASK
        return _value_text(self._value(path))

    def who(self, *path: str | int) -> str:
        full = (*self.base, *path)
        written = self.written
        rank = written.rank(full)
        if rank is Rank.BUILT_IN:
            return "built-in default, cut to fit" if self._is_cut(path) else "built-in default"
        mark = written.mark(full)
        place = f"{mark.file}:{mark.line}" if mark.line else mark.file
        if rank is Rank.OWN:
            return place
        origin = written.origin(full)
        source = "defaults" if origin[0] == "defaults" else f"extends {origin[1]}"
        return f"{source}, {place}"

    def _value(self, path: tuple[str, ...]) -> Any:
        value: Any = self.settings.upstreams[str(self.base[1])]
        for part in path:
            value = value[part] if isinstance(value, dict) else getattr(value, part)
        return value

    def _is_cut(self, path: tuple[str | int, ...]) -> bool:
        """Whether the value at *path* is a default that a written limit around it has cut (`settings.Timeouts`)."""
        section, default = str(path[0]), _DEFAULTS.get(str(path[0]))
        if default is None or len(path) != 2 or self.written.is_given((*self.base, *path)):
            return False
        name, upstream = str(path[1]), self.settings.upstreams[str(self.base[1])]
        return bool(getattr(getattr(upstream, section), name) != getattr(default, name))

    def rows(self) -> Iterator[tuple[str, str, str]]:
        key = key_at(self.base)
        assert key is not None
        yield from self._rows(key, ())

    def _rows(self, parent: Key, path: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
        for name, key in parent.children.items():
            full = (*path, name)
            if key.children and not (key.is_nullable and self._value(full) is None):
                yield from self._rows(key, full)
            elif full == ("headers",) and (headers := self.settings.upstreams[str(self.base[1])].headers):
                for header in headers:
                    yield f"headers.{header}", MASK, self.who("headers", header)
            else:
                yield dotted(full), self.text(*full), self.who(*full)

    def _is_hidden(self, path: Path) -> bool:
        node = node_at(self.written.tree, path)
        if node is None:
            return False
        for below, leaf in leaves(node, path):
            key = key_at(below)
            # A number or a word of ours that a HEADRACE_ variable has set is no secret; text may be one.
            harmless = (
                leaf.mark.file.startswith("environment ") and key is not None and not _may_be_secret(key)
            )
            if leaf.secret and not harmless:
                return True
        return False


def _may_be_secret(key: Key) -> bool:
    return key.is_text and not key.choices


def _value_text(value: Any) -> str:
    if isinstance(value, UrlPrefix):
        return url_of(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_value_text, value))}]"
    return yaml_text(value)


def _upstream_lines(
    values: _Values, prefix: UrlPrefix, plan: UpstreamPlan, env: Mapping[str, str]
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


def _order(plan: UpstreamPlan, values: _Values) -> Iterator[str]:
    """ "Life of a call": the fixed order, with the limits that apply at each step."""
    text = values.text
    size = text("pool", "max_connections")
    if plan.pool.adaptive is not None:
        size = f"{text('pool', 'adaptive', 'min')} to {size}"
    if plan.mode == "off":
        yield "  mode is off: the call is left alone, none of what follows applies"
    steps = [
        ("snapshot", "the configuration in force is read once, for the whole call"),
        ("upstream", f"by URL or by handle: {plan.name}"),
        ("deadline", f"{text('timeouts', 'deadline')} for everything below"),
        ("retry", f"up to {text('retry', 'max_attempts')} attempts, and what the budget allows"),
        ("breaker", f"a permit of the circuit ({text('circuit_breaker', 'mode')})"),
        (
            "lease",
            f"a connection out of {size}, waited for {text('timeouts', 'acquire')}",
        ),
        ("attempt", f"{text('timeouts', 'attempt')}, of it connect {text('timeouts', 'connect')}"),
        ("outcome", "an answer or a fault, noted where the transport ends"),
        ("classify", f"failure of the upstream? {text('circuit_breaker', 'failure_on')}"),
        ("decision", f"retry on {text('retry', 'retry_on')}, or finish"),
    ]
    for number, (name, words) in enumerate(steps, start=1):
        yield f"  {number:>2}. {name:<9} {words}"


_UNENFORCED = {
    "observe": ", but the breaker only observes",
    "forced_open": ", but the breaker is forced open",
    "disabled": ", but the breaker is disabled",
}


def _verdict(values: _Values, plan: UpstreamPlan, method: str, status: int) -> Iterator[str]:
    yield f"  retried: {_retried(values, plan, method, status)}"
    word = _deciding_word(values, ("circuit_breaker", "failure_on"), status)
    if word is None:
        where = values.who("circuit_breaker", "failure_on")
        yield f"  counted as success: {status} is not in circuit_breaker.failure_on ({where})"
    else:
        yield f"  counted as failure: {word}{_UNENFORCED.get(plan.circuit_breaker.mode, '')}"


def _retried(values: _Values, plan: UpstreamPlan, method: str, status: int) -> str:
    word = _deciding_word(values, ("retry", "retry_on"), status)
    if word is None:
        return f"no, {status} is not in retry.retry_on ({values.who('retry', 'retry_on')})"
    if plan.retry.max_attempts == 1:
        return f"no, retry.max_attempts is 1 ({values.who('retry', 'max_attempts')})"
    if method not in plan.retry.methods:
        where = values.who("retry", "methods")
        return f"no, {method} is not in retry.methods ({where}) and an answer means that it was sent"
    return f"yes, {word}; while attempts, budget, deadline and circuit allow"


def _deciding_word(values: _Values, path: tuple[str, str], status: int) -> str | None:
    """`retry.retry_on has 5xx (upstreams.yaml:12)`, or None when no word covers *status*."""
    upstream = values.settings.upstreams[str(values.base[1])]
    words = getattr(getattr(upstream, path[0]), path[1])
    for index, word in enumerate(words):
        if status in condition([word]).statuses:
            is_given = values.written.is_given((*values.base, *path))
            who = values.who(*path, index) if is_given else values.who(*path)
            return f"{dotted(path)} has {word} ({who})"
    return None
