"""`headrace check --connect`: one upstream dialled, and what came of each step, for somebody who was woken up.

Each line is printed as soon as it is known: whoever waits sees for what. A value that the file has from a secret is
masked wherever it occurs; of a host that is one, neither addresses nor the names of its certificate are shown.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from math import isinf
from typing import Any, Final, TypeAlias, assert_never

from headrace.cli.printing import print_safely
from headrace.config import Inspection
from headrace.config.check.problems import did_you_mean
from headrace.config.source.tree import MASK
from headrace.config.source.units import format_duration
from headrace.policy.plan import Configuration, Origin, TlsPlan, UpstreamPlan
from headrace.policy.routes import url_of
from headrace.transport.trial import steps
from headrace.transport.trial_steps import (
    Again,
    Certificate,
    Connected,
    Failed,
    LookedUp,
    Secured,
    Step,
    Tried,
)

Line: TypeAlias = "tuple[str, str]"
"""What stands on the left, and what on the right of it; "" goes on with the line before."""

_WIDTH: Final = 12
_MOST_NAMED: Final = 20
_DAY_S: Final = 86_400.0


def named(name: str, configuration: Configuration) -> UpstreamPlan | None:
    """The upstream *name*; None, and a line that says which there are: there is none."""
    upstreams = configuration.upstreams
    if name in upstreams:
        return upstreams[name]
    near = did_you_mean(name, [*upstreams])
    there_are = ", ".join([*upstreams][:_MOST_NAMED]) + (", …" if len(upstreams) > _MOST_NAMED else "")
    meant = f"did you mean {near}? " if near else ""
    print_safely(
        f"headrace check: there is no upstream {name!r}; {meant}there are: {there_are or 'none'}",
        to=sys.stderr,
    )
    return None


def connect(inspection: Inspection, plan: UpstreamPlan, *, tells: bool) -> dict[str, Any]:
    """Dial each origin of *plan*, and return what came of it, fit for JSON. Blocks, within the limits of the upstream.

    Args:
        inspection: The one that *plan* is from.
        tells: Print each step as it comes.

    Raises:
        KeyboardInterrupt: Its text says what was under way.
    """
    limits = plan.timeouts
    mask = _Mask(inspection, plan)
    rules = {
        "resolve_s": limits.resolve_s,
        "connect_s": limits.connect_s,
        "tls_handshake_s": limits.tls_handshake_s,
    }
    if tells:
        _print(
            [("limits", ", ".join(f"{name[:-2]} {format_duration(value)}" for name, value in rules.items()))]
        )
        if plan.mode != "enforce":
            _print([("mode", f"{plan.mode}: calls by URL do not go by these rules yet; this check does")])
    origins = [_try(plan, origin, mask, tells=tells) for origin in _origins(plan)]
    good = all(one["good"] for one in origins)
    if tells:
        print_safely("good: nothing was sent" if good else "no good: see FAILED")
    return {"name": plan.name, "good": good, "limits": rules, "origins": origins}


def _origins(plan: UpstreamPlan) -> Sequence[Origin]:
    """The origin of `base_url`, and the further ones of `match`."""
    return [*dict.fromkeys((plan.base.origin, *(one.origin for one in plan.match)))]


def _try(plan: UpstreamPlan, origin: Origin, mask: _Mask, *, tells: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"url": mask.url(origin), "good": True}
    if tells:
        print_safely(f"\n{found['url']}")
    under_way = "looking up the name"
    try:
        for step in steps(plan, origin):
            found.update(mask.all(_facts(step), origin))
            if tells:
                _print(mask.lines(_lines(step, plan, origin), origin))
            match step:
                case LookedUp():
                    under_way = "connecting"
                case Connected():
                    under_way = "shaking hands"
                case Secured():
                    under_way = "waiting whether the server takes us, and shaking hands once more"
                case Again():
                    under_way = "closing"
                case Failed():
                    found["good"] = False
                case _:
                    assert_never(step)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{under_way} ({found['url']})") from None
    return found


def _print(lines: Iterable[Line]) -> None:
    for head, text in lines:
        print_safely(f"    {head:<{_WIDTH}} {text}")
    sys.stdout.flush()


# --- Words ----------------------------------------------------------------------------------------------

_WITHOUT: Final = (
    "some servers take calls without one: those that do not may say so to a request only (nginx: 400); "
    "then write tls.cert and tls.key"
)


def _lines(step: Step, plan: UpstreamPlan, origin: Origin) -> Iterator[Line]:
    match step:
        case LookedUp(took_s=took_s, addresses=addresses):
            count = f"{len(addresses)} address{'' if len(addresses) == 1 else 'es'}"
            yield "name", f"{origin.host}: {count}, after {_ms(took_s)}"
        case Connected(tried=tried):
            yield from _addresses(tried)
        case Secured():
            with_whom = f"with {step.address}, which was asked for {step.server_name}"
            yield "handshake", f"{_ms(step.took_s)} {with_whom}: {step.protocol}, {step.cipher}"
            yield from _chain(step.chain)
            if plan.tls is not None:
                yield from _identity(step, plan.tls)
                yield "client", _client(step, plan.tls)
                if plan.tls.cert is None and step.asked_for_certificate:
                    yield "", _WITHOUT
        case Again(resumed=resumed, took_s=took_s):
            said = "off: tls.session_resumption is false"
            if resumed is not None:
                word = "yes" if resumed else "no: the server made a full handshake again"
                said = f"{word}, {_ms(took_s)}"
            yield "resumption", said
        case Failed():
            yield from _addresses(step.tried)
            yield from _chain(step.chain)
            yield "FAILED", f"{step.outcome}: {step.text}"
            if step.advice:
                yield "what to do", step.advice
        case _:
            assert_never(step)


def _addresses(tried: Sequence[Tried]) -> Iterator[Line]:
    for number, one in enumerate(tried):
        came = one.problem or f"connected, {_ms(one.took_s)}"
        yield ("" if number else "addresses"), f"{one.address}  {came}"


def _chain(chain: Sequence[Certificate]) -> Iterator[Line]:
    for number, one in enumerate(chain):
        who = one.subject or ", ".join(one.names) or "nobody"
        yield ("" if number else "chain"), f"{who}; issued by {one.issuer or 'nobody'}; {_until(one)}"


def _identity(step: Secured, rules: TlsPlan) -> Iterator[Line]:
    names = f"the certificate names {', '.join(step.chain[0].names) or 'nobody'}" if step.chain else ""
    if not rules.verify:
        yield "identity", f"NOT verified: tls.verify is false; {names}".rstrip("; ")
    elif rules.identities:
        yield "identity", f"accepted: {names}; tls.identities wants {', '.join(rules.identities)}"
    else:
        yield "identity", f"{step.server_name} is verified; {names}".rstrip("; ")


def _client(step: Secured, rules: TlsPlan) -> str:
    asked = {
        True: "asked for by the server",
        False: "not asked for",
        None: "whether it is asked for cannot be told",
    }[step.asked_for_certificate]
    if rules.cert is None:
        return f"no certificate in tls.cert; {asked}"
    own = rules.certificate
    if own is None:
        return f"the certificate of {rules.cert}; {asked}"
    until = _day(own.not_after, own.not_before)
    return f"the certificate of {rules.cert} (sha256 {own.print}…), {until}; {asked}"


def _until(one: Certificate) -> str:
    return _day(one.not_after, one.not_before)


def _day(until: float, since: float) -> str:
    now = time.time()
    if isinf(until):
        return "no dates"
    if since > now:
        return f"NOT VALID before {_utc(since)}"
    left_s = until - now
    if left_s <= 0.0:
        return f"EXPIRED {_utc(until)}"
    left = f"{left_s / _DAY_S:.0f} days" if left_s >= 2 * _DAY_S else f"{left_s / 3600:.0f} hours"
    return f"expires {_utc(until)}, in {left}"


def _utc(instant: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(instant))
    except (OverflowError, ValueError, OSError):
        return "in a year that cannot be shown"


def _ms(took_s: float) -> str:
    return f"{took_s * 1000:.1f} ms"


# --- Facts, for JSON ------------------------------------------------------------------------------------


def _facts(step: Step) -> dict[str, Any]:
    match step:
        case LookedUp():
            return {"looked_up_s": step.took_s, "addresses": [{"address": one} for one in step.addresses]}
        case Connected():
            return {"addresses": _tried(step.tried)}
        case Secured():
            return {
                "handshake": {
                    "address": step.address,
                    "took_s": step.took_s,
                    "protocol": step.protocol,
                    "cipher": step.cipher,
                    "server_name": step.server_name,
                    "client_certificate_asked_for": step.asked_for_certificate,
                },
                "chain": [_certificate(one) for one in step.chain],
            }
        case Again():
            return {"resumption": {"resumed": step.resumed, "took_s": step.took_s}}
        case Failed():
            failure = {"outcome": step.outcome, "text": step.text, "advice": step.advice}
            more: dict[str, Any] = {"addresses": _tried(step.tried)} if step.tried else {}
            if step.chain:
                more["chain"] = [_certificate(one) for one in step.chain]
            return {**more, "failure": failure}
        case _:
            assert_never(step)


def _tried(tried: Sequence[Tried]) -> list[dict[str, Any]]:
    return [
        {
            "address": one.address,
            "connected": one.problem is None,
            "took_s": one.took_s,
            "problem": one.problem,
        }
        for one in tried
    ]


def _certificate(one: Certificate) -> dict[str, Any]:
    return {
        "subject": one.subject,
        "issuer": one.issuer,
        "names": list(one.names),
        "not_before": None if isinf(one.not_before) else one.not_before,
        "not_after": None if isinf(one.not_after) else one.not_after,
    }


# --- What must not be shown -----------------------------------------------------------------------------


class _Mask:
    """What of *plan* comes from secrets. Hides it."""

    def __init__(self, inspection: Inspection, plan: UpstreamPlan) -> None:
        written = inspection.written
        assert written is not None
        paths = [("base_url",), *(("match", index) for index in range(len(plan.match)))]
        prefixes = (plan.base, *plan.match)
        self._hosts = {
            prefix.origin
            for prefix, path in zip(prefixes, paths, strict=True)
            if written.is_secret(("upstreams", plan.name, *path))
        }
        self._urls = {prefix.origin: url_of(prefix) for prefix in reversed(prefixes)}
        secrets = {origin.host for origin in self._hosts}
        if plan.tls is not None:
            rules = plan.tls
            for path, value in (
                (("server_name",), rules.server_name),
                (("ca",), rules.ca),
                (("cert",), rules.cert),
                (("key",), rules.key),
                *((("identities", index), one) for index, one in enumerate(rules.identities)),
            ):
                if value and written.is_secret(("upstreams", plan.name, "tls", *path)):
                    secrets.add(value)
        self._secrets = sorted(secrets, key=len, reverse=True)

    def url(self, origin: Origin) -> str:
        """The URL of *origin*, as the file means it."""
        return MASK if origin in self._hosts else self.text(self._urls[origin])

    def text(self, text: str) -> str:
        """*text* without them."""
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return text

    def lines(self, lines: Iterable[Line], origin: Origin) -> Iterator[Line]:
        """*lines*, which tell of *origin*."""
        head = ""
        for shown, text in lines:
            head = shown or head
            if origin in self._hosts and head in ("addresses", "chain", "identity"):
                text = MASK
            elif origin in self._hosts and head in ("handshake", "FAILED"):
                text = text.partition(" with ")[0] if head == "handshake" else text.partition(";")[0]
            yield shown, self.text(text)

    def all(self, facts: Any, origin: Origin, key: str = "") -> Any:
        """The same of *facts*, for JSON."""
        if isinstance(facts, dict):
            return {name: self.all(value, origin, name) for name, value in facts.items()}
        if isinstance(facts, list):
            return [self.all(value, origin, key) for value in facts]
        if not isinstance(facts, str):
            return facts
        if origin in self._hosts and key in ("address", "subject", "names", "server_name"):
            return MASK
        if origin in self._hosts and key == "text":  # what comes behind names the certificate
            facts = facts.partition(";")[0]
        return self.text(facts)
