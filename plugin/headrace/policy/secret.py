"""Text that is used and never shown. Pure."""

from __future__ import annotations


class Secret(str):
    """A header's value from the file: sent as it is, but shown as `***` where an object that holds it is shown.

    A crash reporter, a traceback with locals or a log of some object prints its repr. `str()`, an f-string,
    `encode()` and pickling work as for any text: that is how it is sent.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"
