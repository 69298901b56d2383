"""The bar for the shipped breaker, small; `tests/bench/breaker_harm.py` plays all of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
import breaker_harm as bench


@pytest.mark.parametrize("status", [500, 503])
@pytest.mark.parametrize(
    ("p", "rate"), [(0.3, 0.2), (0.4, 1.0), (0.4, 2.0), (0.4, 10.0), (0.3, 100.0), (0.4, 1000.0)]
)
def test_independent_failures_below_the_threshold_cost_no_more_than_without_a_breaker(
    p: float, rate: float, status: int
) -> None:
    """failures.md 87."""
    found = [
        bench.harm(
            lambda s=seed: bench.independent(p, s, status=status),  # type: ignore[misc]
            rate=rate,
            calls=bench.calls_at(rate, calls=300, seconds=2.0),
            seed=seed,
        )
        for seed in bench.SEEDS
    ]

    assert bench.worst(found).more <= bench.WORST_INDEPENDENT


@pytest.mark.parametrize(("p", "rate", "calls"), [(0.1, 10.0, 3000), (0.2, 1.0, 1000), (0.2, 10.0, 3000)])
def test_one_second_bursts_cost_at_most_ten_points_more_than_without_a_breaker(
    p: float, rate: float, calls: int
) -> None:
    """failures.md 87."""
    found = [
        bench.harm(
            lambda s=seed: bench.in_bursts(p, s),  # type: ignore[misc]
            rate=rate,
            calls=calls,
            seed=seed,
        )
        for seed in bench.SEEDS
    ]

    assert bench.worst(found).more <= bench.WORST_BURSTS


@pytest.mark.parametrize("rate", [0.2, 1.0, 10.0])
def test_a_dead_upstream_is_noticed_within_five_calls(rate: float) -> None:
    for seed in bench.SEEDS:
        noticed = bench.noticed_after(1.0, rate=rate, calls=20, seed=seed)
        assert noticed is not None
        assert noticed[1] <= 5


def test_at_a_hundred_calls_a_second_a_dead_upstream_is_noticed_within_a_fifth_of_a_second() -> None:
    for seed in bench.SEEDS:
        noticed = bench.noticed_after(1.0, rate=100.0, calls=100, seed=seed)
        assert noticed is not None
        assert noticed[0] <= 0.2


@pytest.mark.parametrize("rate", [5.0, 10.0, 100.0])
def test_four_failures_of_five_are_noticed_within_ten_seconds(rate: float) -> None:
    """Below 5 calls a second, half of the calls still succeed by their retries, and no rate is known."""
    for seed in bench.SEEDS:
        noticed = bench.noticed_after(0.8, rate=rate, calls=round(rate * 10), seed=seed)
        assert noticed is not None
        assert noticed[0] <= 10.0
