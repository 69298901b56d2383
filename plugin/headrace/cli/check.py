"""`headrace check`: everything that is wrong with a file, or what it amounts to."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from headrace.cli.printing import (
    GOOD,
    INTERRUPTED,
    PROBLEMS,
    USAGE,
    print_json,
    print_problem,
    print_problems,
    print_safely,
)
from headrace.cli.streams import read_streams
from headrace.config import Inspection, Problem, inspect
from headrace.config.check.exposure import plain_hints
from headrace.config.check.hints import hints
from headrace.config.explain.summary import shown_base_url, summary
from headrace.config.source.sources import mode_override, override_note
from headrace.config.source.tree import MASK
from headrace.policy.plan import UpstreamPlan
from headrace.transport.dial.tls import TlsError, context_for


def run(options: argparse.Namespace) -> int:
    """Print the problems of the files, or a line for each upstream; or connect to one of them."""
    files, given = read_streams(options.files)
    inspection = _with_tls_loaded(inspect(files or None, given=given))
    is_good = not inspection.problems and not inspection.misspelt
    if options.connect is not None and inspection.configuration is not None:
        return _connect(inspection, options, is_good=is_good)
    if options.format == "json":
        print_json(_check_object(inspection, options.workers))
    else:
        _print_check(inspection, options.workers)
    return GOOD if is_good else PROBLEMS


def _connect(inspection: Inspection, options: argparse.Namespace, *, is_good: bool) -> int:
    """Say what comes of connecting to the upstream of that name, and of the rest of the file only what makes it bad."""
    from headrace.cli.connect import connect, named  # these load the HTTP libraries

    assert inspection.configuration is not None
    is_json = options.format == "json"
    plan = named(options.connect, inspection.configuration)
    if plan is None:
        return USAGE
    if not is_json:
        override = override_note(os.environ)
        for note in filter(None, (override, *inspection.misspelt)):
            print_problem(note, kind="warning", to=sys.stderr)
        print_safely(summary(inspection, plan))
    try:
        found = connect(inspection, plan, tells=not is_json)
    except KeyboardInterrupt as interrupt:
        print_safely(f"headrace check: interrupted while {str(interrupt) or 'getting ready'}", to=sys.stderr)
        return INTERRUPTED
    if is_json:
        whole = _check_object(inspection, None)
        print_json({**whole, "good": is_good and found["good"], "connect": found})
    return GOOD if is_good and found["good"] else PROBLEMS


def _with_tls_loaded(inspection: Inspection) -> Inspection:
    """*inspection*, with what the start would say when it loads the files of `tls`. Blocks: reads them."""
    configuration, written = inspection.configuration, inspection.written
    if configuration is None or written is None:
        return inspection
    problems, contexts = [], []
    for name, plan in configuration.upstreams.items():
        if plan.tls is None:
            continue
        try:
            contexts.append(context_for(plan.tls))  # kept: upstreams with one policy share it
        except TlsError as error:
            text = str(error)
            named = (("key", plan.tls.key), ("cert", plan.tls.cert), ("ca", plan.tls.ca))
            key = next((key for key, path in named if path and text.startswith(f"{path}: ")), "ca")
            path = ("upstreams", name, "tls", key)
            message, _, fix = text.partition("\n")
            if written.is_secret(path):
                message, fix = f"names the file {MASK}, which cannot be used", ""
            problems.append(written.problem(path, message, fix.strip()))
    if not problems:
        return inspection
    return replace(
        inspection, configuration=None, settings=None, problems=tuple(sorted(set(problems))), findings=()
    )


def _print_check(inspection: Inspection, workers: int | None) -> None:
    if inspection.problems:
        print_problems(inspection.problems, to=sys.stderr)
    override = override_note(
        os.environ
    )  # it is no fault of the file's: a check while the switch is on stays good
    if override is not None:
        print_problem(override, kind="warning", to=sys.stderr)
    noted = (("warning", inspection.misspelt), ("lint", inspection.findings), ("hint", _hints(inspection)))
    for kind, notes in noted:
        for note in notes:
            print_problem(note, kind=kind, to=sys.stderr)
    configuration = inspection.configuration
    if configuration is None:
        return
    for plan in configuration.upstreams.values():
        print_safely(summary(inspection, plan))
        if workers is not None:
            print(f"    {workers} workers: {_totals_text(plan, workers)}")
    count = len(configuration.upstreams)
    print(f"{count} upstream{'s' if count != 1 else ''}, digest {configuration.digest[:12]}")


def _hints(inspection: Inspection) -> list[Problem]:
    if inspection.settings is None or inspection.written is None:
        return []
    settings, written = inspection.settings, inspection.written
    return sorted({*hints(settings, written), *plain_hints(settings, written)})


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
        "override": None if override_note(os.environ) is None else mode_override(os.environ),
        "problems": _objects(inspection.problems),
        "warnings": _objects(inspection.misspelt),
        "findings": _objects(inspection.findings),
        "hints": _objects(_hints(inspection)),
        "digest": configuration.digest if configuration else None,
        "upstreams": upstreams,
    }


def _objects(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    return [asdict(problem) for problem in problems]
