"""What the author of a refused value has said, in the words that its key takes. Nothing here is a guess.

A proposal is copied into files at three in the morning, so it has to mean what was meant: `80` for a share is `0.8`,
`mode: false` is `mode: off`, and the default of the key is never one. Each proposal is read back as the loader would
read it (`_is_taken`) before it is made. `misspelt` is the weaker word: a question, for what looks like a slip of the
keyboard.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from fractions import Fraction
from functools import cache
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from headrace.config.explain.keys import Key, yaml_text
from headrace.config.source.document import DocumentError, read_document
from headrace.config.source.tree import Scalar, plain
from headrace.config.source.units import nearest_duration, nearest_size
from headrace.config.source.values import WORDS

_NO = frozenset({"false", "no", "off", "n", "f", "disable", "disabled", "none", "never"})
_YES = frozenset({"true", "yes", "on", "y", "t", "enable", "enabled"})
_NO_LIMIT = frozenset({"unlimited", "infinite", "infinity", "inf", ".inf"})
_OFF_WORDS = ("off", "disabled", "none")
"""How the enumerations of this format say that something is not done."""

_NULL_IS_ANOTHER_VALUE = frozenset({"probe_timeout"})
"""Keys whose null is no "off": it stands for a value that is made of others."""

_OFF_SECTIONS = {"circuit_breaker": "{mode: disabled}", "retry": "{max_attempts: 1}"}

_NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_COUNTS = {word: number for number, word in enumerate(_NUMBERS, start=1)}
_MOST_CHARACTERS = 200


def proposals(key: Key, node: Scalar) -> tuple[str, ...]:
    """YAML values of *key* that mean what *node* says; two where only its author knows the unit, none for a guess."""
    if len(node.text) > _MOST_CHARACTERS or not node.text.isprintable():
        return ()
    readings = tuple(_readings(key, node))
    return readings if all(_is_taken(key, text) for text in readings) else ()


def misspelt(key: Key, node: Scalar) -> str | None:
    """The word of *key*, as YAML, that *node* looks like, or None."""
    words = WORDS if key.kind == "word or status code" else key.choices
    text = node.text.strip().lower()
    if (
        len(words) < 2 or not isinstance(node.value, str) or text[:1].isdigit()
    ):  # "4xx" is as near to 5xx as to none
        return None
    scores = {word: SequenceMatcher(None, text, word).ratio() for word in words}
    near = max(scores, key=lambda word: scores[word])
    if scores[near] < 0.75 or _stem(near) == _stem(text):
        return None
    return yaml_text(near)


def _stem(word: str) -> str:
    """*word* without what makes its opposite: `enabled` and `disabled` are near, and no slip of the keyboard."""
    return re.sub(r"^(?:dis|en|un|non|not|no|de)[-_]?", "", word)


def _readings(key: Key, node: Scalar) -> Iterator[str]:
    said = str(node.value).lower().strip() if isinstance(node.value, bool) else node.text.strip().lower()
    is_off = said in _NO
    if (
        key.is_nullable
        and not key.is_text
        and key.name not in _NULL_IS_ANOTHER_VALUE
        and said in _NO | _NO_LIMIT
    ):
        yield "null"
    elif key.children:
        if is_off and key.name in _OFF_SECTIONS:
            yield _OFF_SECTIONS[key.name]
    elif key.choices:
        yield from _choice(key, node, said)
    elif key.is_duration:
        yield from _durations(key, node)
    elif key.kind == "duration or integer":
        is_a_time = isinstance(node.value, str) and not node.text.strip()[-1:].isdigit()
        if is_a_time and (found := nearest_duration(node.text)) is not None:
            yield found
    elif key.is_size:
        if not isinstance(node.value, bool) and (size := nearest_size(node.text)) is not None:
            yield size
    elif key.kind == "true or false":
        if said in _YES or said == "1":
            yield "true"
        elif (is_off and said not in ("none", "never")) or said == "0":
            yield "false"
    elif key.kind in ("integer", "number") and not isinstance(node.value, bool):
        yield from _numbers(key, node)
    elif key.kind == "method" and node.text.strip().isalpha():
        yield node.text.strip().upper()
    elif key.kind == "word or status code" and isinstance(node.value, str):
        yield said
    elif key.item is not None and not key.is_map:
        yield from _list(key, node)
    elif key.is_text and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        yield yaml_text(node.text)


def _choice(key: Key, node: Scalar, said: str) -> Iterator[str]:
    word = re.sub(r"[\s-]+", "_", said)
    version = re.fullmatch(r"tls ?v?(1\.[0-9])", said)
    if version is not None:
        word = version[1]
    if word in key.choices:
        yield yaml_text(word) if key.is_text else word
    elif said in _NO and len(off := [one for one in _OFF_WORDS if one in key.choices]) == 1:
        yield off[0]
    elif not key.is_text and re.fullmatch(r"[0-9]+\.0+", said) and said.partition(".")[0] in key.choices:
        yield said.partition(".")[0]


def _durations(key: Key, node: Scalar) -> Iterator[str]:
    if isinstance(node.value, bool):
        return
    text = node.text.strip()
    if re.fullmatch(r"[0-9]{1,9}(?:\.[0-9]{1,6})?", text):
        yield from _without_unit(key, text)
    elif (found := nearest_duration(text)) is not None:
        yield found


def _without_unit(key: Key, text: str) -> Iterator[str]:
    """A number without its unit is seconds, as everywhere in Python; a large one may well be milliseconds."""
    # Where the default is below a second, any whole number may be.
    default = key.default or ""
    if "." not in text and int(text) and (int(text) >= 60 or default.endswith("ms")):
        yield f"{text}ms"
    yield f"{text}s"


def _numbers(key: Key, node: Scalar) -> Iterator[str]:
    text = node.text.strip().lower()
    share = re.fullmatch(r"([0-9]{1,6}(?:[.,][0-9]{1,6})?) ?(?:%|percent|per cent)", text)
    if share is not None and key.kind == "number":
        yield _decimal(Fraction(share[1].replace(",", ".")) / 100)
    elif text in _COUNTS:
        yield str(_COUNTS[text])
    elif re.fullmatch(
        r"\+?[0-9]{1,3}(?:,[0-9]{3})+", text
    ):  # thousands: a decimal comma is followed by fewer digits
        if key.kind == "integer":
            yield text.replace(",", "").removeprefix("+")
    elif (
        re.fullmatch(r"\+?[0-9_]{1,12}(?:[.,][0-9]{0,9})?(?:e[+-]?[0-9])?|\.[0-9]{1,9}", text)
        and text[0] != "_"
    ):
        number = Fraction(re.sub(r"\.(?=e|$)", "", text.replace("_", "").replace(",", ".")))
        if key.kind == "number" and key.is_share and 1 < number <= 100 and number.denominator == 1:
            number /= 100  # 80 of a hundred; 1.5 may be anything
        if key.kind == "number" or number.denominator == 1:
            yield _decimal(number)


def _decimal(number: Fraction) -> str:
    return f"{float(number):.9f}".rstrip("0").rstrip(".")


def _list(key: Key, node: Scalar) -> Iterator[str]:
    """One value, or several with commas or spaces between, where a list of them is wanted."""
    assert key.item is not None
    if node.value is None or node.value == "" or key.item.children:
        return
    items = []
    for part in (
        re.split(r"\s*,\s*|\s+", node.text.strip(" ,[]")) if isinstance(node.value, str) else [node.text]
    ):
        item = Scalar(part if not part.isdigit() else int(part), part, node.mark)
        as_it_is = part if part.isdigit() and not key.item.is_text else yaml_text(part)
        found = (as_it_is,) if _is_taken(key.item, as_it_is) else proposals(key.item, item)
        if len(found) != 1:
            return
        items.append(found[0])
    yield f"[{', '.join(items)}]"


def _is_taken(key: Key, text: str) -> bool:
    """Whether the loader takes *text* where it stands in a file as the value of *key*."""
    try:
        value = plain(read_document(f"value: {text}".encode(), "proposal")["value"])
        _adapter(key).validate_python(value, strict=True)
    except (DocumentError, ValidationError):
        return False
    return True


@cache
def _adapter(key: Key) -> TypeAdapter[Any]:
    wanted: Any = Annotated[key.annotation, *key.metadata] if key.metadata else key.annotation
    return TypeAdapter(wanted)
