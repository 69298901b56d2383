"""The command line: `headrace check`, `headrace schema`, `headrace explain`.

Exit codes: 0 good, 1 problems in the configuration, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, NoReturn, TextIO

from headrace.config import Inspection, Problem, inspect, render_problems
from headrace.config.check.hints import hints
from headrace.config.check.problems import did_you_mean
from headrace.config.explain.explain import explain
from headrace.config.explain.schema import schema_text
from headrace.config.explain.summary import shown_base_url, summary
from headrace.policy.outcome import Fault
from headrace.policy.plan import UpstreamPlan
from headrace.policy.printable import printable_lines

GOOD, PROBLEMS, USAGE = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Prints; reads files and the environment; changes nothing.

    Args:
        arguments: Without the program's name; None: `sys.argv`.
    """
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as stop:  # --help and --version end with 0, wrong usage with 2
        return stop.code if isinstance(stop.code, int) else USAGE
    _import_from_here()
    try:
        code: int = options.run(options)
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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Print what is wrong with the arguments, which may hold anything."""
        super().error(printable_lines(message))


def _print_safely(text: object, *, to: TextIO | None = None) -> None:
    """Print *text* without what a terminal obeys: parts of it came from a file or from the command line."""
    print(printable_lines(str(text)), file=to or sys.stdout)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="headrace",
        description="Look at an upstreams.yaml before it is taken into force.",
        epilog="Exit codes: 0 good, 1 problems in the configuration, 2 wrong usage.",
    )
    parser.add_argument("--version", action="version", version=f"headrace {version('headrace')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    check = commands.add_parser(
        "check",
        help="say everything that is wrong with a file, or what it amounts to",
        description="Read, merge and validate FILE… as an application would: later files win, then the secrets "
        "directory (HEADRACE_SECRETS_DIR), then HEADRACE_…__… variables. A misspelt HEADRACE_ variable is a problem.",
    )
    check.add_argument("files", nargs="+", metavar="FILE")
    check.add_argument(
        "--format", choices=("text", "json"), default="text", help="json: one object, for machines"
    )
    check.add_argument(
        "--workers",
        type=_count,
        metavar="N",
        help="also print totals over N processes (limits are per process)",
    )
    check.set_defaults(run=_check)

    schema = commands.add_parser("schema", help="print the JSON Schema of upstreams.yaml, for editors")
    schema.set_defaults(run=_schema)

    explained = commands.add_parser(
        "explain",
        help="say what the rules make of a call to a URL, and which line says so",
        description="Print the upstream that URL belongs to, the order of a call, and where each value comes from.",
    )
    explained.add_argument("file", metavar="FILE")
    explained.add_argument("url", metavar="URL")
    explained.add_argument(
        "--method", metavar="M", type=_method, help="when is this HTTP method retried? (default: GET)"
    )
    ends = explained.add_mutually_exclusive_group()
    ends.add_argument(
        "--status", type=_status, metavar="S", help="would this answer be retried, is it a failure?"
    )
    ends.add_argument(
        "--error",
        type=_fault,
        metavar="WORD",
        help=f"the same of an attempt without an answer: {', '.join(Fault)}",
    )
    explained.set_defaults(run=_explain)
    return parser


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 100000")
    return int(text)


def _status(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 100 <= int(text[:9]) <= 599:
        raise argparse.ArgumentTypeError(f"{text!r} is not a status code from 100 to 599")
    return int(text)


def _fault(text: str) -> Fault:
    try:
        return Fault(text.lower())
    except ValueError:
        near = did_you_mean(text, list(Fault))
        fix = f"did you mean {near}?" if near else f"there are {', '.join(Fault)}"
        raise argparse.ArgumentTypeError(f"{text!r} is no error of an attempt; {fix}") from None


def _method(text: str) -> str:
    if not text.isascii() or not text.replace("-", "").replace("_", "").isalpha():
        raise argparse.ArgumentTypeError(f"{text!r} is no HTTP method")
    return text.upper()


def _schema(options: argparse.Namespace) -> int:
    sys.stdout.write(schema_text())
    return GOOD


def _explain(options: argparse.Namespace) -> int:
    inspection = inspect(options.file)
    if inspection.problems:
        _print_safely(render_problems(inspection.problems), to=sys.stderr)
        return PROBLEMS
    text = explain(
        inspection,
        options.url,
        method=options.method,
        status=options.status,
        fault=options.error,
        env=os.environ,
    )
    _print_safely(text.removesuffix("\n"))
    return GOOD


def _check(options: argparse.Namespace) -> int:
    inspection = inspect(options.files)
    is_good = not inspection.problems and not inspection.misspelt
    if options.format == "json":
        text = json.dumps(_check_object(inspection, options.workers), indent=2, ensure_ascii=False)
        print(
            "".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text)
        )
    else:
        _print_check(inspection, options.workers)
    return GOOD if is_good else PROBLEMS


def _print_check(inspection: Inspection, workers: int | None) -> None:
    if inspection.problems:
        _print_safely(render_problems(inspection.problems), to=sys.stderr)
    noted = (("warning", inspection.misspelt), ("lint", inspection.findings), ("hint", _hints(inspection)))
    for kind, notes in noted:
        for note in notes:
            _print_safely(f"{kind}: {note}", to=sys.stderr)
    configuration = inspection.configuration
    if configuration is None:
        return
    for plan in configuration.upstreams.values():
        _print_safely(summary(inspection, plan))
        if workers is not None:
            print(f"    {workers} workers: {_totals_text(plan, workers)}")
    count = len(configuration.upstreams)
    print(f"{count} upstream{'s' if count != 1 else ''}, digest {configuration.digest[:12]}")


def _hints(inspection: Inspection) -> list[Problem]:
    if inspection.settings is None or inspection.written is None:
        return []
    return sorted(set(hints(inspection.settings, inspection.written)))


def _totals(plan: UpstreamPlan, workers: int) -> dict[str, float]:
    return {
        "max_connections": plan.pool.max_connections * workers,
        "retries_per_second_reserve": plan.retry.budget.min_per_second * workers,
    }


def _totals_text(plan: UpstreamPlan, workers: int) -> str:
    totals = _totals(plan, workers)
    return (
        f"up to {totals['max_connections']:g} connections, "
        f"{totals['retries_per_second_reserve']:g} retries per second whatever the traffic"
    )


def _check_object(inspection: Inspection, workers: int | None) -> dict[str, Any]:
    configuration = inspection.configuration
    upstreams: list[dict[str, Any]] = []
    for plan in configuration.upstreams.values() if configuration else ():
        upstream: dict[str, Any] = {
            "name": plan.name,
            "base_url": shown_base_url(inspection, plan),
            "mode": plan.mode,
            "deadline_s": plan.timeouts.deadline_s,
            "attempt_s": plan.timeouts.attempt_s,
            "max_attempts": plan.retry.max_attempts,
            "max_connections": plan.pool.max_connections,
            "circuit_breaker": plan.circuit_breaker.mode,
        }
        if workers is not None:
            upstream["totals"] = {"workers": workers, **_totals(plan, workers)}
        upstreams.append(upstream)
    return {
        "good": not inspection.problems and not inspection.misspelt,
        "problems": _objects(inspection.problems),
        "warnings": _objects(inspection.misspelt),
        "findings": _objects(inspection.findings),
        "hints": _objects(_hints(inspection)),
        "digest": configuration.digest if configuration else None,
        "upstreams": upstreams,
    }


def _objects(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    return [asdict(problem) for problem in problems]


if __name__ == "__main__":
    sys.exit(main())
