"""headrace: one validated upstreams.yaml governs every outbound call of an ASGI or WSGI app.

A public name is imported when it is first asked for. `headrace --help` need not import requests and pydantic, and a
program loads the middleware of its own side only.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if (
    TYPE_CHECKING
):  # what type checkers and editors read; the table below says the same, and a test compares them
    from headrace.adapters.aio.answer import Answer as AwaitedAnswer
    from headrace.adapters.aio.handle import Awaited as AwaitedHandle
    from headrace.adapters.handles import Handle
    from headrace.adapters.streamed import detach
    from headrace.app import Headrace, current
    from headrace.app import start_from as install
    from headrace.errors import (
        CallCancelled,
        CircuitOpenError,
        ConfigError,
        DeadlineExceeded,
        HeadraceError,
        IdentityMismatch,
        PoolRejected,
        PoolTimeout,
        ResponseTooLarge,
        StatusError,
        TransportBroken,
        TransportError,
        TransportTimeout,
        UnknownUpstream,
        UpstreamError,
    )
    from headrace.middleware.asgi import ASGIMiddleware
    from headrace.middleware.mapping import asgi_problem, map_errors
    from headrace.middleware.problems import problem
    from headrace.middleware.wsgi import WSGIMiddleware
    from headrace.observe.logs import RequestIdFilter
    from headrace.policy.decision import EndReason
    from headrace.policy.record import AttemptRecord, Record
    from headrace.runtime.carrying import record_of
    from headrace.runtime.executor import PropagatingExecutor
    from headrace.runtime.inbound import propagate, request_id
else:
    _HOMES = {  # module: the names that it gives; `name=other` is *other* under a public *name*
        "headrace.adapters.aio.answer": "AwaitedAnswer=Answer",
        "headrace.adapters.aio.handle": "AwaitedHandle=Awaited",
        "headrace.adapters.handles": "Handle",
        "headrace.adapters.streamed": "detach",
        "headrace.app": "Headrace current install=start_from",
        "headrace.errors": "CallCancelled CircuitOpenError ConfigError DeadlineExceeded HeadraceError"
        " IdentityMismatch PoolRejected PoolTimeout ResponseTooLarge StatusError TransportBroken TransportError"
        " TransportTimeout UnknownUpstream UpstreamError",
        "headrace.middleware.asgi": "ASGIMiddleware",
        "headrace.middleware.mapping": "asgi_problem map_errors",
        "headrace.middleware.problems": "problem",
        "headrace.middleware.wsgi": "WSGIMiddleware",
        "headrace.observe.logs": "RequestIdFilter",
        "headrace.policy.decision": "EndReason",
        "headrace.policy.record": "AttemptRecord Record",
        "headrace.runtime.carrying": "record_of",
        "headrace.runtime.executor": "PropagatingExecutor",
        "headrace.runtime.inbound": "propagate request_id",
    }
    _WHERE = {
        name.partition("=")[0]: (module, name.rpartition("=")[2])
        for module, names in _HOMES.items()
        for name in names.split()
    }

    def __getattr__(name):
        if name not in _WHERE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, its_name = _WHERE[name]
        value = getattr(import_module(module), its_name)
        globals()[name] = value  # the next look finds it without coming here
        return value

    def __dir__():
        return sorted({*globals(), *_WHERE})


__all__ = [
    "ASGIMiddleware",
    "AttemptRecord",
    "AwaitedAnswer",
    "AwaitedHandle",
    "CallCancelled",
    "CircuitOpenError",
    "ConfigError",
    "DeadlineExceeded",
    "EndReason",
    "Handle",
    "Headrace",
    "HeadraceError",
    "IdentityMismatch",
    "PoolRejected",
    "PoolTimeout",
    "PropagatingExecutor",
    "Record",
    "RequestIdFilter",
    "ResponseTooLarge",
    "StatusError",
    "TransportBroken",
    "TransportError",
    "TransportTimeout",
    "UnknownUpstream",
    "UpstreamError",
    "WSGIMiddleware",
    "asgi_problem",
    "current",
    "detach",
    "install",
    "map_errors",
    "problem",
    "propagate",
    "record_of",
    "request_id",
]
