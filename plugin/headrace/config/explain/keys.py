"""What is known about every key, taken from the models: for errors, environment names and the reference."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, NamedTuple, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from headrace.config.check.problems import Path
from headrace.config.settings import ESSENTIAL, Settings
from headrace.config.source.document import resolve
from headrace.config.source.units import format_duration, format_size
from headrace.config.source.values import Duration, Expects, Note, Size


class Key:
    """One key of the file, or the items of a list or of a map with free names.

    Attributes:
        name: The key itself; "" for items and the whole file.
        must: What its value must be, to go on from "must be …".
        kind: Its type in a word or two.
        note: Said in brackets behind `must`, or "".
        is_text: Digits stay text here.
        is_duration: Wants a number and a unit of time.
        is_size: Wants a number and a unit of bytes.
        is_share: A number of which 1 is the whole.
        at_most: Upper bound of an integer, as text, or "".
        choices: The only texts allowed, when it is an enumeration.
        children: Known keys below it, when it is a section.
        item: Its items, when it is a list or a map with free names.
        is_map: A section or a map with free names.
        example: A good value as YAML.
        default: The built-in value as YAML, or None when the key is required.
        description: First line of its documentation.
        is_nullable: null is allowed.
        annotation: Its type in the models, with *metadata* what pydantic checks it with.
    """

    __slots__ = (
        "annotation",
        "at_most",
        "children",
        "choices",
        "default",
        "description",
        "example",
        "is_duration",
        "is_map",
        "is_nullable",
        "is_share",
        "is_size",
        "is_text",
        "item",
        "kind",
        "metadata",
        "must",
        "name",
        "note",
        "range",
    )

    def __init__(self, name: str, annotation: Any, metadata: list[Any]) -> None:
        self.name = name
        self.annotation: Any = annotation
        self.metadata = tuple(metadata)
        self.note = ""
        self.range = ""
        self.choices: tuple[str, ...] = ()
        self.children: dict[str, Key] = {}
        self.item: Key | None = None
        self.at_most = ""
        self.is_map = False
        self.is_text = False
        self.is_duration = self.is_size = self.is_share = False
        self.is_nullable = False
        self.example = ""
        self.default: str | None = None
        self.description = ""
        self.must = self.kind = "a value"
        self._read(annotation, metadata)

    def child(self, part: str | int) -> Key | None:
        """The key *part* below this one, or None when there is none."""
        return self.children.get(part, self.item) if isinstance(part, str) and self.is_map else self.item

    def takes_text(self, value: object) -> bool:
        """Whether it wants the text of outside as it stands, and not *value*, which YAML would make of that."""
        return self.is_text and not (value is None and self.is_nullable)

    def _read(self, annotation: Any, metadata: list[Any]) -> None:
        origin = get_origin(annotation)
        if origin is Annotated:
            inner, *more = get_args(annotation)
            return self._read(inner, [*_flat(more), *metadata])
        expects = [item for item in metadata if isinstance(item, Expects)]
        self.note = next((str(item) for item in metadata if isinstance(item, Note)), self.note)
        if origin in (Union, types.UnionType) and not expects:
            members = [member for member in get_args(annotation) if member is not type(None)]
            self.is_nullable = len(members) < len(get_args(annotation))
            return self._read(members[0], metadata)
        if origin in (Union, types.UnionType):
            self.is_nullable = type(None) in get_args(annotation)
        if expects:
            self.must, self.kind, self.is_text = expects[0].must, expects[0].kind, expects[0].is_text
        elif origin is Literal:
            self._read_literal(get_args(annotation))
        elif origin is dict:
            name, value = get_args(annotation)
            self.is_map, self.item = True, Key("", value, [])
            self.must, self.kind = f"a map from {Key('', name, []).kind} to {self.item.kind}", "map"
        elif origin is list:
            self.item = Key("", get_args(annotation)[0], [])
            if self.item.children:
                self.item.example = _map_example(self.item)
            self.must, self.kind = f"a list ({self.item.kind} each)", f"list of {self.item.kind}"
        else:
            self._read_class(annotation, metadata)
        return None

    def _read_literal(self, values: tuple[Any, ...]) -> None:
        self.choices = tuple(map(str, values))
        self.is_text = all(isinstance(value, str) for value in values)
        words = [f'"{value}"' if _needs_quotes(value) else str(value) for value in values]
        self.must = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
        self.kind = " \\| ".join(words)

    def _read_class(self, annotation: Any, metadata: list[Any]) -> None:
        if issubclass(annotation, BaseModel):
            self.is_map = True
            self.must, self.kind = "a map of keys", "map"
            fields = annotation.model_fields
            # pydantic puts inherited fields first, but an upstream begins with base_url. Few upstreams extend another.
            own = annotation.__annotations__
            own_first = sorted(fields, key=lambda name: (name == "extends", name not in own))
            # An alias where the key is a word of Python (`from`).
            self.children = {
                (key := fields[name].alias or name): _key(key, fields[name]) for name in own_first
            }
        elif issubclass(annotation, Duration):
            self.is_duration = True
            self.kind, self.range = "duration", annotation.range_words()
            self.must = f"a duration with a unit (250ms, 2s, 5m, 1h) from {self.range}"
        elif issubclass(annotation, Size):
            self.is_size = True
            self.kind, self.range = "size", annotation.range_words()
            self.must = f"a size with a unit (512B, 64KiB, 10MiB, 1GiB) from {self.range}"
        elif annotation is bool:
            self.must = self.kind = "true or false"
        elif annotation is int:
            self.kind, (words, self.range) = "integer", _bounds("an integer", metadata)
            # Upper bounds are against slips of the keyboard. The author of "three" need not hear of them.
            self.must, _, self.at_most = words.replace(" from ", " of at least ").partition(" to ")
        elif annotation is float:
            self.kind, (self.must, self.range) = "number", _bounds("a number", metadata)
            self.is_share = self.range.endswith((" to 1", " to below 1"))
        else:
            self.must, self.kind, self.is_text = "text", "text", True


_ALWAYS_LOOKED_AT: Final = (
    "is no setting any more: each idle connection is looked at before use, for what its peer has sent unasked "
    "would be the next call's answer"
)
GONE: Final[Mapping[Path, tuple[str, str]]] = MappingProxyType(
    {("pool", "validation_bypass"): (_ALWAYS_LOOKED_AT, "remove it")}
)
"""Keys that the format once had, by section and name: why each has gone, and what to do."""


class Renamed(NamedTuple):
    """The new name of a key, in the same section, and the version in which the old one is refused."""

    to: str
    goes: str


RENAMED: Final[Mapping[Path, Renamed]] = MappingProxyType({})
"""Keys that have got another name, by their old path, with `<name>` for the name of an upstream (`defaults` is meant,
too): read and told of for as long as `docs/versions.md` promises. A section comes before the keys in it, and these
stand under its new name. Then the row goes to `GONE`.
"""


@cache
def root_key() -> Key:
    """The whole file."""
    return Key("", Settings, [])


def key_at(path: Path) -> Key | None:
    """What is known about the key at *path*, or None for one that does not exist."""
    key: Key | None = root_key()
    for part in path:
        if key is None:
            return None
        key = key.child(part)
    return key


def is_essential(path: Path) -> bool:
    """Whether the key at *path*, or one below it, is among those that a user needs first.

    Args:
        path: With `<name>` for the name of an upstream.
    """
    return any(path == one[: len(path)] or one == path[: len(one)] != () for one in ESSENTIAL)


def yaml_text(value: Any) -> str:
    """*value* of a model as one would write it in the file."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Duration):
        return format_duration(value)
    if isinstance(value, Size):
        return format_size(value)
    if isinstance(value, float) and value == int(value):
        return str(int(value))
    if isinstance(value, list):
        return f"[{', '.join(map(yaml_text, value))}]"
    if isinstance(value, BaseModel):
        value = dict(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {yaml_text(item)}" for key, item in value.items()) + "}"
    if _needs_quotes(value):
        # YAML reads JSON's escapes, but no pairs of surrogates. A line break would forge lines of `explain`.
        text = json.dumps(value, ensure_ascii=False)
        return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in text)
    return str(value)


def _key(name: str, field: FieldInfo) -> Key:
    # FieldInfo.annotation is what is left once the extras of Annotated have moved to metadata.
    key = Key(name, field.annotation, list(field.metadata))
    key.description = field.description or ""
    default = field.default
    if default is not PydanticUndefined and not isinstance(default, BaseModel):
        key.default = yaml_text(default)
    if field.examples:
        key.example = yaml_text(field.examples[0])
    elif key.children:
        key.example = _map_example(key)
    elif key.default not in (None, "null", "{}"):
        key.example = key.default or ""
    return key


def _map_example(key: Key) -> str:
    first = next(iter(key.children.values()))
    return f"{{{first.name}: {first.example}}}"


def _flat(metadata: list[Any]) -> list[Any]:
    """Extras of an Annotated, with those of a Field inside it (min_length and the like) spread out."""
    return [part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else [item])]


def _bounds(noun: str, metadata: list[Any]) -> tuple[str, str]:
    low = next((item for item in metadata if isinstance(item, Ge | Gt)), None)
    high = next((item for item in metadata if isinstance(item, Le | Lt)), None)
    if low is None or high is None:
        return noun, ""
    low_value: Any = low.ge if isinstance(low, Ge) else low.gt
    high_value: Any = high.le if isinstance(high, Le) else high.lt
    low_words = f"{low_value}" if isinstance(low, Ge) else f"above {low_value}"
    high_words = f" to {high_value}" if isinstance(high, Le) else f" to below {high_value}"
    return (
        f"{noun} {'from ' if isinstance(low, Ge) else ''}{low_words}{high_words}",
        f"{low_words}{high_words}",
    )


# What ends a plain text in a list or a map, or cannot begin one (YAML 1.2.2 §7.3.3). Some texts that YAML would allow
# plain are quoted, too.
_NOT_PLAIN: Final = re.compile(r"""^[-?:&*!|>'"%@`#]|^\s|\s$|[,\[\]{}]|:(?:\s|$)|\s#""")


def _needs_quotes(value: object) -> bool:
    return isinstance(value, str) and (
        "${" in value
        or not value.isprintable()
        or not isinstance(resolve(value), str)
        or _NOT_PLAIN.search(value) is not None
    )
