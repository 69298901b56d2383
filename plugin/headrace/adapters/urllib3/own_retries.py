"""What a caller's `Retry` says: retries of his own, or only how far to follow redirects."""

from __future__ import annotations

from urllib3.util.retry import Retry

from headrace.observe.events import RetriesDelegated
from headrace.observe.logs import emit
from headrace.runtime.upstream import Upstream
from headrace.transport.call_site import call_site


class RedirectsOnly(Retry):
    """What is left for urllib3 where headrace decides about attempts: following redirects, as many as it would.

    An error that gets this far ends the call, as MaxRetryError where stock raises one.
    """


def retries_itself(retries: object) -> bool:
    """Whether *retries* makes further attempts after errors or answers: then headrace makes one attempt per try."""
    if not isinstance(retries, Retry) or isinstance(retries, RedirectsOnly):
        return False
    for one in retries.history:
        if one.redirect_location is None:
            return True  # in the midst of its tries, perhaps the last of them
    if retries.total is False or (retries.total is not None and retries.total + len(retries.history) <= 0):
        return False
    limits = (retries.connect, retries.read, retries.status, retries.other)
    return any(limit is None or limit > 0 for limit in limits)


def is_default(retries: Retry) -> bool:
    """Whether nobody asked for *retries*: urllib3's own default, or what redirects have left of it."""
    default = Retry.DEFAULT
    if retries is default:
        return True
    hops = len(retries.history)
    # `request(…, retries=None)` makes PoolManager count redirects down from the default itself.
    return (
        hops > 0
        and all(one.redirect_location for one in retries.history)
        and default.total is not None
        and retries.total == default.total - hops
        and not retries.status_forcelist
        and (retries.connect, retries.read, retries.status, retries.other)
        == (default.connect, default.read, default.status, default.other)
    )


def redirects_only(retries: Retry) -> RedirectsOnly:
    """*retries* without its further attempts."""
    # 20 calls: kept for the one object that nearly every call comes with.
    global _kept
    if retries is _kept[0]:
        return _kept[1]
    made = RedirectsOnly(
        total=retries.total,
        redirect=retries.redirect,
        connect=0,
        read=0,
        status=0,
        other=0,
        history=retries.history,
        raise_on_redirect=retries.raise_on_redirect,
        remove_headers_on_redirect=retries.remove_headers_on_redirect,
        # Else a 503 that asks for patience would be an error here; it is the answer that headrace ended with.
        respect_retry_after_header=False,
    )
    if not retries.history:
        _kept = (retries, made)
    return made


def unsent_only(retries: Retry) -> Retry:
    """*retries* for a body that can be sent once: connecting may be tried again, what may have arrived is not.

    urllib3 would send a used-up iterator again, as an empty body. It ends as if the retries had been
    used up: with the error or exception that a caller of such retries expects, or the answer.
    """
    return retries.new(read=False if retries.read is False else 0, status=0, other=0)


def count_delegated(upstream: Upstream) -> None:
    """Count a try of a caller who retries himself, and say so once per call site."""
    counters = upstream.state.counters
    with counters.lock:
        counters.retries_delegated += 1
    site = call_site()
    if upstream.service.is_first("retries_delegated", site):
        emit(RetriesDelegated(upstream=upstream.plan.name, call_site=site))


_kept: tuple[Retry | None, RedirectsOnly] = (None, RedirectsOnly(0))
