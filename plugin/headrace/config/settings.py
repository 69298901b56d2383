"""The keys of `upstreams.yaml`, their types, defaults and ranges: the one place where a key is declared.

The JSON Schema, the key reference, the error texts and the names of environment
variables are all made from these models. A field's description is the first line
of that key's documentation. Long, for it is one list: splitting it would hide the file's shape.
"""

# Annotations are no texts here, which pydantic would have to compile: 200 of them took a tenth of this import.
from contextvars import ContextVar
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from headrace.config.reuse import Reading
from headrace.config.source.tree import Node, Table, plain
from headrace.config.source.values import (
    Attempts,
    BudgetTtl,
    Count,
    CountOrZero,
    Duration,
    DurationOrZero,
    FilePath,
    FunctionPath,
    HeaderName,
    HeaderValue,
    Identity,
    IdleCount,
    Jitter,
    KeepaliveCount,
    KeepaliveTime,
    Method,
    Multiplier,
    Note,
    PathOnly,
    PerSecond,
    Rate,
    SentHeaderName,
    ServerName,
    SessionCount,
    SessionTtl,
    Size,
    StatusCode,
    Text,
    Threshold,
    Times,
    UpstreamName,
    Url,
    WindowLength,
    WindowSize,
    Word,
    duration,
)


class Section(BaseModel):
    """A map of keys: unknown ones are refused, no value is silently made into another type."""

    # Built with `Settings`, at the first load: for each model alone it is twice the time.
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, hide_input_in_errors=True, defer_build=True
    )

    @classmethod
    def built_in(cls) -> Self:
        """What stands where nothing is written. It is not validated: that would have pydantic build *cls* for it."""
        return cls.model_construct()  # type: ignore[return-value]

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Itself: it is frozen. pydantic copies each default that is used, and a file has thousands of them."""
        return self

    def with_defaults(self, defaults: dict[str, object]) -> Self:
        """This section with other *defaults*. They do not count as written: `model_fields_set` is as before."""
        if not defaults:
            return self
        values = {**vars(self), **defaults}
        # pydantic's plugin for mypy says Section
        return type(self).model_construct(self.model_fields_set, **values)  # type: ignore[return-value]


class RequestId(Section):
    """How an inbound request gets its id."""

    header: HeaderName = Field(
        "X-Request-ID", description="Header that carries the id, inbound and outbound."
    )
    accept: bool = Field(True, description="Take a sane inbound id as it is; otherwise one is always made.")
    from_: Literal["header", "trace"] = Field(
        "header",
        alias="from",
        description="trace: the id is the trace id of traceparent, not what header says.",
    )


class InboundDeadline(Section):
    """How long the caller of the application is going to wait: it shortens the deadlines of outbound calls."""

    header: HeaderName | None = Field(
        None,
        description="Header that says what is left: seconds, or a number with ms; grpc-timeout as gRPC; null: none.",
        examples=["X-Request-Timeout"],
    )
    default: Duration | None = Field(
        None, description="For a request without a readable one; null: no deadline.", examples=["30s"]
    )
    max: Duration = Field(duration("60s"), description="A longer one in the header is cut to it.")


class Service(Section):
    """The application this file belongs to (inbound side)."""

    request_id: RequestId = Field(RequestId.built_in(), description="Id of an inbound request.")
    deadline: InboundDeadline = Field(
        InboundDeadline.built_in(), description="How long the caller of the application is going to wait."
    )
    max_retries_per_request: CountOrZero = Field(
        10, description="Retries over all outbound calls of one inbound request."
    )
    cancel_on_disconnect: bool = Field(
        False, description="ASGI: abort the outbound calls of a request whose client has left."
    )
    error_responses: Literal["propagate", "map"] = Field(
        "propagate",
        description="An upstream error that reaches the middleware is left alone, or mapped to problem+json.",
    )


class Install(Section):
    """Govern calls made by code that knows nothing of headrace."""

    requests: bool = Field(True, description="Govern calls made with requests, by URL.")
    urllib3: bool = Field(False, description="Govern calls made with urllib3's PoolManager, by URL.")


class Secrets(Section):
    """What is expected of the files of secrets: those of headers, and keys."""

    max_age: Duration | None = Field(
        None, description="Age from which on a file is warned of; null: never.", examples=["72h"]
    )


class Reload(Section):
    """How an edited file is taken into force."""

    debounce: DurationOrZero = Field(
        duration("100ms"), description="Quiet time after a change before the file is read."
    )
    max_delay: Duration = Field(
        duration("1s"), description="Longest time that further changes can put reading off."
    )
    poll: Duration = Field(
        duration("2s"), description="How often the files are looked at even without an event."
    )
    drain: DurationOrZero = Field(
        duration("30s"), description="How long calls may go on using a pool that a reload has replaced."
    )


class Telemetry(Section):
    """What is measured beyond the upstreams themselves."""

    tracing: Literal["annotate", "spans", "off"] = Field(
        "annotate",
        description="annotate: attributes and events on the current span; spans: one per attempt, too. "
        "Needs opentelemetry-api.",
    )
    served_requests: bool = Field(
        True, description="Count and time the requests that the application serves."
    )


class Propagate(Section):
    """What of the inbound context travels on; false for third parties."""

    request_id: bool = Field(True, description="Send the request id with every attempt.")
    retry_sequence: bool = Field(
        True,
        description="Send X-Retry-Seq: how many earlier attempts may have reached the upstream; absent at 0.",
    )
    deadline: bool = Field(
        False, description="Send what is left of the deadline with every attempt, as service.deadline.header."
    )
    traceparent: bool = Field(
        True,
        description="Pass on traceparent and tracestate of the inbound request, unless the call has set them.",
    )


class Timeouts(Section):
    """Limits of one call."""

    deadline: Duration | None = Field(
        duration("15s"),
        description="The whole call: waiting, connecting, attempts and back-offs; null: not bounded.",
    )
    attempt: Duration = Field(
        duration("4s"),
        description="One attempt, to the head of its answer, and to the end of one that is retried; cut to what "
        "is left of the deadline.",
    )
    connect: Duration = Field(
        duration("2s"),
        description="Name look-up and TCP connect, all addresses of the name together, shared out.",
    )
    resolve: Duration = Field(duration("2s"), description="Name look-up, inside connect.")
    tls_handshake: Duration = Field(duration("2s"), description="TLS handshake, after TCP has connected.")
    read: Duration = Field(duration("4s"), description="Longest silence in a body.")
    write: Duration = Field(
        duration("4s"), description="Longest stall while sending: the upstream takes no more."
    )
    acquire: DurationOrZero = Field(duration("500ms"), description="Longest wait for a pooled connection.")
    caller: Literal["honour", "ignore"] = Field(
        "honour",
        description="What a call itself passes as timeout=; ignore: an SDK's built-in limit changes nothing.",
    )

    @model_validator(mode="after")
    def _cut_defaults(self) -> Self:
        """Cut each default to the written limit around it: an author who shortens one need not write the rest.

        A limit that was written and could not apply is a problem (`checks`).
        """
        values, cut = vars(self).copy(), dict[str, object]()
        for inner, outer in (
            ("attempt", "deadline"),
            ("acquire", "deadline"),
            ("connect", "attempt"),
            ("resolve", "connect"),
            ("tls_handshake", "attempt"),
            ("write", "attempt"),
        ):
            limit = values[outer]
            if inner not in self.model_fields_set and limit is not None and values[inner] > limit:
                values[inner] = cut[inner] = limit
        return self.with_defaults(cut)


class TcpKeepalive(Section):
    """Probes of the kernel on a connection on which nothing moves: they find a silent drop, and hold NAT entries."""

    idle: KeepaliveTime = Field(duration("60s"), description="Silence before the first probe.")
    interval: KeepaliveTime = Field(duration("10s"), description="Time between probes.")
    count: KeepaliveCount = Field(3, description="Probes without an answer before the connection is dead.")


class Heartbeat(Section):
    """A look at idle connections, so that a dead one is found before a call needs it."""

    path: PathOnly | None = Field(
        None,
        description="GET on each idle connection but one; null: only whether the peer has closed it.",
        examples=["/healthz"],
    )
    interval: Duration = Field(duration("15s"), description="Idle for so long: due.")
    timeout: Duration = Field(duration("1s"), description="Longest wait for the answer.")
    failures: Count = Field(
        3,
        description="Answers missed in a row that close the idle connections and mark the upstream suspect.",
    )


class Adaptive(Section):
    """A pool's size that follows its load, between min and max_connections."""

    min: Count = Field(10, description="Size that the pool begins with, and shrinks to.")
    grow_when_waiting: Times = Field(
        0.3, description="Grow only when more calls wait than this times the size."
    )
    grow_when_rate: Times = Field(
        1.5, description="Grow only when calls come faster than this times what is usual; 0: at any rate."
    )
    shrink_when_rate: Times = Field(
        0.7,
        description="Shrink only when calls come slower than this times what is usual; 100: at about any rate.",
    )
    shrink_after: Duration = Field(
        duration("30s"),
        description="Shrink when nobody has waited for so long, by half of what was not in use meanwhile.",
    )
    rate_window: WindowSize = Field(duration("60s"), description="What the rate of calls is taken over.")
    connections_per_rps: Times = Field(
        0.1, description="Connections added at a time, per call per second; at least one."
    )


class Pool(Section):
    """Connections to the upstream, per process."""

    max_connections: Count = Field(200, description="Connections that may be open at once, per process.")
    min_idle: IdleCount = Field(0, description="Idle connections kept warm: made ahead of need.")
    max_idle: IdleCount = Field(
        200, description="Idle connections kept; what is above goes by halves, twice a second."
    )
    when_full: Literal["wait", "new", "reject"] = Field(
        "wait",
        description="A call that finds no connection free waits, opens a one-off connection, or is rejected.",
    )
    max_waiting: CountOrZero = Field(1024, description="Calls that may wait; one more is rejected at once.")
    idle_timeout: Duration = Field(duration("60s"), description="An idle connection is closed after it.")
    max_lifetime: Duration | None = Field(
        duration("5m"),
        description="A connection is replaced after it, minus up to 2.5 % at random; null: never.",
    )
    max_lifetime_grace: DurationOrZero | None = Field(
        None,
        description="A busy connection is aborted so long after its lifetime; null: closed when it comes back.",
        examples=["30s"],
    )
    max_requests_per_connection: Count | None = Field(
        None, description="Requests after which a connection is replaced; null: no limit.", examples=[1000]
    )
    tcp_keepalive: TcpKeepalive | None = Field(
        None,
        description="Probes of the kernel on silent connections; null: none.",
        examples=[{"idle": "60s"}],
    )
    heartbeat: Heartbeat | None = Field(
        None,
        description="A look at idle connections; null: none.",
        examples=[{"path": "/healthz", "interval": "15s"}],
    )
    max_response_body: Size | None = Field(
        None,
        description="A body with more bytes than this, decoded, ends its call with ResponseTooLarge; null: no limit.",
        examples=["10MiB"],
    )
    leak_detection_threshold: Duration | None = Field(
        None,
        description="A connection held for longer is logged once, with where it was taken; null: off.",
        examples=["30s"],
    )

    parser: Literal["auto", "stdlib"] = Field(
        "auto",
        description="Who reads answers off the wire: headrace where it can, or http.client always.",
    )

    adaptive: Adaptive | None = Field(
        None,
        description="Size that follows the load, up to max_connections; null: always max_connections.",
        examples=[{"min": 10}],
    )

    @model_validator(mode="after")
    def _cut_adaptive_min(self) -> Self:
        """Cut the default to max_connections: an author of a small one need not write both."""
        adaptive = self.adaptive
        if (
            adaptive is not None
            and "min" not in adaptive.model_fields_set
            and adaptive.min > self.max_connections
        ):
            return self.with_defaults({"adaptive": adaptive.with_defaults({"min": self.max_connections})})
        return self

    @model_validator(mode="after")
    def _cut_defaults(self) -> Self:
        """As `Timeouts._cut_defaults`."""
        if "max_idle" not in self.model_fields_set and self.max_idle > self.max_connections:
            return self.with_defaults({"max_idle": self.max_connections})
        return self


SECRET_KEY: Final = ("key_passphrase",)
"""The last part of the paths of keys whose value is never shown, wherever it was written."""


class SessionCache(Section):
    """Which TLS sessions are kept, to shorten later handshakes."""

    size: Annotated[SessionCount, Note("one for each server name and port")] = Field(
        64, description="Most sessions kept for one upstream."
    )
    ttl: SessionTtl = Field(
        duration("4h"),
        description="Longest life of a session; the server, and the end of its certificate, may shorten it.",
    )


class Tls(Section):
    """What TLS connections trust and present; for https upstreams only."""

    ca: FilePath | None = Field(
        None,
        description="CA file or directory; null: as REQUESTS_CA_BUNDLE and the like say, else the system's.",
        examples=["/etc/ssl/internal-ca.pem"],
    )
    verify: bool = Field(
        True, description="Verify certificate and host name; false needs insecure_skip_verify beside it."
    )
    insecure_skip_verify: bool = Field(False, description="Says that verify: false is meant.")
    cert: FilePath | None = Field(
        None, description="Client certificate (mTLS), PEM.", examples=["/etc/tls/client.pem"]
    )
    key: FilePath | None = Field(
        None,
        description="Key of the client certificate, PEM; null: it is in cert.",
        examples=["/etc/tls/client.key"],
    )
    key_passphrase: Text | None = Field(
        None,
        repr=False,
        description="What the key is encrypted with, usually ${file:…}; null: it is not encrypted.",
        examples=["${file:/run/secrets/key-pass}"],
    )
    rotation_drain: DurationOrZero = Field(
        duration("30s"),
        description="When certificate, key or CA has changed: how long connections in use may go on under the old one.",
    )
    require_client_certificate: bool = Field(
        False, description="Refuse a file in which an https upstream under this has no cert."
    )
    server_name: ServerName | None = Field(
        None, description="Name to ask for and to verify; null: the host.", examples=["billing.internal"]
    )
    min_version: Literal["1.2", "1.3"] = Field("1.2", description="Lowest TLS version.")
    identities: list[Identity] = Field(
        [],
        description="Whom the server may be: SPIFFE ids and DNS names, of which its certificate must have one; "
        "empty: the host.",
        examples=[["spiffe://prod/billing"]],
    )
    session_resumption: bool = Field(
        True,
        description="A new connection goes on with a TLS session of one before, where the server lets it.",
    )
    session_cache: SessionCache = Field(
        SessionCache.built_in(), description="Which TLS sessions are kept for that."
    )


class Backoff(Section):
    """Wait before a retry: d = min(max, base · multiplier^(n-1)) before retry n, spread by jitter."""

    base: Duration = Field(duration("25ms"), description="The wait d before the first retry.")
    multiplier: Multiplier = Field(2.0, description="Growth of d with each further retry.")
    max: Duration = Field(duration("1s"), description="Longest wait.")
    jitter: Literal["full", "equal", "additive", "decorrelated", "none"] = Field(
        "full",
        description="full: 0 to d at random; equal: d/2 to d; additive: d to 2d; decorrelated: base to three "
        "times the wait before; none: d.",
    )
    throttled: Duration = Field(
        duration("1s"),
        description="In place of a shorter base, and of a shorter max, after 429, and after 503 without "
        "Retry-After; cut to a written max unless it is written itself.",
    )

    @model_validator(mode="after")
    def _cut_throttled(self) -> Self:
        written = self.model_fields_set
        if "throttled" not in written and "max" in written and self.throttled > self.max:
            return self.with_defaults({"throttled": self.max})
        return self


class RetryAfterHeader(Section):
    """A response header that says when to come back."""

    name: HeaderName = Field(description="The header.", examples=["Retry-After"])
    format: Literal["auto", "unix_timestamp"] = Field(
        "auto", description="auto: seconds or an HTTP date; unix_timestamp: seconds since 1970."
    )


class RetryAfter(Section):
    """The upstream's own word on when to come back."""

    headers: list[RetryAfterHeader] = Field(
        [RetryAfterHeader.model_construct(name="Retry-After", format="auto")],
        description="Headers that say it; the first with a usable value counts. []: none does.",
        examples=[[{"name": "Retry-After"}]],
    )
    max: DurationOrZero = Field(
        duration("30s"), description="Longest wait that is made; asked for more, the call ends at once."
    )


class Budget(Section):
    """Retries allowed in proportion to calls, so that retries never become a storm."""

    ratio: Rate = Field(0.2, description="Retries per call, in the long run.")
    min_per_second: PerSecond = Field(3.0, description="Retries allowed whatever the traffic.")
    ttl: BudgetTtl = Field(duration("10s"), description="How long a call counts towards the budget.")


class IdempotencyKey(Section):
    """A key by which the upstream recognises a repeated request: made once per call, kept over its attempts."""

    header: HeaderName = Field("Idempotency-Key", description="Header that carries the key.")
    methods: list[Method] = Field(
        ["POST"], description="Methods that get a key, and with it are retried.", examples=[["POST", "PATCH"]]
    )


class Retry(Section):
    """When a failed attempt is followed by another."""

    max_attempts: Annotated[Attempts, Note("it counts the first try")] = Field(
        3, description="Attempts in all, the first included; 1: no retries."
    )
    retry_on: list[Word] = Field(
        ["network", "5xx", 408, 429], description="Outcomes that are retried.", examples=[["network", 503]]
    )
    methods: list[Method] = Field(
        ["GET", "HEAD", "OPTIONS"],
        description="Methods that are retried; any other only if it was never sent or has an idempotency key.",
        examples=[["GET", "HEAD"]],
    )
    backoff: Backoff = Field(Backoff.built_in(), description="Wait before a retry.")
    retry_after: RetryAfter = Field(
        RetryAfter.built_in(), description="The upstream's own word on when to come back."
    )
    budget: Budget = Field(Budget.built_in(), description="Retries allowed in proportion to calls.")
    idempotency_key: IdempotencyKey | None = Field(
        None,
        description="Key made for calls that have none; null: none is made.",
        examples=[{"header": "Idempotency-Key", "methods": ["POST"]}],
    )


class Window(Section):
    """What the failure rate is taken over."""

    type: Literal["time", "count"] = Field(
        "time", description="time: the calls of the last size; count: the last size calls."
    )
    size: WindowLength = Field(
        duration("10s"),
        description="time: how far back it reaches, in 10 buckets; count: how many calls, 100 unless given.",
    )
    max_age: Duration | None = Field(
        None,
        description="count only: a call that is older has left the window; null: whatever its age.",
        examples=["1s"],
    )

    @model_validator(mode="after")
    def _default_count(self) -> Self:
        if self.type == "count" and "size" not in self.model_fields_set:
            return self.with_defaults({"size": 100})
        return self


class SlowCall(Section):
    """Calls that take long, as a reason of its own to open."""

    duration: Duration | None = Field(
        None,
        description="A call with an attempt that takes this long is slow, whatever comes of it; null: none is.",
        examples=["2s"],
    )
    rate_threshold: Threshold = Field(1.0, description="Opens at this share of slow calls.")


class OpenFor(Section):
    """How long the circuit stays open."""

    base: Duration = Field(duration("2s"), description="The first time.")
    multiplier: Multiplier = Field(2.0, description="Growth with each consecutive opening.")
    max: Duration = Field(duration("60s"), description="Longest time.")
    jitter: Jitter = Field(0.1, description="Random share added or taken away.")


class HalfOpen(Section):
    """How recovery is verified."""

    max_probes: Count = Field(3, description="Calls let through to find out, each with its retries.")
    success_rate_threshold: Threshold = Field(0.9, description="Share of probes that must succeed to close.")
    window: Duration = Field(duration("60s"), description="How long probing may take before it is judged.")
    probe_timeout: Duration | None = Field(
        None,
        description="A probe that hangs longer counts as failed; null: the deadline, at least 2 × attempt.",
        examples=["8s"],
    )
    ramp: Duration | None = Field(
        None,
        description="After closing, the share of calls let through grows over it; null: all at once.",
        examples=["30s"],
    )


class CircuitBreaker(Section):
    """When calls are refused because the upstream is down."""

    mode: Literal["enforce", "observe", "forced_open", "disabled"] = Field(
        "enforce",
        description="observe: opens and refuses nothing; forced_open: refuses all; disabled: counts, never opens.",
    )
    failure_rate_threshold: Threshold = Field(0.5, description="Opens at this share of failed calls.")
    minimum_calls: Count = Field(
        20, description="Calls in the window before the failure rate means anything; attempts do not count."
    )
    window: Window = Field(Window.built_in(), description="What the failure rate is taken over.")
    consecutive_failures: Count | None = Field(
        5,
        description="Opens after so many failed calls in a row while fewer than minimum_calls are known; null: off.",
    )
    slow_call: SlowCall = Field(
        SlowCall.built_in(), description="Calls that take long, as a reason of its own to open."
    )
    failure_on: list[Word] = Field(
        ["network", "5xx"],
        description="Outcomes that count as failure.",
        examples=[["network", "gateway_error"]],
    )
    failure_if: FunctionPath | None = Field(
        None,
        description="Function of the response that says whether it is a failure all the same (an error inside a 200).",
        examples=["shop.billing:is_error"],
    )
    blame_after: DurationOrZero = Field(
        duration("500ms"),
        description="An attempt cut by a timer is a failure if it had run this long, else ignored.",
    )
    open_for: OpenFor = Field(OpenFor.built_in(), description="How long the circuit stays open.")
    half_open: HalfOpen = Field(HalfOpen.built_in(), description="How recovery is verified.")

    @model_validator(mode="after")
    def _cut_minimum_calls(self) -> Self:
        """Cut the default to a window of fewer calls: an author of a small one need not write both."""
        size = self.window.size
        if (
            isinstance(size, int)
            and self.window.type == "count"
            and "minimum_calls" not in self.model_fields_set
            and self.minimum_calls > size
        ):
            return self.with_defaults({"minimum_calls": size})
        return self


class Fallback(Section):
    """What a call gets that the circuit refuses: an answer of our own, or that of another upstream."""

    status: StatusCode = Field(200, description="Status of the answer.")
    headers: dict[HeaderName, HeaderValue] = Field(
        {}, repr=False, description="Headers of the answer.", examples=[{"Content-Type": "application/json"}]
    )
    body: str = Field(
        "", repr=False, description="Body of the answer, as UTF-8.", examples=["nothing in stock"]
    )
    upstream: UpstreamName | None = Field(
        None,
        description="Upstream that is asked instead, by its own rules, for the same path below its base_url; "
        "at most 8 in a row.",
        examples=["billing_replica"],
    )


class Rules(Section):
    """The keys that `defaults` and every upstream have."""

    mode: Literal["enforce", "observe", "off"] = Field(
        "enforce", description="observe: measure and report only; off: leave the calls alone."
    )
    headers: dict[SentHeaderName, HeaderValue] = Field(
        {},
        repr=False,  # values may be secrets
        description="Added to each attempt unless the call, or its session, set them; values may be ${file:…}.",
        examples=[{"Authorization": "${file:/run/secrets/billing}"}],
    )
    timeouts: Timeouts = Field(Timeouts.built_in(), description="Limits of one call.")
    retry: Retry = Field(Retry.built_in(), description="When a failed attempt is followed by another.")
    circuit_breaker: CircuitBreaker = Field(
        CircuitBreaker.built_in(), description="When calls are refused because the upstream is down."
    )
    pool: Pool = Field(Pool.built_in(), description="Connections to the upstream, per process.")
    tls: Tls = Field(Tls.built_in(), description="What TLS connections trust and present.")
    fallback: Fallback | None = Field(
        None,
        description="What a call gets that the circuit refuses; null: CircuitOpenError.",
        examples=[{"status": 200, "body": "[]"}],
    )
    propagate: Propagate = Field(Propagate.built_in(), description="What of the inbound context travels on.")


class Upstream(Rules):
    """One upstream: where it is and the rules for calls to it."""

    base_url: Url = Field(
        description="Where the upstream is: origin and, if need be, the path that all its URLs begin with.",
        examples=["https://billing.internal:8443/v2"],
    )
    match: list[Url] = Field(
        [],
        description="Further URL prefixes under the same rules.",
        examples=[["https://billing.example.com"]],
    )
    extends: UpstreamName | None = Field(
        None,
        description="Upstream whose keys this one takes over, all but base_url, match and headers; at most 8 in a row.",
        examples=["billing"],
    )


reading_var: ContextVar[Reading | None] = ContextVar("headrace_sections", default=None)


class Settings(BaseSettings):
    """Rules for pool, timeouts, retries and breaker of each upstream that an application calls."""

    model_config = SettingsConfigDict(
        extra="forbid", strict=True, frozen=True, hide_input_in_errors=True, defer_build=True
    )

    version: Annotated[Literal[1], Note("the only version there is")] = Field(
        1, description="Version of this format."
    )
    defaults: Rules = Field(Rules.built_in(), description="Merged under every upstream.")
    upstreams: Annotated[dict[UpstreamName, Upstream], Field(min_length=1)] = Field(
        description="The upstreams by name.", examples=[{"billing": {"base_url": "https://billing.internal"}}]
    )
    install: Install = Field(
        Install.built_in(), description="Govern calls made by code that knows nothing of headrace."
    )
    service: Service = Field(
        Service.built_in(), description="The application this file belongs to (inbound side)."
    )
    secrets: Secrets = Field(Secrets.built_in(), description="What is expected of the files of secrets.")
    reload: Reload = Field(Reload.built_in(), description="How an edited file is taken into force.")
    telemetry: Telemetry = Field(
        Telemetry.built_in(), description="What is measured beyond the upstreams themselves."
    )

    def __init__(self, *sources: PydanticBaseSettingsSource, reading: Reading | None = None) -> None:
        """What *sources* say together, the strongest first; nodes of `source.tree` stand for the values.

        Args:
            reading: Knows the models of sections that say the same as before; None: all are validated.
        """
        token = reading_var.set(
            reading
        )  # pydantic gives its validators no other context where a constructor is called
        try:
            super().__init__(sources=sources)
        finally:
            reading_var.reset(token)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The sources that one load has made (`config.source`), as the constructor got them: nothing is global.

        Those in the arguments would read the process's environment behind the caller's back, and lose positions.
        """
        return tuple(init_settings()["sources"])

    @model_validator(mode="before")
    @classmethod
    def _without_marks(cls, merged: dict[str, Node]) -> dict[str, Any]:
        """The values of the nodes that pydantic-settings has merged; models in place of sections that are known."""
        reading = reading_var.get()
        return {
            name: {one: reading.model_or(one, section) for one, section in node.items()}
            if name == "upstreams" and reading is not None and isinstance(node, Table)
            else plain(node)
            for name, node in merged.items()
        }


_OF_UPSTREAM = ("upstreams", "<name>")
ESSENTIAL = (
    (*_OF_UPSTREAM, "base_url"),
    (*_OF_UPSTREAM, "match"),
    (*_OF_UPSTREAM, "mode"),
    (*_OF_UPSTREAM, "headers"),
    (*_OF_UPSTREAM, "timeouts", "deadline"),
    (*_OF_UPSTREAM, "timeouts", "attempt"),
    (*_OF_UPSTREAM, "timeouts", "connect"),
    (*_OF_UPSTREAM, "retry", "max_attempts"),
    (*_OF_UPSTREAM, "retry", "retry_on"),
    (*_OF_UPSTREAM, "retry", "methods"),
    (*_OF_UPSTREAM, "circuit_breaker", "mode"),
    (*_OF_UPSTREAM, "circuit_breaker", "failure_rate_threshold"),
    (*_OF_UPSTREAM, "pool", "max_connections"),
    (*_OF_UPSTREAM, "tls", "ca"),
    ("install", "requests"),
    ("install", "urllib3"),
    ("defaults",),
    ("version",),
)
"""The keys that a user needs first. The reference and the schema put the others behind, and call them advanced."""
