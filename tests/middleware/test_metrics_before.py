"""Metrics are there before the first request: a scrape of a process that has served nothing yet finds zeros."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

import headrace
from support.governed import rules

Middleware = Callable[..., Any]


@pytest.fixture(params=["wsgi", "asgi"])
def middleware(request: pytest.FixtureRequest) -> Middleware:
    made: Middleware = headrace.WSGIMiddleware if request.param == "wsgi" else headrace.ASGIMiddleware
    return made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "upstreams.yaml"
    path.write_text(rules("http://billing.invalid", "    pool: {max_connections: 7}\n"))
    return path


def app(*_: Any) -> Any:
    """No request comes here."""


def size(registry: CollectorRegistry, upstream: str = "billing") -> float | None:
    return registry.get_sample_value("headrace_pool_target_size", {"upstream": upstream})


def test_they_are_there_as_soon_as_the_middleware_is(middleware: Middleware, file: Path) -> None:
    registry = CollectorRegistry()
    made = middleware(app, file, registry=registry)

    assert size(registry) == 7
    assert made.headrace.status()["running"] is False

    made.headrace.start()
    assert size(registry) == 7
    made.headrace.close()
    assert size(registry) is None


def test_an_instance_that_was_made_in_vain_is_neither_counted_nor_kept(
    middleware: Middleware, file: Path
) -> None:
    """An application factory with an instance of its own may be called twice, and the loser dropped."""
    registry = CollectorRegistry()
    first, second = (middleware(app, headrace=headrace.Headrace(file, registry=registry)) for _ in range(2))
    assert size(registry) == 7

    first.headrace.start()
    assert size(registry) == 7
    first.headrace.close()

    assert size(registry) == 7  # of the second, which may yet start
    del first, second
    gc.collect()
    assert size(registry) is None


def test_an_application_beside_one_that_runs_is_shown_too(
    middleware: Middleware, file: Path, tmp_path: Path
) -> None:
    registry = CollectorRegistry()
    other = tmp_path / "other.yaml"
    other.write_text(rules("http://other.invalid", "    pool: {max_connections: 9}\n", name="other"))
    beside = middleware(app, other, registry=registry)
    with headrace.Headrace(file, registry=registry):
        assert (size(registry), size(registry, "other")) == (7, 9)
    assert beside is not None
