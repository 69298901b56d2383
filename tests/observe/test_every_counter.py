"""No total is lost on its way: what counts is copied, and reaches the metrics, the status and other processes."""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

import headrace
from headrace.observe.families import FAMILIES
from headrace.observe.readings import Reading, ServiceReading, TlsReading, UpstreamReading
from headrace.observe.samples import samples_of
from headrace.policy.breaker.circuit import CircuitState, CircuitView
from headrace.policy.counters import Histogram, UpstreamCounters
from headrace.transport.lease.tally import LeaseTally
from support.counting import KEEPERS, TOTALS, fill, fill_all, keeper_of, plain, totals_in
from support.governed import rules

NOT_IN_STATUS: Mapping[str, str] = {
    "transitions": "the status says what the circuit does now; how often it changed is a question of time",
    "served_by_class": "the application's own traffic; the status is about upstreams and the file",
}
"""Totals that `status()` leaves to the metrics, with the reason. So it does with every distribution."""

NOT_IN_METRICS: Mapping[str, str] = {
    "UpstreamReading.tls": "which files are in force is a text; headrace_tls_rotations_total counts their changes",
    "UpstreamReading.max_connections": "of it and adaptive, headrace_pool_target_size is what counts",
}
"""Parts of a reading that no family is made of, with the reason."""

NOT_TOLD: Mapping[str, str] = {
    "failures": "told by result, as `failed`; only the hit rate asks for their number",
    "turn_at": "an instant, no total",
}
"""What a pool's tally keeps for itself, with the reason."""

AMOUNT = 7

each_total = pytest.mark.parametrize(("keeper", "name"), TOTALS)


def _instance(folder: Path, port: int) -> headrace.Headrace:
    text = rules(f"http://127.0.0.1:{port}", more="install: {requests: false}\n")
    (folder / "upstreams.yaml").write_text(text)
    return headrace.Headrace(folder / "upstreams.yaml", registry=CollectorRegistry())


Shown = dict[tuple[str, str, frozenset[tuple[str, str]]], float]
"""What adds up, by family, sample and labels."""


def _shown(registry: CollectorRegistry) -> Shown:
    return {
        (family.name, sample.name, frozenset(sample.labels.items())): sample.value
        for family in registry.collect()
        if family.type != "gauge"
        for sample in family.samples
    }


def _numbers(status: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], int]:
    """The whole numbers in *status*, by where they stand."""
    if isinstance(status, Mapping):
        return {at: one for key, value in status.items() for at, one in _numbers(value, (*path, key)).items()}
    return {path: status} if isinstance(status, int) else {}


@functools.cache
def _named_where_things_happen() -> frozenset[str]:
    """Attributes named in modules that neither keep totals nor show them."""
    package = Path(headrace.__file__).parent
    modules = [file for file in package.rglob("*.py") if file.parent.name != "observe"]
    modules.remove(package / "policy" / "counters.py")
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in modules]
    return frozenset(
        node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)
    )


@pytest.fixture(scope="module")
def hr(tmp_path_factory: pytest.TempPathFactory) -> Iterator[headrace.Headrace]:
    with _instance(tmp_path_factory.mktemp("hr"), 9) as instance:
        yield instance


@pytest.fixture
def registry(hr: headrace.Headrace) -> CollectorRegistry:
    registry: CollectorRegistry = hr._metrics._registry
    return registry


@each_total
def test_a_copy_has_every_total_and_keeps_it(keeper: str, name: str) -> None:
    counters = KEEPERS[keeper]()
    fill(counters, name, AMOUNT)
    before = {one: plain(getattr(counters, one)) for one in totals_in(type(counters))}
    copy = counters.copy()

    fill(counters, name, AMOUNT)

    assert {one: plain(getattr(copy, one)) for one in before} == before


@each_total
def test_every_total_is_in_one_family_of_the_metrics(
    hr: headrace.Headrace, registry: CollectorRegistry, keeper: str, name: str
) -> None:
    before = _shown(registry)
    fill(keeper_of(hr, keeper), name, AMOUNT)

    after = {key: value for key, value in _shown(registry).items() if not key[1].endswith("_sum")}
    grown = {
        key: value - before.get(key, 0.0) for key, value in after.items() if value != before.get(key, 0.0)
    }

    assert len({family for family, _, _ in grown}) == 1
    assert set(grown.values()) == {AMOUNT}


@each_total
def test_every_total_but_distributions_is_in_the_status(
    hr: headrace.Headrace, keeper: str, name: str
) -> None:
    counters = keeper_of(hr, keeper)
    before = _numbers(hr.status())
    fill(counters, name, AMOUNT)

    after = _numbers(hr.status())

    grown = [path for path, number in after.items() if number - before.get(path, 0) == AMOUNT]
    assert bool(grown) == (name not in NOT_IN_STATUS and not isinstance(getattr(counters, name), Histogram))


@pytest.mark.parametrize("name", totals_in(UpstreamCounters))
def test_every_total_of_an_upstream_is_raised_somewhere(name: str) -> None:
    assert name in _named_where_things_happen()


def test_over_processes_the_same_totals_are_shown(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    with _instance(tmp_path, 10) as hr:
        fill_all(hr)
        alone = _shown(hr._metrics._registry)
    code = (
        "import headrace\nfrom support.counting import fill_all\n"
        "with headrace.Headrace('upstreams.yaml') as hr:\n    fill_all(hr)"
    )
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(files), "PYTHONPATH": path}

    # A process of its own: prometheus_client decides about the mode when it is imported.
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    together = CollectorRegistry()
    MultiProcessCollector(together, path=str(files))  # type: ignore[no-untyped-call]
    assert _shown(together) == alone
    adding_up = {name for name, (family, _) in FAMILIES.items() if family.kind != "gauge"}
    assert {family for family, _, _ in alone} == {name.removesuffix("_total") for name in adding_up}


@pytest.mark.parametrize("name", totals_in(LeaseTally))
def test_whatever_a_pool_counts_is_told_once(name: str) -> None:
    tally, counters = LeaseTally(), UpstreamCounters()
    fill(tally, name, AMOUNT)
    tally.tell(counters)
    told = {one: plain(getattr(counters, one)) for one in totals_in(UpstreamCounters)}

    tally.tell(counters)

    assert {one: plain(getattr(counters, one)) for one in told} == told
    nothing = {one: plain(getattr(UpstreamCounters(), one)) for one in told}
    assert (told != nothing) == (name not in NOT_TOLD)


UPSTREAM = UpstreamReading(
    name="billing",
    counters=UpstreamCounters(),
    inuse=2,
    idle=3,
    waiting=1,
    hit_rate=0.75,
    max_connections=10,
    target_size=10,
    circuit=CircuitView(
        state=CircuitState.CLOSED,
        generation=3,
        calls=8,
        failures=2,
        failure_rate=0.25,
        consecutive_failures=1,
        retry_after_s=0.0,
        probes_in_flight=0,
        verdicts=0,
        slow_calls=0,
    ),
    budget_tokens=30.0,
    tls=TlsReading(
        certificate="0123456789abcdef",
        not_before_s=1_700_000_000,
        not_after_s=1_800_000_000,
        since_s=1_750_000_000.0,
        refused=None,
        refused_since_s=None,
    ),
)
SERVICE = ServiceReading(
    reloads={},
    digest="0" * 64,
    last_success_timestamp_s=1.0,
    ungoverned={},
    served={},
    served_duration=Histogram(),
)


def _moved(value: Any) -> Any:
    """Another value than *value* in its place."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + AMOUNT
        case str():
            return "1" * 64
        case Mapping():
            return {"word": AMOUNT}
        case Histogram() | UpstreamCounters():
            other = value.copy()
            fill(other, "wait", AMOUNT) if isinstance(other, UpstreamCounters) else other.observe(AMOUNT)
            return other
        case CircuitView():
            return replace(value, state=CircuitState.OPEN)
        case TlsReading():
            return replace(value, refused="the key is of another pair")
        case _:
            raise TypeError(f"say here what else a {type(value).__name__} may be")


@pytest.mark.parametrize(
    ("whole", "part"),
    [
        pytest.param(whole, field.name, id=f"{type(whole).__name__}.{field.name}")
        for whole in (UPSTREAM, SERVICE)
        for field in fields(whole)
    ],
)
def test_every_part_of_a_reading_is_in_the_metrics(
    whole: UpstreamReading | ServiceReading, part: str
) -> None:
    moved = replace(whole, **{part: _moved(getattr(whole, part))})

    def samples(one: UpstreamReading | ServiceReading) -> Any:
        upstream, service = (one, SERVICE) if isinstance(one, UpstreamReading) else (UPSTREAM, one)
        return plain(samples_of(Reading(upstreams=[upstream], service=service)))

    is_shown = f"{type(whole).__name__}.{part}" not in NOT_IN_METRICS
    assert (samples(moved) != samples(whole)) == is_shown
