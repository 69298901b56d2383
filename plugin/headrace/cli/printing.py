"""How every command writes, and the exit codes that all of them share."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from headrace.policy.printable import printable_lines

GOOD, PROBLEMS, USAGE = 0, 1, 2


def print_safely(text: object, *, to: TextIO | None = None) -> None:
    """Print *text* without what a terminal obeys: parts of it came from a file or from the command line.

    What the terminal's encoding does not have is shown as `?`.
    """
    stream = to or sys.stdout
    encoding = stream.encoding or "utf-8"
    print(printable_lines(str(text)).encode(encoding, "replace").decode(encoding), file=stream)


def print_json(value: Any) -> None:
    """Print *value* as JSON that a terminal can show as well: what is not printable is escaped."""
    import json  # here: a start that prints none need not load it

    text = json.dumps(value, indent=2, ensure_ascii=False)
    print("".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text))
