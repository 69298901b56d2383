"""Why no upstream claims a URL: the prefix that comes nearest to it, and in what the two differ."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import SequenceMatcher

from headrace.config.source.written import Written
from headrace.policy.frozen import frozen
from headrace.policy.plan import Configuration, UrlPrefix
from headrace.policy.routes import DEFAULT_PORT, target_of, url_of

_NEAR_HOST = 0.75
"""Two names that are more alike than that may be one with a slip of the keyboard."""


@frozen
class Nearest:
    """The prefix of an upstream that nearly claims a URL.

    Attributes:
        path: Where it stands below the upstream: `base_url`, or `match` with its number.
        differs: In what, a sentence for each.
    """

    upstream: str
    path: tuple[str | int, ...]
    prefix: UrlPrefix
    differs: tuple[str, ...]


def unclaimable(url: str) -> str | None:
    """Why no rule could ever claim *url*, whatever the file says, or None."""
    scheme = url.partition("://")[0].lower()
    if scheme not in DEFAULT_PORT:
        return f"rules govern http and https, and this is {scheme}"
    if target_of(url) is None:
        return "programs disagree about the host that it goes to, so no rule claims it"
    return None


def nearest(url: str, configuration: Configuration, written: Written) -> Nearest | None:
    """The nearest prefix to *url*, which none claims, or None where no host is like that of *url*.

    A prefix that is a secret is never told.
    """
    target = target_of(url)
    if target is None:
        return None
    found = [
        (rank, Nearest(name, path, prefix, tuple(_differences(target, prefix))))
        for name, path, prefix in _claims(configuration)
        if not written.is_secret(("upstreams", name, *path)) and (rank := _rank(target, prefix)) is not None
    ]
    return max(found, key=lambda one: one[0])[1] if found else None


def _claims(configuration: Configuration) -> Iterator[tuple[str, tuple[str | int, ...], UrlPrefix]]:
    for name, plan in configuration.upstreams.items():
        yield name, ("base_url",), plan.base
        for index, prefix in enumerate(plan.match):
            yield name, ("match", index), prefix


def _rank(target: UrlPrefix, prefix: UrlPrefix) -> tuple[float, bool, bool, int] | None:
    """How near *prefix* is: the host first, then scheme and port, then how much of the path; None: not at all."""
    ours, theirs = target.origin.host, prefix.origin.host
    likeness = 1.0 if ours == theirs else SequenceMatcher(None, ours, theirs).ratio()
    if likeness < _NEAR_HOST and not (ours.endswith(f".{theirs}") or theirs.endswith(f".{ours}")):
        return None
    return (
        likeness,
        target.origin.scheme == prefix.origin.scheme,
        target.origin.port == prefix.origin.port,
        _common(target.segments, prefix.segments),
    )


def _differences(target: UrlPrefix, prefix: UrlPrefix) -> Iterator[str]:
    ours, theirs = target.origin, prefix.origin
    if ours.host != theirs.host:
        yield f"its host is {theirs.host}, not {ours.host}"
    if ours.scheme != theirs.scheme:
        yield f"its scheme is {theirs.scheme}, not {ours.scheme}"
    follows = ours.scheme != theirs.scheme and all(
        one.port == DEFAULT_PORT[one.scheme] for one in (ours, theirs)
    )
    if ours.port != theirs.port and not follows:
        yield f"its port is {_port(theirs.scheme, theirs.port)}, not {_port(ours.scheme, ours.port)}"
    if target.segments[: len(prefix.segments)] != prefix.segments:
        yield f"its paths begin with {_path(prefix)}, and this one is {_path(target)}"


def _port(scheme: str, port: int) -> str:
    return f"{port} (that of {scheme})" if DEFAULT_PORT[scheme] == port else str(port)


def _path(prefix: UrlPrefix) -> str:
    return re.sub(r"^[a-z]+://[^/]*", "", url_of(prefix)) or "/"


def _common(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    return next(
        (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
