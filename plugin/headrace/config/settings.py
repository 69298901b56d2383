"""The keys of `upstreams.yaml`, their types, defaults and ranges: the one place where a key is declared.

The JSON Schema, the key reference, the error texts and the names of environment
variables are all made from these models. A field's description is the first line
of that key's documentation.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, PlainValidator
from pydantic.json_schema import JsonSchemaValue, WithJsonSchema
from pydantic_core import CoreSchema, PydanticCustomError, core_schema
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from headrace.config.units import DURATION_PATTERN, format_duration, parse_duration
from headrace.policy.outcome import FAULT_WORDS, STATUS_WORDS
from headrace.policy.plan import UrlPrefix
from headrace.policy.routes import UrlError, parse_prefix

NAME_PATTERN = r"^[a-z][a-z0-9]*(_[a-z0-9]+)*$"
WORDS = (*FAULT_WORDS, *STATUS_WORDS)


class Expects:
    """What a value of an annotated type must be, in words, for errors and the reference.

    Attributes:
        must: Goes on from "must be …".
        kind: The type column of the key reference.
        is_text: Digits stay text here.
    """

    def __init__(self, must: str, kind: str, *, is_text: bool = True) -> None:
        self.must = must
        self.kind = kind
        self.is_text = is_text


class Duration(float):
    """Seconds, written with a unit. Subclasses narrow the range."""

    minimum_s: ClassVar[float] = 0.001
    maximum_s: ClassVar[float] = 24 * 3600.0

    @classmethod
    def range_words(cls) -> str:
        return f"{format_duration(cls.minimum_s)} to {format_duration(cls.maximum_s)}"

    @classmethod
    def read(cls, value: object) -> Duration:
        """A given text, or the value itself when it is one already."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, str):
            raise PydanticCustomError("duration", "not text")
        try:
            seconds = parse_duration(value)
        except ValueError:
            raise PydanticCustomError("duration", "not a duration") from None
        if not cls.minimum_s <= seconds <= cls.maximum_s:
            raise PydanticCustomError("duration_range", "out of range")
        return cls(seconds)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.read, serialization=core_schema.plain_serializer_function_ser_schema(format_duration)
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"type": "string", "pattern": DURATION_PATTERN}


class DurationOrZero(Duration):
    """A duration that may be `0s`."""

    minimum_s = 0.0


class BudgetTtl(Duration):
    """Finagle's range: longer than a minute would let yesterday's traffic pay for today's storm."""

    minimum_s = 1.0
    maximum_s = 60.0


class WindowSize(Duration):
    """Long enough for ten buckets to mean something."""

    minimum_s = 0.1
    maximum_s = 3600.0


def _duration(text: str) -> Any:
    """A default, written as in the file; the models share one object."""
    return DurationOrZero(parse_duration(text))


def _read_url(value: object) -> UrlPrefix:
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "not text")
    try:
        return parse_prefix(value)
    except UrlError as error:
        # Never holds the URL: there may be a password in it.
        raise PydanticCustomError("url", "{reason}", {"reason": str(error)}) from None


def _read_word(value: object) -> str | int:
    if isinstance(value, str) and value in WORDS:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and 100 <= value <= 599:
        return value
    raise PydanticCustomError("word", "unknown word")


_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)  # RFC 9110 §5.6.2
_METHOD = re.compile(r"[A-Z]+(?:[_-][A-Z]+)*", re.ASCII)
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_FRAMING = frozenset(
    {
        "connection",
        "content-length",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


def _read_header_name(value: object) -> str:
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        raise PydanticCustomError("header_name", "not a header name")
    if value.lower() in _FRAMING:
        raise PydanticCustomError("header_framing", "framing")
    return value


def _read_header_value(value: object) -> str:
    # CR and LF would smuggle a header in; http.client encodes as Latin-1.
    if not isinstance(value, str) or not _VALUE.fullmatch(value) or value != value.strip(" \t"):
        raise PydanticCustomError("header_value", "not a header value")
    return value


def _read_method(value: object) -> str:
    if not isinstance(value, str) or not _METHOD.fullmatch(value):
        raise PydanticCustomError("method", "not a method")
    return value


def _read_name(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(NAME_PATTERN, value) or value.endswith("\n"):
        raise PydanticCustomError("name", "not a name")
    return value


Url = Annotated[
    UrlPrefix,
    PlainValidator(_read_url),
    WithJsonSchema(
        {"type": "string", "pattern": r"^([hH][tT][tT][pP][sS]?://[^/?#@\s\\]+(/[^?#\s\\]*)?|.*\$\{.*)$"}
    ),
    Expects("an http:// or https:// URL without user, query and fragment", "URL"),
]
Word = Annotated[
    str | int,
    PlainValidator(_read_word),
    WithJsonSchema({"anyOf": [{"enum": list(WORDS)}, {"type": "integer", "minimum": 100, "maximum": 599}]}),
    Expects(
        f"one of {', '.join(WORDS)}, or a status code (100 to 599)", "word or status code", is_text=False
    ),
]
Method = Annotated[
    str,
    PlainValidator(_read_method),
    WithJsonSchema({"type": "string", "pattern": "^[A-Z]+([_-][A-Z]+)*$"}),
    Expects("an HTTP method in capital letters", "method"),
]
HeaderName = Annotated[
    str,
    PlainValidator(_read_header_name),
    WithJsonSchema({"type": "string", "pattern": r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"}),
    Expects("a header's name: letters, digits and dashes, such as X-Request-ID", "header name"),
]
HeaderValue = Annotated[
    str,
    PlainValidator(_read_header_value),
    WithJsonSchema({"type": "string"}),
    Expects(
        "text for a header: one line, Latin-1, no spaces around it, quoted if it looks like a number", "text"
    ),
]
UpstreamName = Annotated[
    str,
    PlainValidator(_read_name),
    WithJsonSchema({"type": "string", "pattern": NAME_PATTERN}),
    Expects("a name: small letters, digits and single _ between them", "name of an upstream"),
]
Text = Annotated[str, Field(min_length=1), Expects("text that is not empty", "text")]
FilePath = Annotated[str, Field(min_length=1), Expects("the path of a file", "path")]
Count = Annotated[int, Ge(1), Le(100_000)]
CountOrZero = Annotated[int, Ge(0), Le(1_000_000)]
Attempts = Annotated[int, Ge(1), Le(100)]
Rate = Annotated[float, Ge(0), Le(1)]
Threshold = Annotated[float, Gt(0), Le(1)]
Jitter = Annotated[float, Ge(0), Lt(1)]
Multiplier = Annotated[float, Ge(1), Le(100)]
PerSecond = Annotated[float, Ge(0), Le(100_000)]


class Note(str):
    """Said in brackets behind what a key must be: "must be an integer of at least 1 (it counts the first try)"."""

    __slots__ = ()


class Section(BaseModel):
    """A map of keys: unknown ones are refused, no value is silently made into another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class RequestId(Section):
    """How an inbound request gets its id."""

    header: HeaderName = Field(
        "X-Request-ID", description="Header that carries the id, inbound and outbound."
    )
    accept: bool = Field(True, description="Take a sane inbound id as it is; otherwise one is always made.")


class Service(Section):
    """The application this file belongs to (inbound side)."""

    request_id: RequestId = Field(RequestId(), description="Id of an inbound request.")
    error_responses: Literal["propagate", "map"] = Field(
        "propagate",
        description="What becomes of an upstream error that reaches the middleware: left alone, or answered as problem+json.",
    )


class Install(Section):
    """Govern calls made by code that knows nothing of headrace."""

    requests: bool = Field(True, description="Govern calls made with requests, by URL.")


class Reload(Section):
    """How an edited file is taken into force."""

    debounce: DurationOrZero = Field(
        _duration("100ms"), description="Quiet time after a change before the file is read."
    )
    max_delay: Duration = Field(
        _duration("1s"), description="Longest time that further changes can put reading off."
    )
    poll: Duration = Field(
        _duration("2s"), description="How often the files are looked at even without an event."
    )
    drain: DurationOrZero = Field(
        _duration("30s"), description="How long calls may go on using a pool that a reload has replaced."
    )


class Telemetry(Section):
    """What is measured beyond the upstreams themselves."""

    served_requests: bool = Field(
        True, description="Count and time the requests that the application serves."
    )


class Propagate(Section):
    """What of the inbound context travels on; false for third parties."""

    request_id: bool = Field(True, description="Send the request id with every attempt.")


class Timeouts(Section):
    """Limits of one call."""

    deadline: Duration | None = Field(
        _duration("15s"),
        description="The whole call: waiting, connecting, attempts and back-offs; null: not bounded.",
    )
    attempt: Duration = Field(
        _duration("4s"), description="One attempt, cut to what is left of the deadline."
    )
    connect: Duration = Field(
        _duration("2s"), description="TCP connect, all addresses together; name look-up is not bounded."
    )
    read: Duration = Field(_duration("4s"), description="Longest silence in a streamed body.")
    acquire: DurationOrZero = Field(_duration("500ms"), description="Longest wait for a pooled connection.")


class Pool(Section):
    """Connections to the upstream, per process."""

    max_connections: Count = Field(200, description="Connections that may be open at once, per process.")
    when_full: Literal["wait", "new", "reject"] = Field(
        "wait",
        description="A call that finds no connection free waits, opens a one-off connection, or is rejected.",
    )
    max_waiting: CountOrZero = Field(1024, description="Calls that may wait; one more is rejected at once.")
    idle_timeout: Duration = Field(_duration("60s"), description="An idle connection is closed after it.")


class Tls(Section):
    """What TLS connections trust and present; for https upstreams only."""

    verify: bool = Field(
        True, description="Verify certificate and host name; false needs insecure_skip_verify beside it."
    )
    insecure_skip_verify: bool = Field(False, description="Says that verify: false is meant.")
    ca: FilePath | None = Field(
        None,
        description="CA file or directory; null: REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE or SSL_CERT_FILE, else the system store.",
        examples=["/etc/ssl/internal-ca.pem"],
    )
    cert: FilePath | None = Field(
        None, description="Client certificate (mTLS), PEM.", examples=["/etc/tls/client.pem"]
    )
    key: FilePath | None = Field(
        None,
        description="Key of the client certificate, PEM; null: it is in cert.",
        examples=["/etc/tls/client.key"],
    )
    server_name: Text | None = Field(
        None, description="Name to ask for and to verify; null: the host.", examples=["billing.internal"]
    )
    min_version: Literal["1.2", "1.3"] = Field("1.2", description="Lowest TLS version.")


class Backoff(Section):
    """Wait before a retry: random between 0 and min(max, base · multiplier^(n-1)) before retry n."""

    base: Duration = Field(_duration("25ms"), description="Upper bound of the first wait.")
    multiplier: Multiplier = Field(2.0, description="Growth of the bound with each further retry.")
    max: Duration = Field(_duration("1s"), description="Largest bound.")


class RetryAfter(Section):
    """The upstream's own word on when to come back."""

    max: DurationOrZero = Field(_duration("30s"), description="Longest Retry-After that is waited for.")


class Budget(Section):
    """Retries allowed in proportion to calls, so that retries never become a storm."""

    ratio: Rate = Field(0.2, description="Retries per call, in the long run.")
    min_per_second: PerSecond = Field(3.0, description="Retries allowed whatever the traffic.")
    ttl: BudgetTtl = Field(_duration("10s"), description="How long a call counts towards the budget.")


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
        description="Methods that are retried; any other only if it was never sent.",
        examples=[["GET", "HEAD"]],
    )
    backoff: Backoff = Field(Backoff(), description="Wait before a retry.")
    retry_after: RetryAfter = Field(RetryAfter(), description="What is made of Retry-After.")
    budget: Budget = Field(Budget(), description="Retries allowed in proportion to calls.")


class Window(Section):
    """What the failure rate is taken over."""

    size: WindowSize = Field(_duration("10s"), description="Length of the sliding window (10 buckets).")


class OpenFor(Section):
    """How long the circuit stays open."""

    base: Duration = Field(_duration("5s"), description="The first time.")
    multiplier: Multiplier = Field(2.0, description="Growth with each consecutive opening.")
    max: Duration = Field(_duration("60s"), description="Longest time.")
    jitter: Jitter = Field(0.1, description="Random share added or taken away.")


class HalfOpen(Section):
    """How recovery is verified."""

    max_probes: Count = Field(3, description="Calls let through to find out.")
    success_rate_threshold: Threshold = Field(0.9, description="Share of probes that must succeed to close.")
    window: Duration = Field(_duration("60s"), description="How long probing may take before it is judged.")
    probe_timeout: Duration | None = Field(
        None, description="A probe that hangs longer counts as failed; null: 2 × attempt.", examples=["8s"]
    )


class CircuitBreaker(Section):
    """When calls are refused because the upstream is down."""

    mode: Literal["enforce", "disabled"] = Field("enforce", description="disabled: counts, never opens.")
    window: Window = Field(Window(), description="What the failure rate is taken over.")
    minimum_calls: Count = Field(
        20, description="Calls in the window before the failure rate means anything."
    )
    failure_rate_threshold: Threshold = Field(0.5, description="Opens at this share of failures.")
    consecutive_failures: Count | None = Field(
        5, description="Opens after so many failures in a row, however low the traffic; null: off."
    )
    failure_on: list[Word] = Field(
        ["network", "5xx"],
        description="Outcomes that count as failure.",
        examples=[["network", "gateway_error"]],
    )
    blame_after: DurationOrZero = Field(
        _duration("500ms"),
        description="An attempt cut by a timer is a failure if it had run this long, else ignored.",
    )
    open_for: OpenFor = Field(OpenFor(), description="How long the circuit stays open.")
    half_open: HalfOpen = Field(HalfOpen(), description="How recovery is verified.")


class Rules(Section):
    """The keys that `defaults` and every upstream have."""

    mode: Literal["enforce", "observe", "off"] = Field(
        "enforce", description="observe: measure and report only; off: leave the calls alone."
    )
    headers: dict[HeaderName, HeaderValue] = Field(
        {},
        repr=False,  # values may be secrets
        description="Added to each attempt unless the call set them; values may be ${file:…}.",
        examples=[{"Authorization": "${file:/run/secrets/billing}"}],
    )
    propagate: Propagate = Field(Propagate(), description="What of the inbound context travels on.")
    timeouts: Timeouts = Field(Timeouts(), description="Limits of one call.")
    pool: Pool = Field(Pool(), description="Connections to the upstream, per process.")
    tls: Tls = Field(Tls(), description="What TLS connections trust and present.")
    retry: Retry = Field(Retry(), description="When a failed attempt is followed by another.")
    circuit_breaker: CircuitBreaker = Field(
        CircuitBreaker(), description="When calls are refused because the upstream is down."
    )


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
        description="Upstream whose keys this one takes over, all but base_url, match and headers.",
        examples=["billing"],
    )


class Settings(BaseSettings):
    """headrace's upstreams.yaml: pool, timeout, retry and breaker rules for each upstream of an application."""

    model_config = SettingsConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    version: Annotated[Literal[1], Note("the only version there is")] = Field(
        1, description="Version of this format."
    )
    service: Service = Field(Service(), description="The application this file belongs to (inbound side).")
    install: Install = Field(
        Install(), description="Govern calls made by code that knows nothing of headrace."
    )
    reload: Reload = Field(Reload(), description="How an edited file is taken into force.")
    telemetry: Telemetry = Field(Telemetry(), description="What is measured beyond the upstreams themselves.")
    defaults: Rules = Field(Rules(), description="Merged under every upstream.")
    upstreams: Annotated[dict[UpstreamName, Upstream], Field(min_length=1)] = Field(
        description="The upstreams by name.", examples=[{"billing": {"base_url": "https://billing.internal"}}]
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `config.sources` has merged, in its order: files < secrets directory < environment.

        pydantic-settings' own sources would read the process's environment behind
        the caller's back, and merge values without the positions that errors need.
        """
        return (init_settings,)
