"""Where a request's path leads, by every reading that a server may have of it. Pure.

Servers disagree: whether `%2f` and `\\` separate segments, whether `..;x` is `..`, whether `//` is one slash, how
often they decode. Certain is only what all of them agree on. That alone decides which upstream's headers a request
gets.

Sources: RFC 3986 §5.2.4 and §6.2.2; Orange Tsai, "Breaking Parser Logic" (Black Hat 2018) for `..;/`, `%2f`, `%5c`,
`%252e` and `//`; CVE-2021-41773 (`.%2e`), CVE-2000-0884 (overlong UTF-8, `%u002e`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import partial
from urllib.parse import unquote_to_bytes

BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")

_ODD_PATH = re.compile(r"[^!$&'()*+,./0-9:=@A-Z_a-z~-]|/[./]")
# One segment to every server. It holds a letter (it is not of dots alone), and nothing that decodes to a separator,
# a dot, a control character or the beginning of anything longer. For speed: `_reading` says the same of these.
_PLAIN = re.compile(
    r"(?=[!$&'()*+,.:=@]*[0-9A-Z_a-z~-])"
    r"(?:[!$&'()*+,.0-9:=@A-Z_a-z~-]"
    r"|%(?:2[0-246-9A-D]|3[0-9AC-E]|[46][0-9A-F]|5[0-9ABD-F]|7[0-9A-E]|(?:C[2-9A-F]|D[0-9A-F])%[89AB][0-9A-F]))+"
)
# Everything but the characters of a segment (RFC 3986 §3.3) that urllib3 and requests do not encode themselves.
_UNENCODED = re.compile(r"[^!$%&'()*+,./0-9:;=@A-Z_a-z~-]")
_PERCENT = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")

_SEPARATOR = re.compile(r"[/\\]")
_CUT = re.compile(r"[;?#\x00]")  # parameters; a query after decoding; the end of a string in C
_IIS = re.compile(r"%u([0-9A-Fa-f]{4})")
_OVERLONG = re.compile(rb"\xc0[\xae\xaf]|\xc1\x9c|\xe0\x80[\xae\xaf]")
_OVERLONG_MEANS = {
    b"\xc0\xae": b".",
    b"\xc0\xaf": b"/",
    b"\xc1\x9c": b"\\",
    b"\xe0\x80\xae": b".",
    b"\xe0\x80\xaf": b"/",
}
_MOST_ROUNDS = 8  # of decoding; no server has more than two, and each round costs the length of the segment

_ONE, _ONE_OR_MORE, _MAYBE_NONE = range(3)
"""What a segment is, over all readings: one; one or more; or perhaps none."""


def segments_of(path: str) -> tuple[tuple[str, ...], int]:
    """Segments of *path*, dot segments resolved (RFC 3986 §5.2.4), and how many of the first are certain.

    Certain is what every reading begins with: no server takes it away, whatever else the path holds.
    """
    if path in ("", "/"):
        return (), 0
    if not _ODD_PATH.search(path):
        plain = tuple(path.split("/")[1:])
        return plain, len(plain)
    written = _literal(path)
    if all(map(_PLAIN.fullmatch, written)):
        return tuple(written), len(written)
    walk = _Walk()
    literal: list[str] = []
    for segment in written:
        if segment == "..":
            if literal:
                literal.pop()
            walk.up()
        elif segment != ".":
            literal.append(segment)
            walk.step(segment)
    return tuple(literal), len(walk.certain)


def may_leave(path: str) -> bool:
    """Whether *path*, appended to another path, leads out of that path in any reading."""
    path = path if path.startswith("/") else f"/{path}"
    if not _ODD_PATH.search(path):
        return False
    walk = _Walk()
    for segment in _literal(path):
        if segment == "..":
            walk.up()
        elif segment != ".":
            walk.step(segment)
    return walk.has_left


def is_one_segment(segment: str) -> bool:
    """Whether no server takes *segment* (normalised) for a step up."""
    return _PLAIN.fullmatch(segment) is not None or not _reading(segment)[1]


def normalised(segment: str) -> str:
    """A path's *segment*, encoded as it is when sent, with unreserved characters decoded (RFC 3986 §6.2.2.2)."""
    segment = _UNENCODED.sub(_encoded, segment)
    return _PERCENT.sub(_decoded, segment) if "%" in segment else segment


class _Walk:
    """What all readings of the segments walked so far have in common. Mutable; owned by one call.

    Attributes:
        certain: Kinds of the segments that every reading begins with.
        has_left: A reading went above where it began.
    """

    __slots__ = ("_further", "_is_aligned", "certain", "has_left")

    def __init__(self) -> None:
        self.certain: list[int] = []
        self.has_left = False
        self._is_aligned = True  # the next segment comes right after the certain ones, in every reading
        self._further = 0  # segments after the certain ones, in the reading that has the fewest

    def up(self) -> None:
        """`..`: the last segment goes."""
        if self._further:
            self._further -= 1
            return
        while self.certain:
            kind = self.certain.pop()
            if kind != _ONE:
                self._is_aligned = False  # in some readings a part of it stays
            if kind != _MAYBE_NONE:
                return
        self.has_left = True

    def step(self, segment: str) -> None:
        """A segment that is neither `.` nor `..`, normalised."""
        kind, ups = (_ONE, 0) if _PLAIN.fullmatch(segment) else _reading(segment)
        if ups:
            self._is_aligned = False
            for _ in range(min(ups, len(self.certain) + self._further + 1)):
                self.up()
        elif self._is_aligned:
            self.certain.append(kind)
        elif kind != _MAYBE_NONE:
            self._further += 1


def _literal(path: str) -> list[str]:
    if BAD_PERCENT.search(path):
        path = path.replace("%", "%25")  # as urllib3 and requests do: then no % stands for an encoding
    path = _UNENCODED.sub(_encoded, path)
    if "%" in path:
        path = _PERCENT.sub(_decoded, path)
    return path.split("/")[1:]


def _reading(segment: str) -> tuple[int, int]:
    """What *segment* may be to a server: its kind, and how many steps up it may hold."""
    text = _fully_decoded(segment)
    if text is None:
        return _MAYBE_NONE, len(segment)
    pieces = [_stripped(piece) for piece in _SEPARATOR.split(text)]
    ups = sum(max(len(piece) - 1, 0) for piece in pieces if not piece.strip("."))
    if ups or not pieces[0].strip("."):
        return _MAYBE_NONE, ups
    is_one = len(pieces) == 1 and not any(char in text for char in "?#\x00")
    return (_ONE if is_one else _ONE_OR_MORE), 0


def _fully_decoded(segment: str) -> str | None:
    """*segment* after all decoding and folding that servers are known for; None where decoding does not end."""
    data = segment.encode("ascii")
    for _ in range(_MOST_ROUNDS):
        before, data = data, unquote_to_bytes(data)
        if data == before:
            break
    else:
        return None
    data = _OVERLONG.sub(lambda match: _OVERLONG_MEANS[match.group()], data)
    text = _IIS.sub(lambda match: chr(int(match.group(1), 16)), data.decode("utf-8", "replace"))
    return text if text.isascii() else unicodedata.normalize("NFKC", text)


def _stripped(piece: str) -> str:
    """*piece* without parameters, and without the characters that some servers ignore."""
    return "".join(char for char in _CUT.split(piece, maxsplit=1)[0] if char.isprintable() and char != " ")


def _encoded(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match.group().encode("utf-8", "surrogatepass"))


def _decoded(match: re.Match[str]) -> str:
    char = chr(int(match.group(1), 16))
    return char if char in _UNRESERVED else match.group().upper()


quoted: Callable[[str], str] = partial(re.compile(r"[\x00-\x20\\\x7f]").sub, _encoded)
"""A target without the raw characters that HTTP libraries encode and URL parsers remove. No Python call."""
