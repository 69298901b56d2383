"""What other libraries call the keys of this format: a likeness of letters would lead from most of them to another key.

`tls.ca_cert` is near to `cert`, the client's, and `retry.max_retries` to `max_attempts`, which counts one more.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple


class Here(NamedTuple):
    """The key of this format, below the upstream, with dots, and what has to be said of it."""

    key: str
    note: str = ""


_ATTEMPTS = Here("retry.max_attempts", "it counts the first try: one more than the retries")
_WHOLE_OR_ONE = Here("timeouts.deadline", "for the whole call; one attempt of it has timeouts.attempt")
_OPEN_FOR = Here("circuit_breaker.open_for.base")
_RUN = Here("circuit_breaker.consecutive_failures")
_CONNECTIONS = Here("pool.max_connections")

FOREIGN: Final[Mapping[tuple[str, str], Here]] = MappingProxyType(
    {
        **dict.fromkeys(
            (("", word) for word in ("url", "uri", "base", "host", "endpoint")), Here("base_url")
        ),
        **dict.fromkeys((("", word) for word in ("urls", "hosts", "prefixes")), Here("match")),
        **dict.fromkeys((("", word) for word in ("timeout", "request_timeout")), _WHOLE_OR_ONE),
        **dict.fromkeys((("", word) for word in ("retries", "max_retries")), _ATTEMPTS),
        **dict.fromkeys((("", word) for word in ("verify", "ssl_verify")), Here("tls.verify")),
        # urllib3.Retry, tenacity, and those who count retries
        **dict.fromkeys(
            (("retry", word) for word in ("total", "retries", "max_retries", "count")), _ATTEMPTS
        ),
        **dict.fromkeys(
            (("retry", word) for word in ("status_forcelist", "statuses", "status_codes", "on")),
            Here("retry.retry_on"),
        ),
        **dict.fromkeys(
            (("retry", word) for word in ("allowed_methods", "method_whitelist")), Here("retry.methods")
        ),
        **dict.fromkeys(
            (("retry", word) for word in ("backoff_factor", "delay", "wait")), Here("retry.backoff.base")
        ),
        **dict.fromkeys(
            (("retry", word) for word in ("backoff_max", "max_delay")), Here("retry.backoff.max")
        ),
        ("retry", "jitter"): Here("retry.backoff.jitter"),
        # urllib3's pools, httpx.Limits
        **dict.fromkeys(
            (("pool", word) for word in ("maxsize", "pool_maxsize", "max_size", "size")), _CONNECTIONS
        ),
        **dict.fromkeys(
            (("pool", word) for word in ("max_keepalive", "max_keepalive_connections")), Here("pool.max_idle")
        ),
        ("pool", "keepalive_expiry"): Here("pool.idle_timeout"),
        ("pool", "block"): Here("pool.when_full"),
        **dict.fromkeys(
            (("pool", word) for word in ("timeout", "acquire_timeout")), Here("timeouts.acquire")
        ),
        # pybreaker, circuitbreaker, resilience4j
        **dict.fromkeys(
            (("circuit_breaker", word) for word in ("enabled", "state")), Here("circuit_breaker.mode")
        ),
        **dict.fromkeys((("circuit_breaker", word) for word in ("fail_max", "failure_threshold")), _RUN),
        **dict.fromkeys(
            (("circuit_breaker", word) for word in ("reset_timeout", "recovery_timeout", "open_timeout")),
            _OPEN_FOR,
        ),
        **dict.fromkeys(
            (("circuit_breaker", word) for word in ("wait_duration_in_open_state", "sleep_window")), _OPEN_FOR
        ),
        **dict.fromkeys(
            (("circuit_breaker", word) for word in ("window_size", "sliding_window_size")),
            Here("circuit_breaker.window.size"),
        ),
        # ssl, httpx, Go's tls.Config
        **dict.fromkeys(
            (("tls", word) for word in ("ca_cert", "ca_certs", "ca_file", "cafile", "ca_bundle")),
            Here("tls.ca"),
        ),
        **dict.fromkeys(
            (("tls", word) for word in ("cert_file", "certfile", "client_cert")), Here("tls.cert")
        ),
        **dict.fromkeys((("tls", word) for word in ("key_file", "keyfile", "client_key")), Here("tls.key")),
        **dict.fromkeys((("tls", word) for word in ("sni", "assert_hostname")), Here("tls.server_name")),
        **dict.fromkeys(
            (("tls", word) for word in ("insecure", "insecure_skip_tls_verify")),
            Here("tls.verify", "false needs insecure_skip_verify: true beside it"),
        ),
        # httpx.Timeout, aiohttp.ClientTimeout
        **dict.fromkeys(
            (("timeouts", word) for word in ("total", "call", "overall")), Here("timeouts.deadline")
        ),
        **dict.fromkeys((("timeouts", word) for word in ("request", "timeout", "per_try")), _WHOLE_OR_ONE),
        **dict.fromkeys(
            (("timeouts", word) for word in ("pool", "lease", "checkout")), Here("timeouts.acquire")
        ),
        **dict.fromkeys((("timeouts", word) for word in ("sock_read", "socket")), Here("timeouts.read")),
        **dict.fromkeys((("timeouts", word) for word in ("sock_connect", "tcp")), Here("timeouts.connect")),
    }
)
"""By section of an upstream ("" for the upstream itself) and what others call a key of it, the key of this format."""
