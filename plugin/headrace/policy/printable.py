"""Text from outside, fit to be printed: a terminal obeys control characters, a line break forges a line. Pure."""

from __future__ import annotations


def printable(text: str) -> str:
    """*text* with control characters escaped, so that no message can be forged with them."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def printable_lines(text: str) -> str:
    """The same, line by line, for a *text* whose line breaks are ours."""
    return "\n".join(map(printable, text.split("\n")))
