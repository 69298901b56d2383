"""Who gets the fallback is one decision: a real call, a rehearsed one and a played one come to the same.

In each the circuit refuses a call before its second attempt: it has opened, recovered and begun to let calls
back in slowly (`ramp`) while the first was under way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

import headrace
from headrace.policy.breaker.circuit import Circuit, CircuitState, Permit, Verdict
from headrace.testing import Simulation
from support.faultserver import Answer, Behaviour, Break, FaultServer
from support.governed import reason_of, rules, running

RULES = """\
    retry: {max_attempts: 2, methods: [GET], backoff: {base: 1ms, throttled: 1ms}, idempotency_key: {methods: [PUT]}}
    circuit_breaker:
      consecutive_failures: 1
      open_for: {base: 10ms, jitter: 0}
      half_open: {max_probes: 2, success_rate_threshold: 0.5, ramp: 1h}
"""
OWN_KEY = {"Idempotency-Key": "mine"}


@dataclass(frozen=True)
class Case:
    """A call, what its first attempt ends in, and what its caller gets: a status, or None for an error."""

    method: str
    ends: int | str
    gets: int | None
    headers: dict[str, str] = field(default_factory=dict)
    fallback: str = "{upstream: spare}"

    @property
    def diverted(self) -> bool:
        return self.gets in (203, 204)


CASES = [
    pytest.param(Case("GET", "reset", 203), id="what may be repeated anywhere goes to another upstream"),
    pytest.param(Case("PUT", "reset", None), id="what the file's key alone lets be repeated does not"),
    pytest.param(Case("POST", "reset", None, OWN_KEY), id="nor what the call's own key lets be repeated"),
    pytest.param(Case("PUT", "reset", 204, fallback="{status: 204}"), id="the file's answer is sent nowhere"),
    pytest.param(Case("GET", 503, 503), id="an answer kept is better than another upstream's"),
    pytest.param(Case("GET", 503, 503, fallback="{status: 204}"), id="and better than the file's"),
]


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture
def spare() -> Iterator[FaultServer]:
    with FaultServer() as spare:
        spare.always(Answer(203))
        yield spare


def text(case: Case, server: FaultServer, spare: FaultServer, *, mode: str = "enforce") -> str:
    body = f"{RULES}    mode: {mode}\n    fallback: {case.fallback}\n  spare: {{base_url: '{spare.url}'}}\n"
    return rules(server.url, body)


def recover_with_a_ramp(circuit: Circuit) -> None:
    """Other calls open *circuit*, close it again as probes, and take the one place that the ramp has."""
    for verdicts in ([Verdict.FAILURE], [Verdict.SUCCESS] * 2, [Verdict.SUCCESS]):
        permits = [circuit.acquire(time.monotonic()) for _ in verdicts]
        for permit, verdict in zip(permits, verdicts, strict=True):
            assert isinstance(permit, Permit)
            circuit.record(permit, verdict, time.monotonic())
        time.sleep(0.02)
    assert circuit.state is CircuitState.CLOSED


def ending(case: Case, hr: headrace.Headrace) -> Callable[[Any], Behaviour]:
    def behave(_: Any) -> Any:
        recover_with_a_ramp(hr.snapshot.upstream("billing").learned.circuit)
        return Break("request") if isinstance(case.ends, str) else Answer(case.ends)

    return behave


@pytest.mark.parametrize("case", CASES)
def test_a_real_call(tmp_path: Path, server: FaultServer, spare: FaultServer, case: Case) -> None:
    with running(tmp_path, text(case, server, spare)) as hr:
        server.always(ending(case, hr))
        if case.gets is None:
            with pytest.raises(requests.ConnectionError) as caught:
                requests.request(case.method, server.url, headers=case.headers)
            assert not isinstance(caught.value, headrace.CircuitOpenError)
            assert reason_of(caught.value) == "circuit_open"
        else:
            answer = requests.request(case.method, server.url, headers=case.headers)
            assert answer.status_code == case.gets
        assert len(server.requests) == 1
        assert len(spare.requests) == int(case.gets == 203)
        breaker = hr.status()["upstreams"]["billing"]["circuit_breaker"]
        assert (breaker["refused"], breaker["fallbacks"]) == (1, int(case.diverted))


@pytest.mark.parametrize("case", CASES)
def test_a_rehearsed_call(tmp_path: Path, server: FaultServer, spare: FaultServer, case: Case) -> None:
    with running(tmp_path, text(case, server, spare, mode="observe")) as hr:
        server.always(ending(case, hr))
        if case.ends == "reset":
            with pytest.raises(requests.ConnectionError):
                requests.request(case.method, server.url, headers=case.headers)
        else:
            assert requests.request(case.method, server.url, headers=case.headers).status_code == case.ends
        assert spare.requests == []
        foretold = {"refused": 1} | ({"fallback": 1} if case.diverted else {})
        assert hr.status()["upstreams"]["billing"]["observed"] == foretold


@pytest.mark.parametrize("case", CASES)
def test_a_played_call(tmp_path: Path, server: FaultServer, spare: FaultServer, case: Case) -> None:
    file = tmp_path / "upstreams.yaml"
    file.write_text(text(case, server, spare))
    simulation = Simulation(file)
    billing = simulation.upstream("billing")
    simulation.upstream("spare").always(203)

    def ends_after_others_have_recovered(_: float) -> int | str:
        billing.answers(500, 500)  # opens
        billing.answers(200, 200, 200)  # two probes, and the one that the ramp lets through
        billing.call()
        simulation.advance("20ms")
        for _ in range(3):
            assert billing.call().status == 200
        return case.ends

    billing.always(ends_after_others_have_recovered)
    result = billing.call(case.method, keyed=bool(case.headers))

    assert result.status == case.gets
    assert result.reason == ("success" if case.gets == 203 else "circuit_open")
    assert simulation.upstream("spare").arrived == int(case.gets == 203)
    assert (result.headrace.fallback_for is not None) is case.diverted
    assert any(what.startswith("refused: ") for _, what in billing.timeline)


KEYS = [
    pytest.param("", 200, id="the same header, so it is a key there, too"),
    pytest.param(", idempotency_key: {header: X-Key, methods: []}", None, id="another header: none there"),
]


@pytest.mark.parametrize(("there", "gets"), KEYS)
def test_a_key_of_the_call_goes_to_the_fallback_with_it(
    tmp_path: Path, server: FaultServer, spare: FaultServer, there: str, gets: int | None
) -> None:
    """Played and real."""
    body = (
        "    circuit_breaker: {mode: forced_open}\n    fallback: {upstream: spare}\n"
        f"  spare:\n    base_url: {spare.url}\n    retry: {{backoff: {{base: 1ms}}{there}}}\n"
    )
    with running(tmp_path, rules(server.url, body)):
        spare.next(Break("request"))
        spare.always(Answer(200))
        if gets is None:
            with pytest.raises(requests.ConnectionError):
                requests.post(server.url, headers=OWN_KEY)
        else:
            assert requests.post(server.url, headers=OWN_KEY).status_code == gets
    simulation = Simulation(tmp_path / "upstreams.yaml")
    simulation.upstream("spare").answers("reset", 200)
    result = simulation.upstream("billing").call("POST", keyed=True)

    assert result.status == gets
    assert simulation.upstream("spare").arrived == len(spare.requests) == (1 if gets is None else 2)
