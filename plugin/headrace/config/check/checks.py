"""Cross-checks: values that are good by themselves and make no sense together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from headrace.config.check.exposure import has_https
from headrace.config.check.problems import Path, Problem, dotted
from headrace.config.explain.keys import yaml_text
from headrace.config.settings import CircuitBreaker, Pool, Service, Settings, Tls, Upstream
from headrace.config.source.tree import MASK, Table, key_mark_of, node_at, problem_at
from headrace.config.source.units import format_duration
from headrace.config.source.written import Written
from headrace.policy.plan import UrlPrefix
from headrace.policy.routes import url_of


def cross_check(settings: Settings, written: Written) -> Iterator[Problem]:
    """Every contradiction in *settings*, as far as the values involved are valid."""
    yield from _ordered(
        written,
        ("reload", "debounce"),
        settings.reload.debounce,
        ("reload", "max_delay"),
        settings.reload.max_delay,
        "so it could never apply",
    )
    yield from _service(settings.service, written)
    for name, upstream in settings.upstreams.items():
        base: Path = ("upstreams", name)
        yield from _propagate(settings.service, upstream, base, written)
        yield from _times(upstream, base, written)
        yield from _breaker(upstream, base, written)
        yield from _pool(upstream.pool, (*base, "pool"), written)
        yield from _adaptive(upstream.pool, (*base, "pool"), written)
        yield from _tls(upstream, base, written)
        yield from _headers(upstream, base, written)
        yield from _retry_after(upstream, base, written)
        yield from _match(upstream, base, written)
    yield from _claims(settings, written)


def _service(service: Service, written: Written) -> Iterator[Problem]:
    deadline, request_id = service.deadline, service.request_id
    header, default = ("service", "deadline", "header"), ("service", "deadline", "default")
    if deadline.default is not None and deadline.default > deadline.max:
        longest = ("service", "deadline", "max")
        yield from _ordered(
            written,
            default,
            deadline.default,
            longest,
            deadline.max,
            "so it would be longer than any header's",
        )
    id_header = ("service", "request_id", "header")
    if (
        deadline.header is not None
        and deadline.header.lower() == request_id.header.lower()
        and written.is_usable(header, id_header)
    ):
        where = written.where(id_header, beside=written.mark(header))
        yield written.problem(
            header,
            f"is the header of the request id as well ({where})",
            "give it another, for example X-Request-Timeout",
        )
    source, accept = ("service", "request_id", "from"), ("service", "request_id", "accept")
    if request_id.from_ == "trace" and not request_id.accept and written.is_usable(source, accept):
        yield written.problem(
            source,
            f"takes the id of the caller's trace, and accept: false takes no id of a caller"
            f" ({written.where(accept, beside=written.mark(source))})",
            "remove it, or write beside it: accept: true",
        )


def _propagate(service: Service, upstream: Upstream, base: Path, written: Written) -> Iterator[Problem]:
    header, wanted = ("service", "deadline", "header"), (*base, "propagate", "deadline")
    if upstream.propagate.deadline and service.deadline.header is None and written.is_usable(header, wanted):
        yield written.problem(
            wanted,
            "true needs a header to send it in: that of service.deadline, which has none",
            "give service.deadline a header (for example X-Request-Timeout), or remove it",
        )


def _times(upstream: Upstream, base: Path, written: Written) -> Iterator[Problem]:
    timeouts, retry = upstream.timeouts, upstream.retry
    attempt = _attempt(upstream, base, written)
    deadline = (*base, "timeouts", "deadline")
    pairs: list[tuple[Path, float, Path, float]] = [
        ((*base, "timeouts", name), getattr(timeouts, name), attempt, timeouts.attempt)
        for name in ("connect", "tls_handshake", "write")
    ]
    if timeouts.deadline is not None:
        acquire = (*base, "timeouts", "acquire")
        pairs += [
            ((*base, "timeouts", "attempt"), timeouts.attempt, deadline, timeouts.deadline),
            (acquire, timeouts.acquire, deadline, timeouts.deadline),
        ]
    for inner, inner_s, outer, outer_s in pairs:
        # A default is cut to the limit around it (`settings.Timeouts`), so only a written value can be too long.
        if inner_s > outer_s and written.is_given(inner):
            yield from _ordered(written, inner, inner_s, outer, outer_s, "so it could never apply")
    if retry.backoff.base > retry.backoff.max:
        low, high = (*base, "retry", "backoff", "base"), (*base, "retry", "backoff", "max")
        yield from _ordered(
            written, low, retry.backoff.base, high, retry.backoff.max, "so no back-off would grow"
        )


def _attempt(upstream: Upstream, base: Path, written: Written) -> Path:
    """Where it is written how long an attempt may take."""
    path = (*base, "timeouts", "attempt")
    if not written.is_given(path) and upstream.timeouts.attempt == upstream.timeouts.deadline:
        # The default was cut to the deadline, and the deadline is the one that is written.
        return (*base, "timeouts", "deadline")
    return path


def _breaker(upstream: Upstream, base: Path, written: Written) -> Iterator[Problem]:
    attempt, attempt_s = _attempt(upstream, base, written), upstream.timeouts.attempt
    breaker, base = upstream.circuit_breaker, (*base, "circuit_breaker")
    yield from _window(breaker, base, written)
    open_for = breaker.open_for
    if open_for.base > open_for.max:
        low, high = (*base, "open_for", "base"), (*base, "open_for", "max")
        yield from _ordered(written, low, open_for.base, high, open_for.max, "so it would always be cut")
    probe_s = breaker.half_open.probe_timeout
    if probe_s is not None and probe_s < attempt_s:
        probe = (*base, "half_open", "probe_timeout")
        consequence = "so a probe would count as failed while its attempt still runs"
        yield from _ordered(written, attempt, attempt_s, probe, probe_s, consequence)
    slow_s = breaker.slow_call.duration
    if slow_s is not None:
        slow = (*base, "slow_call", "duration")
        yield from _ordered(written, slow, slow_s, attempt, attempt_s, "so it could never apply")


def _window(breaker: CircuitBreaker, base: Path, written: Written) -> Iterator[Problem]:
    window = breaker.window
    kind, size, max_age = ((*base, "window", name) for name in ("type", "size", "max_age"))
    counts = window.type == "count"
    if counts != isinstance(window.size, int) and written.is_usable(kind, size):
        found = written.shown(size, yaml_text(window.size))
        where = written.where(kind, beside=written.mark(size)) if written.is_given(kind) else "(the default)"
        what, wanted, other = (
            ("time", "a number of calls", "time") if counts else ("number of calls", "a time", "count")
        )
        yield written.problem_between(
            size,
            kind,
            f"{found} is a {what}, and the window's type {window.type} {where} wants {wanted}",
            f"write beside it: type: {other}, or give {wanted} (for example {100 if counts else '10s'})",
        )
    elif isinstance(window.size, int):
        yield from _ordered(
            written,
            (*base, "minimum_calls"),
            breaker.minimum_calls,
            size,
            window.size,
            "so it could never be reached",
            show=str,
        )
    if window.max_age is not None and not counts and written.is_usable(kind, max_age):
        where = (
            written.where(kind, beside=written.mark(max_age)) if written.is_given(kind) else "(the default)"
        )
        yield written.problem_between(
            max_age,
            kind,
            f"has no use: the window's type is {window.type} {where}, and its size is the age",
            "remove it, or write beside it: type: count",
        )


def _pool(pool: Pool, base: Path, written: Written) -> Iterator[Problem]:
    sizes = {name: (*base, name) for name in ("min_idle", "max_idle", "max_connections")}
    if pool.min_idle > pool.max_connections:
        yield from _ordered(
            written,
            sizes["min_idle"],
            pool.min_idle,
            sizes["max_connections"],
            pool.max_connections,
            "so it could never apply",
            show=str,
        )
    elif pool.min_idle > pool.max_idle:
        yield from _ordered(
            written,
            sizes["min_idle"],
            pool.min_idle,
            sizes["max_idle"],
            pool.max_idle,
            "so what is made would be closed again",
            show=str,
        )
    if pool.max_idle > pool.max_connections and written.is_given(sizes["max_idle"]):
        yield from _ordered(
            written,
            sizes["max_idle"],
            pool.max_idle,
            sizes["max_connections"],
            pool.max_connections,
            "so it could never apply",
            show=str,
        )
    lifetime, grace = (*base, "max_lifetime"), (*base, "max_lifetime_grace")
    if (
        pool.max_lifetime is None
        and pool.max_lifetime_grace is not None
        and written.is_usable(lifetime, grace)
    ):
        yield written.problem_between(
            grace,
            lifetime,
            f"has no use: max_lifetime is null ({written.where(lifetime, beside=written.mark(grace))})",
            "remove it, or give max_lifetime as well",
        )


def _adaptive(pool: Pool, base: Path, written: Written) -> Iterator[Problem]:
    adaptive, table, when_full = pool.adaptive, (*base, "adaptive"), (*base, "when_full")
    if adaptive is None:
        return
    if pool.when_full != "wait" and written.is_usable(table, when_full):
        if written.distance(table) <= written.distance(when_full):
            where = written.where(when_full, beside=written.mark(table))
            message = f"goes by who waits, so it needs when_full: wait; found {pool.when_full} {where}"
            fix = "write: when_full: wait, or remove adaptive"
            yield problem_at(key_mark_of(written.tree, table), written.origin(table), message, fix)
        else:
            where = written.where(table, beside=written.mark(when_full))
            message = f"{pool.when_full} lets nobody wait, and adaptive {where} goes by who waits"
            yield written.problem(when_full, message, "write: when_full: wait, or beside it: adaptive: null")
    yield from _ordered(
        written,
        (*table, "min"),
        adaptive.min,
        (*base, "max_connections"),
        pool.max_connections,
        "so it could never grow",
        show=str,
    )


def _ordered(
    written: Written,
    low: Path,
    low_s: float,
    high: Path,
    high_s: float,
    consequence: str,
    *,
    show: Callable[[Any], str] = format_duration,
) -> Iterator[Problem]:
    """*low* must not be longer than *high*. The problem is at the one that was written nearer to the upstream."""
    if low_s <= high_s or not written.is_usable(low, high):
        return
    at_low = written.distance(low) <= written.distance(high) and written.is_given(low)
    here, there = (low, high) if at_low else (high, low)
    here_s, there_s = (low_s, high_s) if at_low else (high_s, low_s)
    is_time = show is format_duration
    comparison = (
        ("longer than" if is_time else "more than")
        if at_low
        else ("shorter than" if is_time else "less than")
    )
    name = dotted(there[len(_common(here, there)) :])
    where = written.where(there, beside=written.mark(here)) if written.is_given(there) else "(the default)"
    there_text = written.shown(there, show(there_s))
    here_text = written.shown(here, show(here_s))
    if not at_low:
        # "so it …" speaks of the longer value, and the problem is not at that one.
        consequence = consequence.replace("so it", f"so {name}")
    fix = ""
    if written.distance(there) > written.distance(here) and MASK not in (here_text, there_text):
        fix = (
            f"write beside it: {there[-1]}: {here_text}"
            if here[:-1] == there[:-1]
            else f"give {name} as well"
        )
    yield written.problem(
        here, f"{here_text} is {comparison} the {name} {there_text} {where}, {consequence}", fix
    )


def _common(one: Path, other: Path) -> Path:
    length = 0
    while length < min(len(one), len(other)) - 1 and one[length] == other[length]:
        length += 1
    return one[:length]


def _tls(upstream: Upstream, base: Path, written: Written) -> Iterator[Problem]:
    table = (*base, "tls")
    verify, skip, cert, key = ((*table, name) for name in ("verify", "insecure_skip_verify", "cert", "key"))
    tls: Tls = upstream.tls
    if written.is_usable(verify, skip):
        if not tls.verify and not tls.insecure_skip_verify:
            yield written.problem_between(
                verify,
                skip,
                "false turns off every protection of TLS; that has to be said twice",
                "write: verify: true, or beside it: insecure_skip_verify: true",
            )
        if tls.verify and tls.insecure_skip_verify:
            yield written.problem_between(
                skip,
                verify,
                f"true contradicts verify: true ({written.where(verify, beside=written.mark(skip))})",
                "remove it, or write beside it: verify: false",
            )
    identities = (*table, "identities")
    if tls.identities and not tls.verify and written.is_usable(identities, verify):
        yield written.problem_between(
            identities,
            verify,
            f"cannot hold: with verify: false ({written.where(verify, beside=written.mark(identities))}) nobody has "
            "vouched for the certificate that they are compared with",
            "write: verify: true, and ca: with the file of the authority; or remove identities",
        )
    if tls.key is not None and tls.cert is None and written.is_usable(cert, key):
        yield written.problem(
            key, "is a key without a certificate", "write beside it: cert: with the certificate's file"
        )
    passphrase = (*table, "key_passphrase")
    if tls.key_passphrase is not None and tls.cert is None and written.is_usable(cert, passphrase):
        yield written.problem(
            passphrase,
            "is a passphrase without a key",
            "write beside it: cert: and key: with the files of certificate and key",
        )
    required = (*table, "require_client_certificate")
    is_missing = tls.require_client_certificate and tls.cert is None and has_https(upstream)
    if is_missing and written.is_usable(required, cert):
        yield written.problem_between(
            cert,
            required,
            "is missing: require_client_certificate "
            f"({written.where(required, beside=written.mark(cert))}) wants a client certificate",
            "write: cert: with its file (and key: with the file of its key)",
        )
    own = node_at(written.original, table)
    if written.is_usable((*base, "base_url"), table) and isinstance(own, Table) and own:
        prefixes = [upstream.base_url, *(upstream.match if written.is_usable((*base, "match")) else [])]
        if all(prefix.origin.scheme == "http" for prefix in prefixes):
            where = written.where((*base, "base_url"), beside=own.mark)
            yield problem_at(
                key_mark_of(written.original, table),
                table,
                f"has no use: the base_url {where} is http",
                "write https in base_url, or remove tls",
            )


def _headers(upstream: Upstream, base: Path, written: Written) -> Iterator[Problem]:
    path = (*base, "headers")
    for name, value in upstream.headers.items():
        if name.lower() == "connection" and value.lower() not in ("close", "keep-alive"):
            yield written.problem(
                (*path, name),
                "says only who closes the connection: close or keep-alive; anything else frames the message",
                f"write: {name}: close, or remove it",
            )
    node = node_at(written.tree, path)
    if not isinstance(node, Table):
        return
    seen: dict[str, str] = {}
    for name in node:
        other = seen.setdefault(name.lower(), name)
        if other != name:
            mark = key_mark_of(written.tree, (*path, name))
            where = written.where((*path, other), beside=mark)
            yield problem_at(
                mark,
                written.origin((*path, name)),
                f"is the header {other} {where} again; case makes no difference",
                "keep one of the two",
            )


def _retry_after(upstream: Upstream, base: Path, written: Written) -> Iterator[Problem]:
    path = (*base, "retry", "retry_after", "headers")
    seen: dict[str, Path] = {}
    for index, header in enumerate(upstream.retry.retry_after.headers):
        here = (*path, index, "name")
        first = seen.setdefault(header.name.lower(), here)
        if first != here and written.is_usable(path):
            yield written.problem(
                here,
                f"{written.shown(here, header.name)} is looked at already"
                f" {written.where(first, beside=written.mark(here))}, and the first counts",
                "keep one of the two",
            )


def _match(upstream: Upstream, base: Path, written: Written) -> Iterator[Problem]:
    scheme = upstream.base_url.origin.scheme
    for index, prefix in enumerate(upstream.match):
        path = (*base, "match", index)
        if prefix.origin.scheme != scheme and written.is_usable(path, (*base, "base_url")):
            yield written.problem(
                path,
                f"must have the scheme of base_url, {scheme}: one upstream has one tls",
                f"make it an upstream of its own, with extends: {base[1]}",
            )


def _claims(settings: Settings, written: Written) -> Iterator[Problem]:
    """Two upstreams, or one twice, claiming one URL prefix."""
    claimed: dict[UrlPrefix, Path] = {}
    for name, upstream in settings.upstreams.items():
        paths: list[tuple[Path, UrlPrefix]] = [(("upstreams", name, "base_url"), upstream.base_url)]
        paths += [
            (("upstreams", name, "match", index), prefix) for index, prefix in enumerate(upstream.match)
        ]
        for path, prefix in paths:
            if not written.is_usable(path):
                continue
            first = claimed.setdefault(prefix, path)
            if first == path:
                continue
            mark = written.mark(path)
            where = written.where(first, beside=mark)
            owner = "this upstream" if first[1] == name else f'the upstream "{first[1]}"'
            url = MASK if written.is_secret(path) or written.is_secret(first) else url_of(prefix)
            yield problem_at(
                mark,
                path,
                f"{url} is claimed by {owner} already, {where}",
                "keep it in one place, or give one a longer path",
            )
