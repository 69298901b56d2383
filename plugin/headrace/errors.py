"""What headrace raises, without any HTTP library: the plain classes.

`headrace.adapters.twins` pairs each of them with the class that callers of
requests or urllib3 already catch. Those pairs are what leaves headrace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from headrace.policy.record import AttemptRecord


class HeadraceError(Exception):
    """Base of everything headrace raises."""


class Problem(Protocol):
    """One thing that is wrong with a configuration; `str()` is its whole text.

    Attributes:
        file: The file as it was named, `environment NAME`, or a file of the secrets directory.
        line, column: From 1; 0 where there is none.
        path: The key with dots, or "" for the file as a whole.
        message: What is wrong and what was found.
        fix: What to write instead, or "" when only the author can know.
    """

    @property
    def file(self) -> str: ...
    @property
    def line(self) -> int: ...
    @property
    def column(self) -> int: ...
    @property
    def path(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def fix(self) -> str: ...


class ConfigError(HeadraceError):
    """A configuration that cannot be taken into force.

    Attributes:
        problems: All problems found, sorted by file and line; never empty.
        watched: Absolute paths of what was read, or should have been. When one changes, another try makes sense.
    """

    def __init__(
        self, message: str, *, problems: Sequence[Problem] = (), watched: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.problems: tuple[Problem, ...] = tuple(problems)
        self.watched: tuple[str, ...] = tuple(watched)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


class UnknownUpstream(HeadraceError, LookupError):
    """A name that the file in force does not have."""


class UpstreamError(HeadraceError):
    """A governed call that headrace itself ended.

    Attributes:
        upstream: Name of the upstream.
        attempts: Records of the attempts made, oldest first; empty when none was made.
        request_id: The id that every attempt carried, or None when none was sent.
    """

    upstream: str
    attempts: tuple[AttemptRecord, ...]
    request_id: str | None

    def __init__(
        self,
        message: str,
        *,
        upstream: str = "",
        attempts: Sequence[AttemptRecord] = (),
        request_id: str | None = None,
        **family: Any,
    ) -> None:
        # *family* is what the requests or urllib3 class beside us would have set (request=…, pool=…). The __init__ of
        # that class is not called: these classes disagree about positions, and this one line serves them all.
        Exception.__init__(self, message)
        self.__dict__.update(family)
        self.upstream = upstream
        self.attempts = tuple(attempts)
        self.request_id = request_id

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls the class with (*args), which loses the keywords. urllib3's own reduces differ again.
        state = self.__dict__
        if "pool" in state:
            state = {**state, "pool": None}  # the pool holds locks; stock leaves it out as well
        return _rebuild, (type(self), self.args, state)


class CircuitOpenError(UpstreamError):
    """Refused without a send: the circuit is open, or half open with no place left.

    Attributes:
        retry_after_s: Seconds until a probe may be admitted, >= 0.
    """

    def __init__(self, message: str, *, retry_after_s: float = 0.0, **rest: Any) -> None:
        super().__init__(message, **rest)
        self.retry_after_s: float = retry_after_s


class DeadlineExceeded(UpstreamError):
    """The whole call ran out of time.

    Attributes:
        deadline_s: The deadline in force for the call, seconds from its start; 0: it had passed before.
    """

    def __init__(self, message: str, *, deadline_s: float = 0.0, **rest: Any) -> None:
        super().__init__(message, **rest)
        self.deadline_s: float = deadline_s


class CallCancelled(UpstreamError):
    """Broken off, or not begun: the client of the inbound request has left (`service.cancel_on_disconnect`)."""


class ResponseTooLarge(UpstreamError):
    """The body of the answer is larger than `pool.max_response_body`; what there is of it is dropped.

    Attributes:
        max_bytes: The limit, in decoded bytes.
    """

    def __init__(self, message: str, *, max_bytes: int = 0, **rest: Any) -> None:
        super().__init__(message, **rest)
        self.max_bytes: int = max_bytes


class IdentityMismatch(UpstreamError):
    """The certificate of the server is sound, and names none of `tls.identities`. Nothing was sent.

    Attributes:
        offered: The URIs and DNS names of the certificate, fit to be printed; the first few.
        wanted: Those that are accepted.
    """

    def __init__(
        self, message: str, *, offered: Sequence[str] = (), wanted: Sequence[str] = (), **rest: Any
    ) -> None:
        super().__init__(message, **rest)
        self.offered: tuple[str, ...] = tuple(offered)
        self.wanted: tuple[str, ...] = tuple(wanted)


class TransportError(HeadraceError):
    """The last attempt of an awaited call has no answer: what has ended it is its `__cause__`.

    Attributes:
        upstream: Name of the upstream.
        fault: The same in the words of the rules: `connect_failure`, `reset`, `timeout` …
    """

    def __init__(self, message: str, *, upstream: str = "", fault: str = "") -> None:
        super().__init__(message)
        self.upstream: str = upstream
        self.fault: str = fault

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


class TransportTimeout(TransportError, TimeoutError):
    """Something of it has taken too long: look-up, connect, handshake, silence, the attempt."""


class TransportBroken(TransportError, ConnectionError):
    """It could not be made, was refused, or broke."""


class StatusError(HeadraceError):
    """`raise_for_status()` of an awaited answer.

    Attributes:
        response: The answer; it is read if it was not streamed.
    """

    def __init__(self, message: str, *, response: Any = None) -> None:
        super().__init__(message)
        self.response = response

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, {**self.__dict__, "response": None})


class PoolTimeout(UpstreamError):
    """No connection came free within `timeouts.acquire`."""


class PoolRejected(UpstreamError):
    """The pool was full and `when_full` or `max_waiting` said not to wait."""


def _rebuild(cls: type[HeadraceError], args: tuple[Any, ...], state: dict[str, Any]) -> HeadraceError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error
