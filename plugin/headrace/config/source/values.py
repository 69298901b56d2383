"""Types of values: what a duration, a URL, a word, a header is, how it is read and what one must write.

A type does four things. It reads a value, it says in words what one must write (`Expects`), it gives the JSON Schema
its pattern, and it writes itself back as the file would have it. `settings` names the types; `explain.keys` takes the
words from them, so an error text, the key reference and the schema cannot disagree about a range.

pydantic calls the readers with plain values and knows nothing of marks. A reader refuses with a short word
("duration_range"), and `config.check.validate` makes a message of it. Readers never put the value into an error: only
`validate` knows whether it is a secret. A range has a reason. Where it is not plain to see, the class or constant
names its source.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from annotated_types import Ge, Gt, Le, Lt
from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, PlainSerializer, PlainValidator
from pydantic.json_schema import JsonSchemaValue, WithJsonSchema
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from headrace.config.source.units import (
    DURATION_PATTERN,
    SIZE_PATTERN,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)
from headrace.policy.identities import fault_in
from headrace.policy.outcome import FAULT_WORDS, STATUS_WORDS
from headrace.policy.plan import UrlPrefix
from headrace.policy.routes import UrlError, parse_prefix, server_host
from headrace.policy.secret import is_header_value

N = TypeVar("N", int, float)

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


def _in_range(
    kind: Literal["duration", "size"], value: object, parse: Callable[[str], N], least: N, most: N
) -> N:
    """The number that *value* stands for: a text with a unit."""
    if not isinstance(value, str):
        raise PydanticCustomError(kind, "not text")
    try:
        number = parse(value)
    except ValueError:
        raise PydanticCustomError(kind, f"not a {kind}") from None
    if not least <= number <= most:
        raise PydanticCustomError(f"{kind}_range", "out of range")
    return number


class Duration(float):
    """Seconds, written with a unit. Subclasses narrow the range."""

    minimum_s: ClassVar[float] = 0.001
    maximum_s: ClassVar[float] = 30 * 24 * 3600.0  # a batch may be allowed to run for days; a month is a slip

    @classmethod
    def range_words(cls) -> str:
        return f"{format_duration(cls.minimum_s)} to {format_duration(cls.maximum_s)}"

    @classmethod
    def read(cls, value: object) -> Duration:
        """A given text, or the value itself when it is one already."""
        if isinstance(value, cls):
            return value
        return cls(_in_range("duration", value, parse_duration, cls.minimum_s, cls.maximum_s))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.read, serialization=core_schema.plain_serializer_function_ser_schema(format_duration)
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"type": "string", "pattern": DURATION_PATTERN, "examples": ["250ms", "2s", "5m", "1h"]}


class DurationOrZero(Duration):
    """A duration that may be `0s`."""

    minimum_s = 0.0


class BudgetTtl(Duration):
    """Finagle's range. Beyond a minute, yesterday's traffic would pay for today's storm."""

    minimum_s = 1.0
    maximum_s = 60.0


class KeepaliveTime(Duration):
    """What the kernel takes: whole seconds, 15 bits of them (Linux: MAX_TCP_KEEPIDLE)."""

    minimum_s = 1.0
    maximum_s = 9 * 3600.0


class SessionTtl(Duration):
    """TLS allows no ticket more than seven days (RFC 8446, section 4.6.1)."""

    minimum_s = 1.0
    maximum_s = 7 * 24 * 3600.0


class WindowSize(Duration):
    """Long enough for ten buckets to mean something."""

    minimum_s = 0.1
    maximum_s = 3600.0


class Size(int):
    """Bytes, written with a unit."""

    minimum: ClassVar[int] = 1
    maximum: ClassVar[int] = 1 << 40

    @classmethod
    def range_words(cls) -> str:
        return f"{format_size(cls.minimum)} to {format_size(cls.maximum)}"

    @classmethod
    def read(cls, value: object) -> Size:
        """A given text, or the value itself when it is one already."""
        if isinstance(value, cls):
            return value
        return cls(_in_range("size", value, parse_size, cls.minimum, cls.maximum))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.read, serialization=core_schema.plain_serializer_function_ser_schema(format_size)
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"type": "string", "pattern": SIZE_PATTERN, "examples": ["64KiB", "10MiB"]}


def duration(text: str) -> Any:
    """A default, written as in the file; the models share one object."""
    return DurationOrZero(parse_duration(text))


def _read_url(value: object) -> UrlPrefix:
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "not text")
    try:
        return parse_prefix(value)
    except UrlError as error:
        # The text never holds the URL: a password may be in it.
        raise PydanticCustomError("url", "{reason}", {"reason": str(error)}) from None


_MOST_CALLS = 100_000


def _read_window_length(value: object) -> int | Duration:
    if isinstance(value, int) and not isinstance(value, bool):
        if 1 <= value <= _MOST_CALLS:
            return value
        raise PydanticCustomError("window_length", "out of range")
    return WindowSize.read(value)


def _write_window_length(value: float) -> int | str:
    return value if isinstance(value, int) else format_duration(value)


def _read_word(value: object) -> str | int:
    if isinstance(value, str) and value in WORDS:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and 100 <= value <= 599:
        return value
    raise PydanticCustomError("word", "unknown word")


_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)  # RFC 9110 §5.6.2
_METHOD = re.compile(r"[A-Z]+(?:[_-][A-Z]+)*", re.ASCII)
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


def _read_sent_name(value: object) -> str:
    """Of a header that is added to requests. `Connection` may say who closes; `check.checks` looks at its value."""
    if isinstance(value, str) and value.lower() == "connection":
        return value
    return _read_header_name(value)


def _read_header_value(value: object) -> str:
    if not isinstance(value, str) or not is_header_value(value):
        raise PydanticCustomError("header_value", "not a header value")
    return value


def _read_method(value: object) -> str:
    if not isinstance(value, str) or not _METHOD.fullmatch(value):
        raise PydanticCustomError("method", "not a method")
    return value


def _read_server_name(value: object) -> str:
    try:
        return server_host(value if isinstance(value, str) else "")
    except UrlError:
        raise PydanticCustomError("server_name", "not a host") from None


def _read_identity(value: object) -> str:
    fault = fault_in(value) if isinstance(value, str) else "be a SPIFFE id or a DNS name"
    if fault is not None:
        raise PydanticCustomError("identity", "{reason}", {"reason": f"must {fault}"})
    return str(value)


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
WindowLength = Annotated[
    int | WindowSize,
    PlainValidator(_read_window_length),
    PlainSerializer(_write_window_length),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": DURATION_PATTERN, "examples": ["10s"]},
                {"type": "integer", "minimum": 1, "maximum": _MOST_CALLS},
            ]
        }
    ),
    Expects(
        f"a duration with a unit (250ms, 2s, 5m, 1h) from {WindowSize.range_words()}, "
        f"or with type: count a number of calls from 1 to {_MOST_CALLS}",
        "duration or integer",
        is_text=False,
    ),
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
SentHeaderName = Annotated[
    str,
    PlainValidator(_read_sent_name),
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
Identity = Annotated[
    str,
    PlainValidator(_read_identity),
    WithJsonSchema(
        {"type": "string", "pattern": r"^(spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)+|[^:/\s]+|.*\$\{.*)$"}
    ),
    Expects("a SPIFFE id such as spiffe://prod/billing, or a DNS name", "SPIFFE id or DNS name"),
]
Text = Annotated[str, Field(min_length=1), Expects("text that is not empty", "text")]
ServerName = Annotated[
    str,
    PlainValidator(_read_server_name),
    WithJsonSchema({"type": "string", "pattern": r"^([^\s/*]+|.*\$\{.*)$"}),
    Expects("the name or the address of a host, such as billing.internal", "host"),
]
PathOnly = Annotated[
    str,
    Field(pattern=r"^/[\x21-\x7e]*$"),
    Expects("a path that begins with / and has no space in it, such as /healthz", "/healthz"),
]
FunctionPath = Annotated[
    str,
    Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$"),
    Expects("a function as package.module:function", "package.module:function"),
]
StatusCode = Annotated[int, Ge(200), Le(599)]
FilePath = Annotated[str, Field(min_length=1), Expects("the path of a file", "path")]
Count = Annotated[int, Ge(1), Le(_MOST_CALLS)]
CountOrZero = Annotated[int, Ge(0), Le(1_000_000)]
IdleCount = Annotated[int, Ge(0), Le(100_000)]
KeepaliveCount = Annotated[int, Ge(1), Le(127)]  # Linux: MAX_TCP_KEEPCNT
SessionCount = Annotated[int, Ge(1), Le(10_000)]
Attempts = Annotated[int, Ge(1), Le(100)]
Rate = Annotated[float, Ge(0), Le(1)]
Threshold = Annotated[float, Gt(0), Le(1)]
Times = Annotated[float, Ge(0), Le(100)]
Jitter = Annotated[float, Ge(0), Lt(1)]
Multiplier = Annotated[float, Ge(1), Le(100)]
PerSecond = Annotated[float, Ge(0), Le(100_000)]


class Note(str):
    """Said in brackets behind what a key must be: "an integer of at least 1 (it counts the first try)"."""

    __slots__ = ()
