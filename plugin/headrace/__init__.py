"""headrace: one validated upstreams.yaml governs every outbound call of an ASGI or WSGI app."""

from headrace.adapters.streamed import detach
from headrace.app import Headrace, current
from headrace.app import start_from as install
from headrace.errors import (
    CallCancelled,
    CircuitOpenError,
    ConfigError,
    DeadlineExceeded,
    HeadraceError,
    PoolRejected,
    PoolTimeout,
    ResponseTooLarge,
    UnknownUpstream,
    UpstreamError,
)
from headrace.middleware.asgi import ASGIMiddleware
from headrace.middleware.problems import asgi_problem, problem
from headrace.middleware.wsgi import WSGIMiddleware
from headrace.observe.logs import RequestIdFilter
from headrace.policy.record import Record
from headrace.runtime.carrying import record_of
from headrace.runtime.executor import PropagatingExecutor
from headrace.runtime.inbound import propagate, request_id

__all__ = [
    "ASGIMiddleware",
    "CallCancelled",
    "CircuitOpenError",
    "ConfigError",
    "DeadlineExceeded",
    "Headrace",
    "HeadraceError",
    "PoolRejected",
    "PoolTimeout",
    "PropagatingExecutor",
    "Record",
    "RequestIdFilter",
    "ResponseTooLarge",
    "UnknownUpstream",
    "UpstreamError",
    "WSGIMiddleware",
    "asgi_problem",
    "current",
    "detach",
    "install",
    "problem",
    "propagate",
    "record_of",
    "request_id",
]
