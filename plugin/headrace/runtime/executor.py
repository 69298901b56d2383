"""Work that an executor runs on another thread belongs to the inbound request that handed it in.

`PropagatingExecutor` wraps an executor of the application. It owns nothing and has no lock: the executor inside does
the work, and ends when the wrapper is shut down.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from contextvars import copy_context
from typing import Any, ParamSpec, TypeVar

from headrace.runtime.inbound import propagate

P = ParamSpec("P")
T = TypeVar("T")

_PICKLING = tuple(
    kind
    for name in ("ProcessPoolExecutor", "InterpreterPoolExecutor")
    if (kind := getattr(concurrent.futures, name, None)) is not None
)
"""Executors that pickle their work, which cannot be done to a context. The second one came with Python 3.14."""


class PropagatingExecutor(concurrent.futures.Executor):
    """*executor*, whose work runs as part of the inbound request that hands it in.

    `submit`, `map` and `loop.run_in_executor(…)` carry the request's id, deadline and allowance of retries, and every
    other context variable, to the thread. `shutdown` and `with` shut *executor* down. Outside of a request, *executor*
    works as it always does.

    Raises:
        TypeError: *executor* runs its work in other processes or interpreters.
    """

    def __init__(self, executor: concurrent.futures.Executor) -> None:
        if isinstance(executor, _PICKLING):
            raise TypeError(
                f"{type(executor).__name__} runs its work outside of this interpreter, where the inbound request "
                f"does not exist; use a ThreadPoolExecutor, or pass on headrace.request_id() as an argument"
            )
        self._executor = executor

    def submit(
        self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> concurrent.futures.Future[T]:
        """As `Executor.submit`."""
        run: Any = copy_context().run
        return self._executor.submit(run, function, *args, **kwargs)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        **more: Any,
    ) -> Iterator[T]:
        """As `Executor.map`; *more* holds what newer Pythons add (3.14: `buffersize`)."""
        return self._executor.map(propagate(fn), *iterables, timeout=timeout, chunksize=chunksize, **more)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As `Executor.shutdown`, of the executor inside."""
        self._executor.shutdown(wait, cancel_futures=cancel_futures)

    def __repr__(self) -> str:
        return f"<PropagatingExecutor over {self._executor!r}>"
