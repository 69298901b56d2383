"""Prometheus families on a registry."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as text_string_to_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from headrace.observe.families import FAMILIES, UPSTREAM_FAMILIES
from headrace.observe.metrics import Metrics
from headrace.observe.readings import Reading, ServiceReading, UpstreamReading
from headrace.policy.breaker.circuit import CircuitState, CircuitView
from headrace.policy.counters import Exemplar, Histogram, UpstreamCounters, add
from headrace.policy.plan import CircuitMode

DIGEST = "0123456789abcdef" * 4


def circuit(
    state: CircuitState = CircuitState.CLOSED,
    failure_rate: float | None = 0.25,
    mode: CircuitMode = "enforce",
) -> CircuitView:
    return CircuitView(
        state=state,
        generation=3,
        calls=8,
        failures=2,
        failure_rate=failure_rate,
        consecutive_failures=1,
        retry_after_s=0.0,
        probes_in_flight=0,
        verdicts=0,
        mode=mode,
        slow_calls=4,
        slow_call_rate=0.5,
    )


def upstream(name: str = "billing", **changes: Any) -> UpstreamReading:
    facts: dict[str, Any] = {
        "counters": UpstreamCounters(lock=threading.Lock()),
        "inuse": 2,
        "idle": 3,
        "waiting": 1,
        "hit_rate": 0.75,
        "max_connections": 10,
        "target_size": 10,
        "circuit": circuit(),
        "budget_tokens": 30.0,
    }
    return UpstreamReading(name=name, **{**facts, **changes})


def service(**changes: Any) -> ServiceReading:
    facts: dict[str, Any] = {
        "reloads": {"applied": 2, "rejected": 1},
        "digest": DIGEST,
        "last_success_timestamp_s": 1_700_000_000.0,
        "ungoverned": {"tls": 1},
        "served": {"2xx": 5},
        "served_duration": Histogram(),
    }
    return ServiceReading(**{**facts, **changes})


def reading(*upstreams: UpstreamReading, **changes: Any) -> Reading:
    return Reading(upstreams=upstreams, service=service(**changes))


def busy_counters() -> UpstreamCounters:
    counters = UpstreamCounters(lock=threading.Lock())
    with counters.lock:
        add(counters.requests, "2xx", 7)
        add(counters.requests, "circuit_open", 2)
        add(counters.attempts, "reset", 4)
        add(counters.retries, "reset", 3)
        add(counters.retries_denied, "budget", 1)
        add(counters.transitions, ("closed", "open"), 1)
        counters.refused = 2
        add(counters.observed, "retry", 6)
        add(counters.acquires, "hit", 9)
        add(counters.closed, "idle", 1)
        counters.collections = 2
        for value_s in (0.001, 0.005, 0.3, 99.0):
            counters.duration.observe(value_s)
        counters.wait.observe(0.02)
        for attempts in (1, 1, 3, 40):
            counters.attempts_per_call.observe(attempts)
        counters.deadline_left.observe(14.5)
    return counters


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry(auto_describe=True)


@pytest.fixture
def show(registry: CollectorRegistry) -> Iterator[Callable[[Reading], Metrics]]:
    """Installs readings on the registry, and takes them off it in the end."""
    shown: list[Metrics] = []

    def install(what: Reading) -> Metrics:
        metrics = Metrics(lambda: what, registry=registry)
        metrics.install()
        shown.append(metrics)
        return metrics

    yield install
    for metrics in shown:
        metrics.uninstall()


Show = Callable[[Reading], Metrics]


UPSTREAM_HISTOGRAMS = {family.name for family in UPSTREAM_FAMILIES if family.kind == "histogram"}


def test_the_histograms_of_an_upstream_come_with_its_first_call(
    show: Show, registry: CollectorRegistry
) -> None:
    waited, refused = UpstreamCounters(), UpstreamCounters()
    waited.wait.observe(0.02)
    add(refused.requests, "circuit_open")
    show(reading(upstream("new"), upstream("waited", counters=waited), upstream("refused", counters=refused)))

    shown = {
        (sample.labels["upstream"], family.name)
        for family in registry.collect()
        for sample in family.samples
        if family.name in UPSTREAM_HISTOGRAMS
    }
    assert shown == {("waited", "headrace_pool_wait_seconds")} | {
        ("refused", name) for name in UPSTREAM_HISTOGRAMS
    }


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("headrace_pool_connections", {"state": "inuse"}, 2),
        ("headrace_pool_connections", {"state": "idle"}, 3),
        ("headrace_pool_waiting", {}, 1),
        ("headrace_pool_hit_rate", {}, 0.75),
        ("headrace_pool_acquires_total", {"result": "hit"}, 9),
        ("headrace_pool_connections_closed_total", {"reason": "idle"}, 1),
        ("headrace_pool_collections_total", {}, 2),
        ("headrace_pool_wait_seconds_count", {}, 1),
        ("headrace_requests_total", {"outcome": "2xx"}, 7),
        ("headrace_requests_total", {"outcome": "circuit_open"}, 2),
        ("headrace_request_duration_seconds_bucket", {"le": "0.005"}, 2),
        ("headrace_request_duration_seconds_bucket", {"le": "0.5"}, 3),
        ("headrace_request_duration_seconds_bucket", {"le": "+Inf"}, 4),
        ("headrace_request_duration_seconds_count", {}, 4),
        ("headrace_request_duration_seconds_sum", {}, 0.001 + 0.005 + 0.3 + 99.0),
        ("headrace_request_attempts_bucket", {"le": "1.0"}, 2),
        ("headrace_request_attempts_bucket", {"le": "3.0"}, 3),
        ("headrace_request_attempts_bucket", {"le": "10.0"}, 3),
        ("headrace_request_attempts_count", {}, 4),
        ("headrace_request_attempts_sum", {}, 45),
        ("headrace_deadline_left_seconds_bucket", {"le": "10.0"}, 0),
        ("headrace_deadline_left_seconds_sum", {}, 14.5),
        ("headrace_attempts_total", {"outcome": "reset"}, 4),
        ("headrace_retries_total", {"reason": "reset"}, 3),
        ("headrace_retries_denied_total", {"reason": "budget"}, 1),
        ("headrace_retry_budget_tokens", {}, 30),
        ("headrace_breaker_state", {"state": "closed"}, 1),
        ("headrace_breaker_state", {"state": "open"}, 0),
        ("headrace_breaker_state", {"state": "half_open"}, 0),
        ("headrace_breaker_transitions_total", {"from_state": "closed", "to_state": "open"}, 1),
        ("headrace_breaker_state", {"state": "forced_open"}, 0),
        ("headrace_breaker_failure_rate", {}, 0.25),
        ("headrace_breaker_slow_call_rate", {}, 0.5),
        ("headrace_breaker_refused_total", {}, 2),
        ("headrace_observed_total", {"action": "retry"}, 6),
    ],
)
def test_an_upstreams_family_shows_what_was_counted(
    show: Show, registry: CollectorRegistry, name: str, labels: dict[str, str], value: float
) -> None:
    show(reading(upstream(counters=busy_counters())))

    assert registry.get_sample_value(name, {"upstream": "billing", **labels}) == pytest.approx(value)


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("headrace_ungoverned_calls_total", {"reason": "tls"}, 1),
        ("headrace_config_reloads_total", {"result": "applied"}, 2),
        ("headrace_config_digest", {}, 0x0123456789AB),
        ("headrace_config_last_reload_success_timestamp_seconds", {}, 1_700_000_000),
        ("headrace_served_requests_total", {"status_class": "2xx"}, 5),
        ("headrace_served_request_duration_seconds_count", {}, 0),
    ],
)
def test_the_services_families_carry_no_upstream(
    show: Show, registry: CollectorRegistry, name: str, labels: dict[str, str], value: float
) -> None:
    show(reading())

    assert registry.get_sample_value(name, labels) == value


def test_a_breaker_forced_open_is_in_no_other_state(show: Show, registry: CollectorRegistry) -> None:
    show(reading(upstream(circuit=circuit(CircuitState.CLOSED, mode="forced_open"))))

    states = {
        state: registry.get_sample_value("headrace_breaker_state", {"upstream": "billing", "state": state})
        for state in ("closed", "open", "half_open", "forced_open")
    }
    assert states == {"closed": 0, "open": 0, "half_open": 0, "forced_open": 1}


def test_what_cannot_be_told_is_left_out_instead_of_being_zero(
    show: Show, registry: CollectorRegistry
) -> None:
    show(reading(upstream(hit_rate=None, circuit=None, budget_tokens=None)))

    text = generate_latest(registry).decode()
    for name in ("pool_hit_rate", "breaker_failure_rate", "breaker_state", "retry_budget_tokens"):
        assert f"headrace_{name}{{" not in text


def test_both_text_formats_can_be_read_back(show: Show, registry: CollectorRegistry) -> None:
    show(reading(upstream(counters=busy_counters())))

    names = {family.name for family in text_string_to_metric_families(generate_latest(registry).decode())}
    assert {name.removesuffix("_total") for name in FAMILIES} == {
        name.removesuffix("_total") for name in names
    }
    assert generate_openmetrics(registry).endswith(b"# EOF\n")


def test_no_label_of_any_family_can_hold_a_url() -> None:
    """failures.md 48."""
    labels = {label for _, names in FAMILIES.values() for label in names}

    # Names from the file and words from closed lists.
    assert labels == {
        "upstream",
        "state",
        "result",
        "reason",
        "outcome",
        "action",
        "from_state",
        "to_state",
        "status_class",
        "resumed",
        "kind",
    }


def test_every_name_is_a_lower_case_word_with_its_unit() -> None:
    for name, (family, _) in FAMILIES.items():
        assert re.fullmatch(r"headrace_[a-z_]+", name)
        assert name.endswith("_total") == (family.kind == "counter")
        assert family.kind != "histogram" or name.endswith(("_seconds", "_attempts"))
        assert (family.kind == "gauge") == bool(family.across_processes)


def test_two_instances_on_one_registry_are_merged_instead_of_colliding(
    show: Show, registry: CollectorRegistry
) -> None:
    show(reading(upstream(counters=busy_counters()), upstream("inventory"), last_success_timestamp_s=20.0))
    second = show(
        reading(
            upstream(counters=busy_counters(), hit_rate=0.5, circuit=circuit(CircuitState.OPEN, 0.9)),
            digest="f" * 64,
            last_success_timestamp_s=10.0,
        )
    )

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {"upstream": "billing", **labels})

    assert value("headrace_requests_total", outcome="2xx") == 14
    assert value("headrace_request_duration_seconds_count") == 8
    assert value("headrace_pool_connections", state="idle") == 6
    assert value("headrace_pool_hit_rate") == 0.5  # the worse of the two
    assert value("headrace_breaker_failure_rate") == 0.9
    assert (
        value("headrace_breaker_state", state="open"),
        value("headrace_breaker_state", state="closed"),
    ) == (1, 1)
    assert registry.get_sample_value("headrace_config_digest") == 0xFFFFFFFFFFFF
    assert registry.get_sample_value("headrace_config_last_reload_success_timestamp_seconds") == 10.0
    generate_openmetrics(registry)  # refuses duplicate series

    second.uninstall()

    assert value("headrace_requests_total", outcome="2xx") == 7
    assert (
        registry.get_sample_value("headrace_requests_total", {"upstream": "inventory", "outcome": "2xx"})
        is None
    )


def test_exemplars_of_two_instances_are_kept_bucket_by_bucket(
    show: Show, registry: CollectorRegistry
) -> None:
    one, other = UpstreamCounters(lock=threading.Lock()), UpstreamCounters(lock=threading.Lock())
    for counters, value, trace_id in (
        (one, 0.02, "a"),
        (one, 0.02, "b"),
        (one, 3.0, "c"),
        (other, 60.0, "d"),
    ):
        counters.duration.observe(value)
        counters.duration.exemplify(Exemplar(trace_id * 32, "e" * 16, value, 1_700_000_000.0))
    show(reading(upstream(counters=one)))
    show(reading(upstream(counters=other)))

    found = {
        sample.labels["le"]: sample.exemplar.labels["trace_id"][0]
        for family in text_string_to_openmetrics(generate_openmetrics(registry).decode())
        for sample in family.samples
        if sample.exemplar is not None
    }
    assert found == {"0.025": "b", "5.0": "c", "+Inf": "d"}
    assert "# {" not in generate_latest(registry).decode()  # the other format has no place for them


def test_install_and_uninstall_are_idempotent_and_leave_the_registry_empty(
    registry: CollectorRegistry,
) -> None:
    metrics = Metrics(reading, registry=registry)

    metrics.install()
    metrics.install()
    assert registry.get_sample_value("headrace_config_digest") is not None
    metrics.uninstall()
    metrics.uninstall()

    assert list(registry.collect()) == []


def test_the_default_registry_is_used_when_none_is_given() -> None:
    from prometheus_client import REGISTRY

    metrics = Metrics(reading)
    metrics.install()
    try:
        assert REGISTRY.get_sample_value("headrace_config_digest") is not None
    finally:
        metrics.uninstall()


def test_installing_reads_nothing(registry: CollectorRegistry) -> None:
    def fail() -> Reading:
        raise AssertionError("read at installation")

    metrics = Metrics(fail, registry=registry)
    metrics.install()
    metrics.uninstall()


def test_a_scrape_holds_no_counters_lock_while_it_yields(show: Show, registry: CollectorRegistry) -> None:
    counters = busy_counters()
    show(reading(upstream(counters=counters)))

    for _ in registry.collect():
        assert counters.lock.acquire(blocking=False)  # type: ignore[attr-defined]
        counters.lock.release()  # type: ignore[attr-defined]


def test_a_scrape_under_load_sees_totals_that_stood_together(show: Show, registry: CollectorRegistry) -> None:
    counters = UpstreamCounters(lock=threading.Lock())
    show(reading(upstream(counters=counters)))
    stop = threading.Event()

    def call() -> None:
        while not stop.is_set():
            with counters.lock:
                add(counters.requests, "2xx")
                counters.duration.observe(0.01)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(50):
            samples = {
                (sample.name, sample.labels.get("outcome")): sample.value
                for family in registry.collect()
                for sample in family.samples
            }
            counted = samples.get(("headrace_requests_total", "2xx"), 0)
            assert counted == samples[("headrace_request_duration_seconds_count", None)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
