"""What is wrong with a configuration: where, what, found, how to fix it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from headrace.errors import ConfigError
from headrace.policy.frozen import frozen
from headrace.policy.printable import printable

Path = tuple[str | int, ...]

MAX_PROBLEMS = 500
"""The most of one kind of check. Nobody reads more; a hostile file of a megabyte could have a quarter of a million."""


@frozen
class Problem:
    """One thing that is wrong. Holds no secret: texts are built from masked values.

    Attributes:
        file: The file as it was named, `environment NAME`, or a file of the secrets directory.
        line: From 1; 0 where there is no line (a missing file, the environment).
        column: From 1, in characters; 0 where there is none.
        path: The key with dots, or "" for the file as a whole.
        message: What is wrong and what was found.
        fix: What to write instead, or "" when only the author can know.
    """

    file: str
    line: int
    column: int
    path: str
    message: str
    fix: str = ""

    def __lt__(self, other: Problem) -> bool:
        return self._order() < other._order()

    def _order(self) -> tuple[str, int, int, str, str, str]:
        return self.file, self.line, self.column, self.path, self.message, self.fix

    def __str__(self) -> str:
        position = f":{self.line}:{self.column}" if self.line else ""
        head = f"{self.file}{position}: {self.path}" if self.path else f"{self.file}{position}"
        return "\n    ".join(map(printable, [head, self.message, *([self.fix] if self.fix else [])]))


def render_problems(problems: Sequence[Problem], *, consequence: str = "") -> str:
    """All *problems* as one text, sorted by file and line, with their number as its last line.

    Args:
        problems: At least one.
        consequence: What that means for the reader, such as "the
            configuration loaded at 14:02:11 stays in force".
    """
    count = f"{len(problems)} problem" if len(problems) == 1 else f"{len(problems)} problems"
    closing = f"{count}; {consequence}." if consequence else f"{count}."
    return "\n".join([*map(str, sorted(problems)), closing])


def refusal(problems: Iterable[Problem], *, watched: Sequence[str] = ()) -> ConfigError:
    """The error that carries all *problems*; *watched* as in ConfigError."""
    ordered = sorted(set(problems))
    return ConfigError(render_problems(ordered), problems=ordered, watched=watched)


def dotted(path: Path) -> str:
    """*path* as people write it: `upstreams.billing.retry.retry_on[1]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


def did_you_mean(word: str, known: Sequence[str]) -> str | None:
    """The word of *known* nearest to *word*, or None when none is near."""
    near = get_close_matches(word.lower(), [name.lower() for name in known], n=1, cutoff=0.6)
    if not near:
        return None
    return next(name for name in known if name.lower() == near[0])
