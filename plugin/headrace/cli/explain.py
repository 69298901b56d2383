"""`headrace explain`: what the rules make of a call to a URL."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict

from headrace.cli.printing import GOOD, PROBLEMS, print_json, print_problems, print_safely
from headrace.cli.streams import read_streams
from headrace.config import inspect
from headrace.config.explain.explain import explain


def run(options: argparse.Namespace) -> int:
    """Print what becomes of a call, or the problems of the files."""
    files, given = read_streams(options.files)
    inspection = inspect(files or None, given=given)
    if inspection.problems:
        if options.format == "json":
            print_json({"good": False, "problems": [asdict(one) for one in inspection.problems]})
        else:
            print_problems(inspection.problems, to=sys.stderr)
        return PROBLEMS
    explained = explain(
        inspection,
        options.url,
        method=options.method,
        status=options.status,
        fault=options.error,
        env=os.environ,
    )
    if options.format == "json":
        print_json({"good": True, **asdict(explained)})
    else:
        print_safely(explained.text().removesuffix("\n"))
    return GOOD
