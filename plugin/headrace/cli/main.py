"""From arguments to a command, and from its answer to an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from headrace.cli.arguments import parsed
from headrace.cli.printing import GOOD, USAGE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Prints; reads files and the environment; changes nothing.

    Args:
        arguments: Without the program's name; None: `sys.argv`.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        options = parsed(given)
    except SystemExit as stop:  # --help and --version end with 0, wrong usage with 2
        return stop.code if isinstance(stop.code, int) else USAGE
    _import_from_here()
    command = import_module(f"headrace.cli.{options.command}")
    try:
        code: int = command.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # `headrace schema | head`: nobody is listening any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return GOOD
    return code


def _import_from_here() -> None:
    """Let `failure_if` name a module of the project that the command is run in.

    A console script does not have the working directory on `sys.path`. gunicorn, uvicorn and flask put it there.
    """
    here = os.getcwd()
    if not {"", here} & set(sys.path):
        sys.path.insert(0, here)
