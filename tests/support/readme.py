"""README.md taken apart: its code blocks by heading, its tables by their first column."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

README = Path(__file__).parents[2] / "README.md"

SHOWN: set[str] = set()
"""Keys of the blocks that some test claims to show, filled by `shows`."""

_Test = TypeVar("_Test", bound=Callable[..., object])

_MASKS = (
    (re.compile(r"\b\d+\.\d+ s\b"), "N s"),
    (re.compile(r"\bdigest [0-9a-f]{12}\b"), "digest D"),
    (re.compile(r"\brequest id [0-9a-f]{32}\b"), "request id I"),
)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block.

    Attributes:
        key: Heading and number below it, from 1: `Flask/2`.
    """

    key: str
    language: str
    text: str


def blocks() -> dict[str, Block]:
    """Every fenced block by its key, in their order."""
    found: dict[str, Block] = {}
    heading, number, language = "", 0, ""
    body: list[str] | None = None
    for line in README.read_text("utf-8").splitlines():
        if body is None and (title := re.match(r"#+ (.*)", line)):
            heading, number = title[1], 0
        elif line.startswith("```") and body is None:
            language, number, body = line[3:], number + 1, []
        elif line.startswith("```") and body is not None:
            key = f"{heading}/{number}"
            assert key not in found, f"two headings are called {heading}"
            found[key] = Block(key, language, "".join(f"{one}\n" for one in body))
            body = None
        elif body is not None:
            body.append(line)
    assert body is None, "a fence is left open"
    return found


def text_of(key: str, replacing: Mapping[str, str] = {}) -> str:
    """The text of block *key* with each key of *replacing*, which must occur in it, replaced."""
    text = blocks()[key].text
    for old, new in replacing.items():
        assert old in text, f"{old} is not in the block {key}"
        text = text.replace(old, new)
    return text


def shows(*keys: str) -> Callable[[_Test], _Test]:
    """Marks a test that runs or checks the blocks *keys*."""

    def mark(test: _Test) -> _Test:
        SHOWN.update(keys)
        return test

    return mark


def assert_same(shown: str, actual: str) -> None:
    """*actual* is what README shows, whatever the times, digests and ids; a last line `…` leaves out the rest."""
    shown, actual = _masked(shown), _masked(actual)
    if shown.endswith("…\n"):
        shown = shown.removesuffix("…\n")
        actual = actual[: len(shown)]
    assert actual == shown


def tables(heading: str) -> list[list[str]]:
    """The rows of the tables below *heading*, up to the next heading, column heads left out."""
    section = re.split(r"^#+ ", README.read_text("utf-8").split(f"# {heading}\n")[1], flags=re.MULTILINE)[0]
    rows = re.findall(r"((?:^\|.*\n)+)", section, flags=re.MULTILINE)
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        for table in rows
        for row in table.splitlines()[2:]
    ]


def run_line(line: str, cwd: Path, env: Mapping[str, str] = {}) -> tuple[int, str]:
    """Exit code and output (both streams) of a command line of README, its program taken from this environment."""
    done = subprocess.run(
        [*_command(line)],
        cwd=cwd,
        env=_environment() | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout


@contextlib.contextmanager
def serving(line: str, cwd: Path, *more: str) -> Iterator[str]:
    """The URL of the server that *line* starts, with *more* arguments. Stops it at the end."""
    with subprocess.Popen(
        [*_command(line), *more], cwd=cwd, env=_environment(), stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stderr is not None
        too_long = threading.Timer(30, server.kill)
        too_long.start()
        try:
            said = ""
            for said_line in server.stderr:
                said += said_line
                if url := re.search(r"http://127\.0\.0\.1:[1-9]\d*", said_line):
                    break
            assert url, said
            yield url[0]
        finally:
            server.terminate()
            server.stderr.read()
            server.wait()
            too_long.cancel()
            too_long.join()


def _command(line: str) -> list[str]:
    program, *arguments = shlex.split(line)
    return [str(Path(sys.executable).with_name(program)), *arguments]


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}


def _masked(text: str) -> str:
    for pattern, word in _MASKS:
        text = pattern.sub(word, text)
    return text
