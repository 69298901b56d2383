"""Text that is used and never shown. Pure."""

from __future__ import annotations

import re

_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


def is_header_value(text: str) -> bool:
    """Whether *text* may be a header's value: one line of Latin-1, as http.client encodes it, no blanks around it.

    CR and LF would smuggle in another header.
    """
    return _HEADER_VALUE.fullmatch(text) is not None and text == text.strip(" \t")


class Secret(str):
    """A header's value from the file: sent as it is, but shown as `***` where an object that holds it is shown.

    A crash reporter, a traceback with locals or a log of some object prints its repr. `str()`, an f-string,
    `encode()` and pickling work as for any text: that is how it is sent.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"
