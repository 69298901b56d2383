"""Which pools housekeeping looks after: those that hold something, or have something to tell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

import headrace
from bench.interleaved import python_calls
from headrace.adapters import install
from headrace.clock import monotonic
from headrace.transport.lease.errors import LeaseError
from support.faultserver import FaultServer


class Noting:
    """The leases of a pool; notes each `tend`."""

    def __init__(self, real: Any, tended: list[str], name: str) -> None:
        self._real, self._tended, self._name = real, tended, name

    def __getattr__(self, name: str) -> Any:
        if name == "tend":
            self._tended.append(self._name)
        return getattr(self._real, name)


def instance(folder: Path, url: str, *, pool: str = "{}") -> headrace.Headrace:
    upstreams = "".join(
        f"  {name}: {{base_url: '{url}/{name}', pool: {pool}}}\n" for name in ("called", "spared")
    )
    (folder / "upstreams.yaml").write_text(f"version: 1\nupstreams:\n{upstreams}")
    return headrace.Headrace(folder / "upstreams.yaml", registry=CollectorRegistry())


@pytest.mark.parametrize("ends", ["idle", "in use"])
def test_a_pool_is_tended_for_as_long_as_it_holds_a_connection(tmp_path: Path, ends: str) -> None:
    tended: list[str] = []
    with FaultServer() as server:
        hr = instance(tmp_path, server.url)
        try:
            for name, upstream in hr.snapshot.upstreams.items():
                pool: Any = upstream.endpoint.pool
                pool.leases = Noting(pool.leases, tended, name)
            tick = hr._reloader.tick

            tick(monotonic())
            assert tended == []

            answer = hr.upstream("called").get("/", stream=ends == "in use")
            tick(monotonic())
            assert tended == ["called"]
            if ends == "in use":
                tick(monotonic())
                assert tended == ["called"] * 2
            answer.close()

            tended.clear()
            tick(monotonic() + 3600.0)  # the connection has been idle for too long by now
            assert tended == ["called"]
            assert hr.status()["upstreams"]["called"]["pool"]["idle"] == 0
            tick(monotonic() + 3600.0)
            assert tended == ["called"]
        finally:
            hr.close()


def test_an_adaptive_pool_is_looked_at_even_if_nobody_calls(tmp_path: Path) -> None:
    """Its size follows what does not happen, too."""
    tended: list[str] = []
    hr = instance(tmp_path, "http://127.0.0.1:9", pool="{adaptive: {}}")
    try:
        for name, upstream in hr.snapshot.upstreams.items():
            pool: Any = upstream.endpoint.pool
            pool.leases = Noting(pool.leases, tended, name)
        hr._reloader.tick(monotonic())
        assert tended == ["called", "spared"]
    finally:
        hr.close()


def test_what_there_is_to_do_follows_a_reload(tmp_path: Path) -> None:
    """A pool that is to be kept warm from now on is asked how many connections it wants."""
    with FaultServer() as server:
        hr = instance(tmp_path, server.url)
        try:
            hr._reloader.tick(monotonic())
            file = Path(hr.files[0])
            file.write_text(file.read_text().replace("pool: {}", "pool: {min_idle: 1}"))
            hr.reload()
            hr._reloader.tick(monotonic())
            assert hr._reloader.lives()["headrace-warmup"]["looked_ago"] is not None
        finally:
            hr.close()


def test_upstreams_that_nobody_calls_are_not_even_looked_at(tmp_path: Path) -> None:
    """Of ten thousand, each look at each of them was a fifth of a core."""
    names = [f"service_{number}" for number in range(200)]
    upstreams = "".join(f"  {name}: {{base_url: 'http://127.0.0.1:9/{name}'}}\n" for name in names)
    (tmp_path / "upstreams.yaml").write_text(f"version: 1\nupstreams:\n{upstreams}")
    hr = headrace.Headrace(tmp_path / "upstreams.yaml", registry=CollectorRegistry())
    try:
        hr._reloader.tick(monotonic())

        assert python_calls(lambda: hr._reloader.tick(monotonic())) < len(names) / 2
        # urllib3 is imported, and no rule wants its calls: that is nothing to follow at each tick.
        hr.start()
        assert python_calls(lambda: install.follow_imports(monotonic())) < len(names) / 2
    finally:
        hr.close()


@pytest.mark.parametrize(
    "happens",
    [
        pytest.param(lambda leases: leases.give_back(leases.acquire(1.0), reusable=False), id="a checkout"),
        pytest.param(lambda leases: _refused(leases), id="a refusal"),
        pytest.param(lambda leases: leases.offer(object()), id="a connection made ahead of need"),
    ],
)
def test_a_pool_in_which_something_happens_is_looked_at_until_it_is_at_rest_again(
    tmp_path: Path, happens: Callable[[Any], object]
) -> None:
    hr = instance(tmp_path, "http://127.0.0.1:9", pool="{max_connections: 1, when_full: reject}")
    leases: Any = hr.snapshot.upstream("called").endpoint.pool.leases
    try:
        hr._reloader.tick(monotonic())
        assert not leases.is_awake

        happens(leases)

        assert leases.is_awake
        hr._reloader.tick(monotonic() + 3600.0)
        hr._reloader.tick(monotonic() + 3600.0)
        assert not leases.is_awake
        assert leases.view().idle == 0
    finally:
        hr.close()


def _refused(leases: Any) -> None:
    held = leases.acquire(1.0)
    with pytest.raises(LeaseError):
        leases.acquire(0.0)
    leases.give_back(held, reusable=False)
