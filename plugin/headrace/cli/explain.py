"""`headrace explain`: what the rules make of a call to a URL."""

from __future__ import annotations

import argparse
import os
import sys

from headrace.cli.printing import GOOD, PROBLEMS, print_safely
from headrace.config import inspect, render_problems
from headrace.config.explain.explain import explain


def run(options: argparse.Namespace) -> int:
    """Print what becomes of a call, or the problems of the file."""
    inspection = inspect(options.file)
    if inspection.problems:
        print_safely(render_problems(inspection.problems), to=sys.stderr)
        return PROBLEMS
    text = explain(
        inspection,
        options.url,
        method=options.method,
        status=options.status,
        fault=options.error,
        env=os.environ,
    )
    print_safely(text.removesuffix("\n"))
    return GOOD
