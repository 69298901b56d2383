"""Plans: the rules of one configuration, frozen, compiled from the YAML and compared by value.

A plan has no behaviour and no I/O. Two equal plans are the same rules; reload relies on
that. YAML key = field here; durations carry `_s` (seconds). The module is long because it is one list, like
that of the keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field, replace
from typing import Any, Literal, TypeAlias

from headrace.policy.certificate import Dates
from headrace.policy.frozen import frozen
from headrace.policy.outcome import Condition
from headrace.policy.secret import Secret

Mode = Literal["enforce", "observe", "off"]
CallerTimeouts = Literal["honour", "ignore"]
WhenFull = Literal["wait", "new", "reject"]
Parser = Literal["auto", "stdlib"]
CircuitMode = Literal["enforce", "observe", "forced_open", "disabled"]
ErrorResponses = Literal["propagate", "map"]
TracingMode = Literal["annotate", "spans", "off"]
Jitter = Literal["full", "equal", "additive", "decorrelated", "none"]
RetryAfterFormat = Literal["auto", "unix_timestamp"]


@frozen
class Origin:
    """Scheme, host and port of a URL, normalised so that equal origins are equal values.

    Attributes:
        host: Lower case, ASCII (IDNA), no brackets around IPv6, no trailing dot.
        port: Always given; 80 or 443 when the URL had none.
    """

    scheme: Literal["http", "https"]
    host: str
    port: int


@frozen
class UrlPrefix:
    """An origin and leading path segments; `https://a/v2/` is (`a`, ("v2",)).

    Attributes:
        is_rooted: The host was written with a final dot. It is the same origin, and DNS is asked in another way.
    """

    origin: Origin
    segments: tuple[str, ...]
    is_rooted: bool = field(default=False, compare=False)


@frozen
class AskedTimeout:
    """What a call's own `timeout=` says, seconds. None: it says nothing; `NO_LIMIT_S`: it says that there is no limit.

    Attributes:
        total_s: urllib3's: connecting and reading of one attempt, together.
    """

    connect_s: float | None
    read_s: float | None
    total_s: float | None


NO_LIMIT_S = 24 * 3600.0
"""Stands for no limit: the longest time that the file can say. (A socket's own limit is a C int of milliseconds.)"""


@frozen
class TimeoutPlan:
    """Limits of one call, seconds. `deadline_s` is None when the call as a whole is not bounded.

    Attributes:
        caller: Whether what a call passes as `timeout=` takes the place of these limits.
        deadline_is_written: The file, what it inherits, or a variable sets it. Otherwise it is the default, and
            gives way to what a call asks for. resolve_is_written likewise.
        asked: What the call itself asked for, already part of these limits; None: the limits are the file's.
    """

    deadline_s: float | None
    attempt_s: float
    resolve_s: float
    connect_s: float
    tls_handshake_s: float
    read_s: float
    write_s: float
    acquire_s: float
    caller: CallerTimeouts = "honour"
    deadline_is_written: bool = False
    resolve_is_written: bool = False
    asked: AskedTimeout | None = None


@frozen
class AdaptivePlan:
    """When a pool's size follows its load: between `min` and `max_connections`.

    Attributes:
        grow_when_waiting: Grow when more wait than this times the size.
        grow_when_rate: … and calls come faster than this times what is usual.
        shrink_when_rate: Shrink when calls come slower than this times what is usual.
        connections_per_rps: Connections added in one step for each call per second.
    """

    min: int
    grow_when_waiting: float
    grow_when_rate: float
    shrink_when_rate: float
    shrink_after_s: float
    rate_window_s: float
    connections_per_rps: float


@frozen
class KeepalivePlan:
    """The kernel's probes on a silent connection: after `idle_s`, every `interval_s`, `count` of them."""

    idle_s: float
    interval_s: float
    count: int


@frozen
class HeartbeatPlan:
    """A look at idle connections.

    Attributes:
        path: Path of the GET that is sent; None: only whether the peer has closed is looked at.
        failures: Misses in a row after which the idle connections are closed; >= 1.
    """

    path: str | None
    interval_s: float
    timeout_s: float
    failures: int


@frozen
class PoolPlan:
    """Size and lifecycle of one upstream's connections.

    Attributes:
        min_idle: Kept warm; <= max_idle <= max_connections.
        max_lifetime_s: None: for ever.
        max_lifetime_grace_s: How long beyond its lifetime a busy connection may go on; None: until it is given back.
        max_response_body_bytes: Largest body, decoded; None: no limit.
        leak_detection_threshold_s: A lease that is held for this long is reported, and it is noted where each lease
            was taken; None: neither.
        parser: Who reads answers off the wire: "auto" our codec where it can, "stdlib" http.client always.
        tcp_keepalive: None: the system's default, which is none.
        adaptive: None: always max_connections.
    """

    max_connections: int
    min_idle: int
    max_idle: int
    when_full: WhenFull
    max_waiting: int
    idle_timeout_s: float
    max_lifetime_s: float | None
    max_lifetime_grace_s: float | None
    max_requests_per_connection: int | None
    max_response_body_bytes: int | None
    leak_detection_threshold_s: float | None
    parser: Parser
    tcp_keepalive: KeepalivePlan | None
    heartbeat: HeartbeatPlan | None
    adaptive: AdaptivePlan | None = None


@frozen
class CertificatePlan:
    """What a client certificate says of itself.

    Attributes:
        print: First 16 hex digits of its SHA-256: what `openssl x509 -fingerprint -sha256` begins with.
        not_before, not_after: Epoch seconds.
        chain: Certificates in its file, itself included; count, >= 1.
    """

    print: str
    not_before: int
    not_after: int
    chain: int


@frozen
class SessionPlan:
    """Which TLS sessions are kept.

    Attributes:
        size: Most servers of which something is kept.
        ttl_s: Longest life, whatever the server says.
    """

    size: int
    ttl_s: float


@frozen
class TlsPlan:
    """What one upstream's TLS connections trust and present.

    What the files hold is no part of the `policy`: it may change while everything that follows from the file stays.

    Attributes:
        ca: Path of the CA file or directory in force, or None for the system store.
        key: None: it is in the file of the certificate.
        fingerprint: Hash over the bytes of the files named here, so that a
            rotated certificate makes an unequal plan. Not to be shown: the passphrase is in it, too.
        ca_digest: Hex SHA-256 of the bytes of the CA file; None: there is no file, or it is a directory.
        cert_digest, key_digest: The same of the certificate and of the key; None: there is no such file.
        key_passphrase: What the key is encrypted with; None: it is not.
        rotation_drain_s: How long a connection in use may go on under material that was replaced.
        certificate: What the client certificate says of itself; None: there is none, or it cannot be read.
        cert_dates, ca_dates: When that certificate of the file holds which ends first; None: as `first_to_end` has it.
        sessions: None: each handshake is a full one.
        identities: URIs and DNS names of which the peer's certificate must have one; empty: that of the host.
    """

    verify: bool
    ca: str | None
    cert: str | None
    key: str | None
    server_name: str | None
    min_version: Literal["1.2", "1.3"]
    fingerprint: str
    ca_digest: str | None = None
    cert_digest: str | None = None
    key_digest: str | None = None
    key_passphrase: Secret | None = field(default=None, repr=False)
    rotation_drain_s: float = 30.0
    certificate: CertificatePlan | None = None
    cert_dates: Dates | None = None
    ca_dates: Dates | None = None
    sessions: SessionPlan | None = None
    identities: tuple[str, ...] = ()

    def has_policy_of(self, other: TlsPlan) -> bool:
        """Whether both have the same `policy`."""
        return self is other or self.policy == other.policy

    @property
    def policy(self) -> TlsPlan:
        """This plan without what the files hold, and what holds for connections that there are already."""
        return replace(
            self,
            fingerprint="",
            ca_digest=None,
            cert_digest=None,
            key_digest=None,
            key_passphrase=None,
            rotation_drain_s=0.0,
            certificate=None,
            cert_dates=None,
            ca_dates=None,
            sessions=None,
        )


@frozen
class BackoffPlan:
    """Exponential back-off.

    Attributes:
        max_s: >= base_s.
        jitter: How much of it is left to chance; the formulas are in `policy.backoff`.
        throttled_s: Replaces a shorter base_s, and a shorter max_s, where the upstream has too much to do.
    """

    base_s: float
    multiplier: float
    max_s: float
    jitter: Jitter = "full"
    throttled_s: float = 0.0


@frozen
class RetryAfterHeader:
    """A response header that says when to come back, and how it says it."""

    name: str
    format: RetryAfterFormat


@frozen
class RetryAfterPlan:
    """The upstream's own word on when to come back.

    Attributes:
        headers: Where to look; the first that says something usable wins.
        max_s: Longest wait. If the upstream asks for more, the call ends.
    """

    headers: tuple[RetryAfterHeader, ...]
    max_s: float


@frozen
class BudgetPlan:
    """Retries allowed in proportion to first attempts."""

    ratio: float
    min_per_second: float
    ttl_s: float


@frozen
class IdempotencyKeyPlan:
    """A key made once per call and sent with each of its attempts, for *methods* (upper case)."""

    header: str
    methods: frozenset[str]


@frozen
class RetryPlan:
    """When a failed attempt is followed by another.

    Attributes:
        max_attempts: Counts the first try; >= 1.
        methods: Upper case; a request of any other method is retried only if it was never sent, or has an idempotency
            key.
        idempotency_key: None: no key is made; one that the caller set counts all the same.
    """

    max_attempts: int
    retry_on: Condition
    methods: frozenset[str]
    backoff: BackoffPlan
    retry_after: RetryAfterPlan
    budget: BudgetPlan
    idempotency_key: IdempotencyKeyPlan | None = None


@frozen
class OpenForPlan:
    """How long a circuit stays open: base_s · multiplier^(consecutive openings - 1), at most max_s, ± jitter."""

    base_s: float
    multiplier: float
    max_s: float
    jitter: float


@frozen
class HalfOpenPlan:
    """How recovery is verified.

    Attributes:
        probe_timeout_s: Seconds after which a hung probe counts as failed; the
            YAML's null is compiled to the deadline, at least 2 × attempt.
        ramp_s: Seconds over which the share of calls let through grows after recovery; None: all at once.
    """

    max_probes: int
    success_rate_threshold: float
    window_s: float
    probe_timeout_s: float
    ramp_s: float | None = None


@frozen
class TimeWindowPlan:
    """The calls of the last `size_s` seconds, in 10 buckets."""

    size_s: float


@frozen
class CountWindowPlan:
    """The last `size` calls; with `max_age_s`, only those of them in the last `max_age_s` seconds."""

    size: int
    max_age_s: float | None


WindowPlan: TypeAlias = TimeWindowPlan | CountWindowPlan


@frozen
class SlowCallPlan:
    """What an attempt that takes long says about the upstream.

    Attributes:
        duration_s: An attempt that took this long is slow, whether it failed or not; None: no attempt is slow.
        rate_threshold: Opens at this share of slow calls.
    """

    duration_s: float | None
    rate_threshold: float


@frozen
class CircuitPlan:
    """When the circuit of one upstream trips, and how it recovers. It counts calls, however many attempts each made.

    Attributes:
        consecutive_failures: Opens after this many failed calls in a row, below `minimum_calls` only; None: never.
        failure_if: Says whether a response of the library in use is a failure whatever its status.
    """

    mode: CircuitMode
    window: WindowPlan
    minimum_calls: int
    failure_rate_threshold: float
    consecutive_failures: int | None
    slow_call: SlowCallPlan
    failure_on: Condition
    blame_after_s: float
    open_for: OpenForPlan
    half_open: HalfOpenPlan
    failure_if: Callable[[Any], bool] | None = None


@frozen
class FallbackPlan:
    """What a call gets when the circuit refuses it.

    Attributes:
        upstream: Name of the upstream that is asked instead; None: the other three are the answer.
    """

    status: int
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes = field(repr=False)
    upstream: str | None


@frozen
class PropagatePlan:
    """Which parts of a call's context are sent on to this upstream.

    Attributes:
        retry_sequence: `X-Retry-Seq`, from the second attempt on.
        deadline: What is left of the deadline, in the same header as the inbound one.
        traceparent: `traceparent` and `tracestate` as the inbound request had them.
    """

    request_id: bool
    retry_sequence: bool
    deadline: bool = False
    traceparent: bool = True


@frozen
class FilePart:
    """A part of a value that is what a file holds, whenever it is asked.

    Attributes:
        path: Absolute.
    """

    path: str


@frozen
class FileHeader:
    """A header whose value is read anew when a file changes, without anything else being loaded.

    Attributes:
        parts: The value from left to right: text as it is, and files. What text stands around them may be secret.
    """

    name: str
    parts: tuple[str | FilePart, ...] = field(repr=False)


@frozen
class SecretFile:
    """A file that a secret of an upstream was read from.

    Attributes:
        kind: What it is a part of: a header, or the passphrase of the client key.
    """

    kind: Literal["header", "key_passphrase"]
    path: str


@frozen
class UpstreamPlan:
    """Everything the file says about one upstream.

    Attributes:
        base: Parsed `base_url`.
        match: Further prefixes under the same rules (without `base`).
        headers: Added to each attempt unless the call, or its session, set them; values may be
            secrets, so they are not in the repr. Those of `file_headers` are as they were at the load;
            what is sent, `runtime.upstream` has.
        file_headers: Those of *headers* that are made of files, and follow them.
        secret_files: Where its headers and its passphrase come from, as far as they are in files; the secrets directory
            is one source. The key of TLS is not among them.
        tls: None for http.
        fallback: None: a refused call raises.
        rooted: Origins whose host the file writes with a final dot: DNS is asked for that name as it is, without its
            search list. Nobody else sees the dot: neither a Host header, nor a certificate, nor a route.
    """

    name: str
    base: UrlPrefix
    match: tuple[UrlPrefix, ...]
    mode: Mode
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    propagate: PropagatePlan
    timeouts: TimeoutPlan
    pool: PoolPlan
    tls: TlsPlan | None
    retry: RetryPlan
    circuit_breaker: CircuitPlan
    fallback: FallbackPlan | None = None
    rooted: frozenset[Origin] = frozenset()
    file_headers: tuple[FileHeader, ...] = ()
    secret_files: tuple[SecretFile, ...] = ()

    def dns_name(self, origin: Origin) -> str:
        """What the system is asked for, for *origin*: with its final dot, and a zone without the URL's encoding.

        Source: RFC 6874 §2 on `%25` before the zone of an address.
        """
        host = origin.host.replace("%25", "%", 1) if ":" in origin.host else origin.host
        return host + "." if origin in self.rooted else host


@frozen
class RequestIdPlan:
    """Inbound request id: which header, and whether a sane one is taken as it is.

    Attributes:
        is_trace_id: The id is the trace id of `traceparent`, whatever the header says.
    """

    header: str
    accept: bool
    is_trace_id: bool = False


@frozen
class InboundDeadlinePlan:
    """How long the caller of the application waits.

    Attributes:
        header: Says what is left; None: only the default counts.
        default_s: For a request without a readable header; None: no deadline.
        max_s: Longest deadline: a header that says more is cut to it.
    """

    header: str | None
    default_s: float | None
    max_s: float


@frozen
class ServicePlan:
    """The inbound side.

    Attributes:
        max_retries_per_request: Retries over all outbound calls of one inbound request; >= 0.
        deadline: None: requests have none.
        cancel_on_disconnect: Abort the outbound calls of a request when its client has left; ASGI only.
    """

    request_id: RequestIdPlan
    max_retries_per_request: int
    error_responses: ErrorResponses
    deadline: InboundDeadlinePlan | None = None
    cancel_on_disconnect: bool = False


@frozen
class InstallPlan:
    """Which libraries are governed without a change at the call sites."""

    requests: bool
    urllib3: bool


@frozen
class ReloadPlan:
    """How edits come into force, seconds."""

    debounce_s: float
    max_delay_s: float
    poll_s: float
    drain_s: float


@frozen
class TelemetryPlan:
    """What is measured beyond the upstreams themselves."""

    served_requests: bool
    tracing: TracingMode = "annotate"


@frozen
class SecretsPlan:
    """What is expected of the files of secrets.

    Attributes:
        max_age_s: Older ones are warned of; None: none is.
    """

    max_age_s: float | None = None


@frozen
class Configuration:
    """One whole file in compiled form.

    Attributes:
        upstreams: By name, in the order of the file.
        digest: Hex SHA-256 over everything that was read (files, interpolated
            values, environment), wherever it lies: the identity shown in logs, status and metrics.
        watched: Absolute paths of every file that, changed, means a reload: the
            YAML, `${file:}` targets, secrets directory entries, certificates.
        warnings: Rendered findings that do not stop the load, sorted by line.
        tls_refused: By upstream, why the TLS files that it names were not taken: its plan has those of the load before.
        prints: SHA-256 of what the load has read, of those of *watched* that it has read.
        secret_texts: What the files of `file_headers` held at the load, by path. They hold nothing but headers, and are
            not in the digest: who rotates a token has changed no configuration.
    """

    service: ServicePlan
    install: InstallPlan
    reload: ReloadPlan
    telemetry: TelemetryPlan
    upstreams: Mapping[str, UpstreamPlan]
    digest: str
    watched: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    tls_refused: Mapping[str, str] = field(default_factory=dict)
    prints: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    secret_texts: Mapping[str, str] = field(default_factory=dict, repr=False)
    secrets: SecretsPlan = SecretsPlan()
