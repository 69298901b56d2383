"""Headers that requests puts on a call which has not asked for them: they are nobody's wish."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from requests.utils import default_headers

_DEFAULTS = {name.lower(): value for name, value in default_headers().items()}


def is_librarys(name: str, value: object) -> bool:
    """Whether *value* of header *name* is what every new Session of requests begins with.

    A caller may write the same text, and means it. So the object is compared: requests hands out its own constants.
    Its User-Agent is made anew for each Session, and there the text is compared. (A free-threaded Python has one
    object for equal constants: what a caller writes as a constant of the same text cannot be told from it there.)
    """
    name = name.lower()
    default = _DEFAULTS.get(name)
    return default is not None and (value is default or (name == "user-agent" and value == default))


def know_again(headers: MutableMapping[str, Any]) -> None:
    """Put the library's own objects back where a pickle has made copies of them. Mutates *headers*."""
    for name, default in _DEFAULTS.items():
        if headers.get(name) == default:
            headers[name] = default
