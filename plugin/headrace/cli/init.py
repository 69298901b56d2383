"""`headrace init`: a file to begin with."""

from __future__ import annotations

import argparse
import os
import sys

from headrace.cli.printing import GOOD, PROBLEMS, print_json, print_safely
from headrace.config import default_files
from headrace.config.explain.starter import starter


def run(options: argparse.Namespace) -> int:
    """Write the file, unless there is one. Creates it in one step, so that no other program's file is lost."""
    file = options.file or default_files(os.environ)[0]
    problem = _write(file)
    if options.format == "json":
        print_json({"good": not problem, "file": file, "problem": problem or None})
    elif problem:
        print_safely(f"{file} {problem}", to=sys.stderr)
    else:
        print_safely(
            f"{file} is written: it observes, and changes nothing. Put your upstream's URL into it, and run\n"
            f"    headrace check{'' if file in default_files(os.environ) else f' {file}'}"
        )
    return PROBLEMS if problem else GOOD


def _write(file: str) -> str:
    """What kept *file* from being written; "" if nothing did."""
    if file == "-":
        return "is no name of a file: name one, for nothing is written to standard output"
    try:
        with open(file, "x", encoding="utf-8", newline="\n") as new:
            new.write(starter(file))
    except FileExistsError:
        return "is there already, and stays as it is"
    except (OSError, ValueError) as error:
        return f"cannot be written ({getattr(error, 'strerror', None) or error})"
    return ""
