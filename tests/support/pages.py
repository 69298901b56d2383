"""The pages that users read, taken apart: README.md and `headrace/docs/*.md`. Code blocks by heading, tables, sections.

A block's key is its page, the heading above it and its number below that heading: `frameworks: Flask/1`.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import headrace
from support.faultserver import FaultServer

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = Path(headrace.__file__).parent / "docs"

BILLING = "https://billing.internal"
FILE = "README: headrace/1"
"""The file of the first screen."""

_Test = TypeVar("_Test", bound=Callable[..., object])

_MASKS = (
    (re.compile(r", waited \d+\.\d+ s for it\b"), ""),  # on a machine that stood still for half a millisecond
    (re.compile(r"\b\d+\.\d+ s\b"), "N s"),
    (re.compile(r"\bdigest [0-9a-f]{12}\b"), "digest D"),
    (re.compile(r"\brequest id [0-9a-f]{32}\b"), "request id I"),
)
_TAKEN_OVER = re.compile(r"<!-- from .*? -->\n.*?<!-- end -->\n", re.DOTALL)
_RULES = re.compile("^upstreams:", re.MULTILINE)
_HEADING = re.compile(r"(#+) (.*)")


def pages() -> dict[str, Path]:
    """Every page by its name. Beside a wheel there is no README."""
    found = {file.stem: file for file in sorted(DOCS.glob("*.md"))}
    return {"README": README, **found} if README.exists() else found


def text(page: str) -> str:
    """The Markdown of *page*."""
    return pages()[page].read_text("utf-8")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block."""

    key: str
    language: str
    text: str


def outline(markdown: str) -> Iterator[tuple[str, str | None]]:
    """Each line, with the heading that it is, if it is one: `# …` in a fenced block is a comment."""
    is_fenced = False
    for line in markdown.splitlines():
        is_fenced ^= line.startswith("```")
        title = None if is_fenced else _HEADING.match(line)
        yield line, title[2] if title else None


@functools.cache
def blocks() -> Mapping[str, Block]:
    """Every fenced block of every page by its key, in their order; what a page takes over from another is left out."""
    found: dict[str, Block] = {}
    for page in pages():
        heading, number, language = "", 0, ""
        body: list[str] | None = None
        for line, title in outline(_TAKEN_OVER.sub("", text(page))):
            if title is not None:
                heading, number = title, 0
            elif line.startswith("```") and body is None:
                language, number, body = line[3:], number + 1, []
            elif line.startswith("```") and body is not None:
                key = f"{page}: {heading}/{number}"
                assert key not in found, f"two headings of {page} are called {heading}"
                found[key] = Block(key, language, "".join(f"{one}\n" for one in body))
                body = None
            elif body is not None:
                body.append(line)
        assert body is None, f"a fence is left open in {page}"
    return found


def text_of(key: str, replacing: Mapping[str, str] = {}) -> str:
    """The text of block *key* with each key of *replacing*, which must occur in it, replaced."""
    found = blocks()[key].text
    for old, new in replacing.items():
        assert old in found, f"{old} is not in the block {key}"
        found = found.replace(old, new)
    return found


def shows(*keys: str) -> Callable[[_Test], _Test]:
    """Marks a test that runs or checks the blocks *keys*, which are written out: `shown` reads them from the source."""
    return lambda test: test


def shown() -> dict[str, str]:
    """By block, the file of the tests that claims to show it."""
    found = {}
    for file in sorted((ROOT / "tests/docs").glob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id="shows"), args=args):
                    found.update({ast.literal_eval(key): file.name for key in args})
    return found


def rule_files() -> list[str]:
    """Every YAML block that is an `upstreams.yaml`: all of them are loaded by one test."""
    return [
        block.key for block in blocks().values() if block.language == "yaml" and _RULES.search(block.text)
    ]


def sessions() -> list[str]:
    """Every block that shows a command with its output: all of them are run by one test."""
    return [block.key for block in blocks().values() if block.language == "console"]


def section(page: str, heading: str) -> str:
    """What is below *heading* on *page*, up to the next heading."""
    lines: list[str] = []
    is_in = False
    for line, title in outline(text(page)):
        if title is not None:
            is_in = title == heading
        elif is_in:
            lines.append(line)
    assert lines, f"{page} has no heading {heading}"
    return "\n".join(lines).strip() + "\n"


def tables(page: str, heading: str) -> list[list[str]]:
    """The rows of the tables below *heading*, up to the next heading, column heads left out."""
    rows = re.findall(r"((?:^\|.*\n)+)", section(page, heading), flags=re.MULTILINE)
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        for table in rows
        for row in table.splitlines()[2:]
    ]


def assert_same(shown: str, actual: str) -> None:
    """*actual* is what a page shows, whatever the times, digests and ids; a last line `…` leaves out the rest."""
    shown, actual = _masked(shown), _masked(actual)
    if shown.endswith("…\n"):
        shown = shown.removesuffix("…\n")
        actual = actual[: len(shown)]
    assert actual == shown


def run(key: str, upstream: FaultServer, **names: Any) -> dict[str, Any]:
    """What the Python block *key* leaves behind, run with *names* given; *upstream* stands in for billing.internal."""
    names.setdefault("__name__", "__main__")
    exec(compile(blocks()[key].text.replace(BILLING, upstream.url), key, "exec", dont_inherit=True), names)
    return names


def write(folder: Path, name: str, key: str, upstream: FaultServer) -> None:
    """Write the block *key* into a file; *upstream* stands in for billing.internal."""
    (folder / name).write_text(blocks()[key].text.replace(BILLING, upstream.url))


def python(name: str, folder: Path, **env: str) -> str:
    """What the program *name* prints; its errors are shown when it fails."""
    done = subprocess.run(
        [sys.executable, "-W", "error", name],
        cwd=folder,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_shell(script: str, cwd: Path, env: Mapping[str, str] = {}) -> tuple[int, str]:
    """Exit code and output (both streams) of a line for the shell, its programs taken from this environment first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=cwd,
        env=_environment() | {"PATH": path} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout


def run_line(line: str, cwd: Path, env: Mapping[str, str] = {}) -> tuple[int, str]:
    """Exit code and output (both streams) of a command line of a page, its program taken from this environment."""
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
def serving(line: str, cwd: Path, *more: str, env: Mapping[str, str] = {}) -> Iterator[str]:
    """The URL of the server that *line* starts, with *more* arguments. Stops it at the end."""
    with subprocess.Popen(
        [*_command(line), *more], cwd=cwd, env=_environment() | env, stderr=subprocess.PIPE, text=True
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
