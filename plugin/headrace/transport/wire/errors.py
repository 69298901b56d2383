"""What is wrong with bytes that a peer has sent. No text shows what the peer sent as a value."""

from __future__ import annotations


class Malformed(Exception):
    """What has come is not HTTP/1.1, or could be read in two ways. Its text says what is wrong."""


class TooLarge(Malformed):
    """A limit was passed. Its text says which, and its value.

    Attributes:
        is_of_body: That of the body.
    """

    def __init__(self, text: str, *, is_of_body: bool = False) -> None:
        super().__init__(text)
        self.is_of_body = is_of_body


class Truncated(Exception):
    """The stream has ended within an answer, or before one.

    Attributes:
        expected: Bytes of the whole body where they are known; None: the head did not come, or it gave no length.
        received: Bytes of the body that have come; None: the head did not come.
    """

    def __init__(self, text: str, *, expected: int | None = None, received: int | None = None) -> None:
        super().__init__(text)
        self.expected, self.received = expected, received
