"""How every command writes, and the exit codes that all of them share."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from headrace.policy.printable import printable_lines

if TYPE_CHECKING:
    from headrace.config import Problem

GOOD, PROBLEMS, USAGE = 0, 1, 2
INTERRUPTED = 130
"""As a shell has it for what Ctrl-C has ended: 128 and the number of the signal."""

EXIT_CODES = "Exit codes: 0 good, 1 problems in the configuration, 2 wrong usage."

_STYLES = {"head": "1", "count": "1", "warning": "1;33", "lint": "1;33", "hint": "1;36", "fix": "32"}
"""SGR parameters (ECMA-48 §8.3.117): 1 is bold, 32, 33 and 36 are green, yellow and cyan."""


def print_safely(text: object, *, to: TextIO | None = None) -> None:
    """Print *text* without what a terminal obeys: parts of it came from a file or from the command line.

    What the terminal's encoding does not have is shown as `?`.
    """
    _print(printable_lines(str(text)), to=to or sys.stdout)


def print_json(value: Any) -> None:
    """Print *value* as JSON that a terminal can show as well: what is not printable is escaped."""
    import json  # here: a start that prints none need not load it

    text = json.dumps(value, indent=2, ensure_ascii=False)
    print("".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text))


def print_problems(problems: Sequence[Problem], *, to: TextIO) -> None:
    """Print all *problems*, sorted, and their number."""
    for problem in sorted(problems):
        print_problem(problem, to=to)
    count = f"{len(problems)} problem{'' if len(problems) == 1 else 's'}."
    _print(_painted(count, "count", to=to), to=to)


def print_problem(problem: Problem, *, kind: str = "", to: TextIO) -> None:
    """Print one: where it is, what is wrong, how to mend it. *kind* stands before it: `warning`, `lint`, `hint`."""
    head, message, *fix = str(problem).split("\n")
    before = _painted(f"{kind}:", kind, to=to) + " " if kind else ""
    _print(before + _painted(head, "head", to=to), to=to)
    print_safely(message, to=to)
    for line in fix:
        _print(_painted(line, "fix", to=to), to=to)


def is_coloured(stream: TextIO) -> bool:
    """Whether *stream* is a terminal that shows colours, and nobody has asked for none (https://no-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") in ("", "dumb"):
        return False
    return stream.isatty()


def _painted(text: str, style: str, *, to: TextIO) -> str:
    """*text*, safe, in the colours of *style* where *to* shows them."""
    text = printable_lines(text)
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if is_coloured(to) else text


def _print(text: str, *, to: TextIO) -> None:
    encoding = to.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), file=to)
