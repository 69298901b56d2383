"""Everything running, some traffic, and a plain account of what changes: for a person at a terminal."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sample_app.faulty import FAULTS
from sample_app.stage import FORMS, Process, Stage, fetch, stage
from sample_app.traffic import Traffic

SUMMARY_EVERY_S = 10.0


def play(directory: Path) -> None:
    """Runs until Ctrl-C. Blocks."""
    with ExitStack() as running:
        scene = running.enter_context(stage(directory, *FORMS))
        _print_manual(scene)
        traffic = {
            form: running.enter_context(Traffic(orders.port, "/orders/7", threads=1, pause_s=0.25))
            for form, orders in scene.orders.items()
        }
        _narrate(scene, traffic)


def _print_manual(scene: Stage) -> None:
    print("\nrunning; each orders service gets 4 requests a second.\n")
    for form, orders in scene.orders.items():
        print(f"  orders, {form}:")
        for path in ("/orders/7", "/invoices/7", "/stock/7", "/rules"):
            print(f"      curl -i http://127.0.0.1:{orders.port}{path}")
    for service in (scene.billing, scene.inventory):
        print(f"  {service.name}:  fault is one of {', '.join(FAULTS)}")
        print(f"      curl -X PUT http://127.0.0.1:{service.port}/-/fault/503")
        print(f"      curl http://127.0.0.1:{service.port}/-/count")
    print(f"\n  the rules, edit and save:  {scene.file}")
    print(f"  logs:                      {scene.directory}/*.log")
    print("\n  Ctrl-C ends it.\n", flush=True)


def _narrate(scene: Stage, traffic: dict[str, Traffic]) -> None:
    known: dict[str, dict[str, Any]] = {form: {} for form in scene.orders}
    said_at, counted = time.monotonic(), {form: Counter[str]() for form in traffic}
    while True:
        for form, orders in scene.orders.items():
            facts = _facts(orders)
            for what, value in facts.items():
                if known[form].get(what, value) != value:
                    _say(form, f"{what}: {known[form][what]} -> {value}")
            known[form] = facts
        if time.monotonic() - said_at >= SUMMARY_EVERY_S:
            said_at = time.monotonic()
            for form, load in traffic.items():
                fresh = Counter(load.outcomes) - counted[form]
                counted[form] = Counter(load.outcomes)
                _say(form, ", ".join(f"{count} × {outcome}" for outcome, count in sorted(fresh.items())))
        time.sleep(0.25)


def _facts(orders: Process) -> dict[str, Any]:
    """What is worth a line when it changes."""
    try:
        rules = fetch(orders.port, "/rules").json()
    except (OSError, ValueError) as error:
        return {"orders": type(error).__name__}
    facts = {f"{name}'s circuit": of["circuit_breaker"]["state"] for name, of in rules["upstreams"].items()}
    facts["rules in force"] = rules["digest"][:12]
    facts["refused edit"] = rules["rejected"]["problems"] if rules["rejected"] else None
    return facts


def _say(form: str, text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {form:<24}  {text}", flush=True)
