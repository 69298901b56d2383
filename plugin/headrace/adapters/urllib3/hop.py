"""Stock urllib3's loop around governed calls: a caller's own retries, redirects, the exceptions that callers know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import MaxRetryError, UnrewindableBodyError
from urllib3.response import BaseHTTPResponse
from urllib3.util.retry import Retry

from headrace.engine.tries import Tries
from headrace.errors import UpstreamError
from headrace.policy.plan import TimeoutPlan
from headrace.policy.record import Record
from headrace.runtime.carrying import add_notes, carried_by, carry
from headrace.runtime.upstream import Upstream


class RefusalInFlight(Exception):
    """Takes an error past stock's handlers. They would wrap some of our refusals, and they would take an error of the
    caller's own code for one of the network and try again."""


class _NoConnection:
    """Stands in for the connection that stock's `urlopen` leases: the governed call leases its own."""

    __slots__ = ("timeout",)
    proxy = None

    def close(self) -> None:
        """Nothing is open."""


class _NoTimeout:
    """Stands in for what stock would set on that connection: the limits of a governed call are its own."""

    connect_timeout = None


_NO_TIMEOUT = _NoTimeout()  # a clone of the call's timeout costs seven calls


class Hop(HTTPConnectionPool):
    """One hop of one call. Owned by one thread.

    Stock's `urlopen` runs on it unchanged. That keeps the caller's `Retry`, redirects
    and exceptions exactly as they are, without a copy of that loop here. Where stock
    would send, the governed call is made. Each attempt of that call is the `urlopen` of
    the upstream's pool with `retries=False, redirect=False`.

    Args:
        pool: What the caller's stock pool would be: its settings are those of this hop, its connections are not asked.

    Attributes:
        tries: What the tries of a caller with retries of its own share. None: headrace decides about attempts.
        record: What became of the last governed call, or None before its end.
        refusal: Our own error that ended the call, or one of the caller's own code, on its way out.
    """

    __slots__ = ("record", "refusal", "scheme", "timeouts", "tries", "upstream")

    def __init__(
        self, pool: HTTPConnectionPool, upstream: Upstream, timeouts: TimeoutPlan, tries: Tries | None
    ) -> None:
        # Stock's `__init__` is not called: it would make connections of its own. All that `urlopen` asks of a pool is
        # here.
        self.__dict__.update(pool.__dict__)
        self.scheme = pool.scheme
        self.upstream = upstream
        self.timeouts = timeouts
        self.tries = tries
        self.record: Record | None = None
        self.refusal: Exception | None = None

    def govern(
        self,
        method: str,
        url: str,
        body: Any,
        headers: Mapping[str, str] | None,
        response_kw: dict[str, Any],
    ) -> BaseHTTPResponse:
        """One governed call, or one try of it. Blocks; raises what `Call.run` does.

        Args:
            response_kw: `preload_content`, `decode_content`, `chunked` and what else stock's `urlopen` takes.
        """
        raise NotImplementedError

    def try_again(self, url: str) -> None:
        """Stock is about to make another try.

        Raises:
            MaxRetryError: The body is used up: it would go out empty.
        """
        if self.tries is not None and self.tries.is_body_spent and self.record is not None:
            raise MaxRetryError(self, url, UnrewindableBodyError(self.record.why))

    def _get_conn(self, timeout: float | None = None) -> Any:
        return _NoConnection()

    def _put_conn(self, conn: Any) -> None:
        """Nothing was leased."""

    def _get_timeout(self, timeout: Any) -> Any:
        return _NO_TIMEOUT

    def _make_request(  # type: ignore[override]
        self,
        conn: Any,
        method: str,
        url: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        retries: Retry | None = None,
        timeout: Any = None,
        chunked: bool = False,
        response_conn: Any = None,
        preload_content: bool = True,
        decode_content: bool = True,
        **response_kw: Any,
    ) -> BaseHTTPResponse:
        response_kw["preload_content"] = preload_content
        response_kw["decode_content"] = decode_content
        response_kw["chunked"] = chunked
        try:
            response = self.govern(method.upper(), url, body, headers, response_kw)
        except UpstreamError as error:
            self.refusal = error
            why = str(error)
        except Exception as error:
            self.record = carried_by(error)
            if not is_callers_own(error):
                raise
            self.refusal = error
            why = str(error)
        else:
            self.record = carried_by(response)
            response.retries = retries  # PoolManager counts redirects by it
            return response
        # With the words of the error: instrumentation around stock's urlopen writes them down.
        raise RefusalInFlight(why)

    def take_refusal(self) -> Exception:
        """The error that ended the call and that stock must not handle. This hop forgets it. Mutates."""
        refusal, self.refusal = self.refusal, None
        assert refusal is not None
        return refusal

    def tell(self, error: BaseException) -> None:
        """Put the record, and the story, on the error that stock has made of the end of this call. Mutates *error*."""
        if self.tries is not None and not isinstance(error, Exception):
            self.tries.interrupted()
        if self.record is None or not isinstance(error, Exception) or carried_by(error) is not None:
            return
        carry(self.record, on=error)
        for nested in _wrapped_in(error):
            if hasattr(nested, "__notes__"):
                del nested.__notes__  # told once, on the error that leaves
        add_notes(error, self.record.notes())


def is_callers_own(error: Exception) -> bool:
    """Whether *error* of a governed call is of the caller's own code. Errors of the network have a library's class."""
    return isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in (
        "requests",
        "urllib3",
    )


def _wrapped_in(error: BaseException) -> Iterator[BaseException]:
    """The governed calls' errors that stock has wrapped in *error*."""
    for nested in (*error.args, getattr(error, "reason", None)):
        if isinstance(nested, BaseException):
            if carried_by(nested) is not None:
                yield nested
            else:
                yield from _wrapped_in(nested)
