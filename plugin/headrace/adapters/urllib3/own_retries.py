"""What a caller's `Retry` says: that the caller retries by itself, or only how far to follow redirects."""

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
            return True  # in the middle of its tries, perhaps at the last one
    if retries.total is False or (retries.total is not None and retries.total + len(retries.history) <= 0):
        return False
    limits = (retries.connect, retries.read, retries.status, retries.other)
    return any(limit is None or limit > 0 for limit in limits)


def is_default(retries: Retry) -> bool:
    """Whether the caller has not asked for *retries*: urllib3's own default, or what redirects have left of it."""
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
    # It costs 20 calls, so it is kept for the one object that nearly every call comes with.
    global _made_last
    if retries is _made_last[0]:
        return _made_last[1]
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
        # With it, a 503 that asks for patience would be an error here. It is the answer that headrace ended with.
        respect_retry_after_header=False,
    )
    if not retries.history:
        _made_last = (retries, made)
    return made


def unsent_only(retries: Retry) -> Retry:
    """*retries* for a body that can be sent once. A connect may be tried again, a request that may have arrived not.

    urllib3 would send a used-up iterator again, as an empty body. The call ends as if the retries had been
    used up: with the answer, or with the exception that a caller of such retries expects.
    """
    return retries.new(read=False if retries.read is False else 0, status=0, other=0)


def count_delegated(upstream: Upstream) -> None:
    """Count a try of a caller that retries by itself, and say so once per call site."""
    counters = upstream.learned.counters
    with counters.lock:
        counters.retries_delegated += 1
    site = call_site()
    if upstream.service.is_first("retries_delegated", site):
        emit(RetriesDelegated(upstream=upstream.plan.name, call_site=site))


_made_last: tuple[Retry | None, RedirectsOnly] = (None, RedirectsOnly(0))
