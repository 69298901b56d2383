"""The story, told and checked: what happens to an application when its upstream dies and its rules are edited."""

from __future__ import annotations

import json
import re
import time
from functools import partial
from pathlib import Path
from typing import Any

from sample_app.stage import Process, Reply, Stage, fetch, is_listening, stage, wait_until
from sample_app.traffic import Traffic

IN_FORCE_WITHIN_S = 30.0


class StoryFailed(Exception):
    """A claim of the story did not hold."""


def tell(form: str, directory: Path) -> None:
    """Run the story with one form of the orders service, printing what was measured. Blocks for some 15 s.

    Raises:
        StoryFailed: A claim did not hold; the text has the claim and what was seen.
        TimeoutError: Something did not happen in time.
    """
    print(f"\n{form}")
    with stage(directory, form) as scene:
        orders = scene.orders[form]
        try:
            _healthy(scene, orders)
            _charged(scene, orders)
            _dripped(scene, orders)
            _killed(scene, orders)
            _edited(scene, orders)
            _edited_badly(scene, orders)
            _recovered(scene, orders)
            _shut_down(scene, orders)
        except (StoryFailed, TimeoutError, OSError):
            print(f"\n--- log of {form}, last lines")
            print("\n".join(orders.log.read_text().splitlines()[-40:]))
            raise


def _healthy(scene: Stage, orders: Process) -> None:
    for number in range(50):
        reply = fetch(orders.port, f"/orders/{number}")
        _claim(reply.status == 200, "a healthy upstream's answer is passed on", _shown(reply))
    reached = _count(scene.billing)["requests"]
    _claim(reached == 50, "each order is one call to billing", f"billing counted {reached}")
    _claim("x-request-id" in reply.headers, "the answer carries a request id", str(dict(reply.headers)))
    _say("healthy", "50 orders, 50 answered 200; billing counted 50 requests")


def _charged(scene: Stage, orders: Process) -> None:
    _switch(scene.billing, "lost")
    reply = fetch(orders.port, "/charges", method="POST")
    _claim(reply.status == 201, "a POST whose answer was lost is made again", _shown(reply))
    charges = _count(scene.billing)["charges"]
    _claim(charges == 1, "under its idempotency key it is one charge", f"billing counted {charges}")
    _say("a lost answer to a POST", "sent again under the same Idempotency-Key; billing counted 1 charge")


def _dripped(scene: Stage, orders: Process) -> None:
    _switch(scene.inventory, "drip")
    began = time.monotonic()
    reply = fetch(orders.port, "/stock/7")
    took_s = time.monotonic() - began
    _switch(scene.inventory, "ok")
    _claim(reply.status == 504, "a body that only drips is a 504", _shown(reply))
    _claim(took_s < 30.0, "the deadline of 3 s holds whatever the upstream does", f"{took_s:.2f} s")
    _say("a body that drips", f"504 after {took_s:.2f} s: two attempts of 1 s, and no read timed out")


def _killed(scene: Stage, orders: Process) -> None:
    scene.billing.kill()
    began = time.monotonic()
    calls = 0
    while _circuit(orders) != "open":
        calls += 1
        _claim(calls <= 200, "the breaker opens", f"still {_circuit(orders)} after {calls} calls")
        reply = fetch(orders.port, f"/invoices/{calls}")
        _claim(reply.status in (502, 503), "a dead upstream is a 502 or 503", _shown(reply))
    opened_after_s = time.monotonic() - began
    # It listens and counts again at once, so that "0 requests" is a measurement; it is not well yet.
    scene.billing.start()
    _switch(scene.billing, "503")
    slowest_s = 0.0
    for number in range(20):
        sent = time.monotonic()
        reply = fetch(orders.port, f"/invoices/{number}")
        slowest_s = max(slowest_s, time.monotonic() - sent)
        _claim(reply.status == 503, "while open the application answers 503", _shown(reply))
        kind = reply.headers.get("content-type", "")
        _claim(kind == "application/problem+json", "it is problem+json", kind)
        retry_after = reply.headers.get("retry-after", "")
        _claim(retry_after.isdigit() and int(retry_after) >= 1, "with Retry-After in seconds", retry_after)
    _claim(_circuit(orders) == "open", "the breaker stayed open meanwhile", _circuit(orders))
    reached = _count(scene.billing)["requests"]
    _claim(reached == 0, "while open the upstream counts 0 requests", f"billing counted {reached}")
    _say(
        "billing killed (kill -9)", f"the breaker opened after {calls} calls, {opened_after_s * 1000:.0f} ms"
    )
    _say(
        "while it is open", f"20 calls, 20 answered 503, slowest {slowest_s * 1000:.0f} ms; billing counted 0"
    )
    _say("", f"{reply.headers['content-type']}, Retry-After: {retry_after}: {reply.json()['detail']}")


def _edited(scene: Stage, orders: Process) -> None:
    seen: dict[str, float] = {}
    digest = _rules(orders)["digest"]

    def see(reply: Reply) -> None:
        if reply.status == 200:
            seen.setdefault(reply.json()["rule"], time.monotonic())

    with Traffic(orders.port, "/stock/7", see=see) as traffic:
        wait_until("load runs", lambda: traffic.total >= 50, within_s=20)
        edited_at = time.monotonic()
        scene.write(scene.file.read_text().replace("X-Rule: first", "X-Rule: second"))
        wait_until("the new rule reaches inventory", lambda: "second" in seen, within_s=IN_FORCE_WITHIN_S)
        after = traffic.total + 50
        wait_until("load goes on", lambda: traffic.total >= after, within_s=20)
    _claim(traffic.failed == 0, "no request fails because of an edit", str(dict(traffic.outcomes)))
    _claim(list(seen) == ["first", "second"], "the old rule was in force before", str(seen))
    _claim(_rules(orders)["digest"] != digest, "the digest in force is another", digest)
    _say("the file edited under load", f"{traffic.total} requests, {traffic.failed} failed")
    _say(
        "",
        f"a call under the new rule reached inventory {(seen['second'] - edited_at) * 1000:.0f} ms after the edit",
    )
    _claim(_circuit(orders) in ("open", "half_open"), "an edit does not reset a breaker", _circuit(orders))


def _edited_badly(scene: Stage, orders: Process) -> None:
    good, digest = scene.file.read_text(), _rules(orders)["digest"]
    with Traffic(orders.port, "/stock/7") as traffic:
        scene.write(
            good.replace("max_attempts: 2", "max_attempts: three").replace("X-Rule: second", "X-Rule: third")
        )
        wait_until(
            "the edit is refused", lambda: bool(_rules(orders)["rejected"]), within_s=IN_FORCE_WITHIN_S
        )
        after = traffic.total + 20
        wait_until("load goes on", lambda: traffic.total >= after, within_s=20)
    problems = _rules(orders)["rejected"]["problems"]
    first_line = problems.splitlines()[0]
    _claim(
        re.search(r"upstreams\.yaml:\d+:\d+: defaults\.retry\.max_attempts", problems) is not None,
        "the refusal names file, line, column and path",
        problems,
    )
    _claim(_rules(orders)["digest"] == digest, "the old rules stay in force", _rules(orders)["digest"])
    rule = fetch(orders.port, "/stock/7").json()["rule"]
    _claim(rule == "second", "calls still follow the old rule", rule)
    _claim(traffic.failed == 0, "no request fails because of a bad edit", str(dict(traffic.outcomes)))
    _claim(
        "config.rejected" in orders.log.read_text(), "the refusal is loud in the log", orders.log.read_text()
    )
    _say(
        "a bad edit",
        f"refused, the old rules stay; {traffic.total} requests meanwhile, {traffic.failed} failed",
    )
    _say("", first_line.replace(str(scene.directory) + "/", ""))
    scene.write(good)
    wait_until("the file is good again", lambda: not _rules(orders)["rejected"], within_s=IN_FORCE_WITHIN_S)


def _recovered(scene: Stage, orders: Process) -> None:
    _switch(scene.billing, "ok")
    before = _count(scene.billing)["requests"]
    began = time.monotonic()

    def is_closed() -> bool:
        fetch(orders.port, "/invoices/1")
        return _circuit(orders) == "closed"

    wait_until("the breaker closes", is_closed, within_s=20, every_s=0.1)
    took_s = time.monotonic() - began
    probes = _count(scene.billing)["requests"] - before
    _claim(1 <= probes <= 4, "a few probes decide", f"billing counted {probes}")
    for number in range(20):
        reply = fetch(orders.port, f"/orders/{number}")
        _claim(reply.status == 200, "after recovery all is as before", _shown(reply))
    _say("billing is back", f"{probes} probes, closed after {took_s:.1f} s; 20 orders, 20 answered 200")


def _shut_down(scene: Stage, orders: Process) -> None:
    kept = _count(scene.inventory)["connections"]
    _claim(kept >= 1, "connections are kept until then", f"inventory has {kept}")
    took_s = orders.stop()
    wait_until("every process of it is gone", orders.is_session_empty, within_s=5)
    _claim(not is_listening(orders.port), "nothing listens any more", f"port {orders.port}")
    reports = [json.loads(path.read_text()) for path in scene.reports.glob("*.json")]
    _claim(
        bool(reports), "headrace was closed in an orderly way", f"exit status {orders.exit_status}, no report"
    )
    threads = [name for report in reports for name in report["threads"]]
    _claim(threads == [], "no thread of headrace is left", str(threads))
    for upstream in (scene.billing, scene.inventory):
        wait_until(f"{upstream.name} has no connection left", partial(_is_unconnected, upstream), within_s=5)
    scene.billing.kill()
    scene.inventory.kill()
    left = [process.name for process in scene.processes if not process.is_session_empty()]
    _claim(left == [], "no process is left", str(left))
    _say(
        "shutdown",
        f"took {took_s:.1f} s; 0 threads, 0 connections (before: {kept} to inventory), 0 processes left",
    )


def _rules(orders: Process) -> dict[str, Any]:
    rules: dict[str, Any] = fetch(orders.port, "/rules").json()
    return rules


def _circuit(orders: Process) -> str:
    state: str = _rules(orders)["upstreams"]["billing"]["circuit_breaker"]["state"]
    return state


def _count(service: Process) -> dict[str, int]:
    counts: dict[str, int] = fetch(service.port, "/-/count").json()
    return counts


def _is_unconnected(service: Process) -> bool:
    return _count(service)["connections"] == 0


def _switch(service: Process, fault: str) -> None:
    reply = fetch(service.port, f"/-/fault/{fault}", method="PUT")
    if reply.status != 200:
        raise StoryFailed(_shown(reply))


def _shown(reply: Reply) -> str:
    return f"{reply.status} {reply.body[:300]!r}"


def _claim(holds: bool, claim: str, seen: str) -> None:
    if not holds:
        raise StoryFailed(f"{claim}: it did not; {seen}")


def _say(heading: str, fact: str) -> None:
    print(f"  {heading:<28}{fact}", flush=True)
