"""Text that is used and never shown. Pure."""

from __future__ import annotations


class Secret(str):
    """A header's value from the file: itself to whoever sends it, `***` to whoever shows what it is held in.

    What a crash reporter, a traceback with locals or a log of some object prints is its repr. `str()`, an f-string,
    `encode()` and pickling are what they are for any text: they are how it is sent.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"
