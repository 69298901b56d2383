"""Start, reload and close at the same time: what plain calls meet is what is in force, or nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from prometheus_client import CollectorRegistry

import headrace
from headrace.adapters import install
from headrace.runtime.watch.watcher import Watcher
from support.faultserver import FaultServer
from support.governed import rules, running
from support.waiting import wait_until


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


def test_an_edit_between_construction_and_start_reaches_plain_calls(
    tmp_path: Path, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "upstreams.yaml"
    file.write_text(rules(server.url))
    hr = headrace.Headrace(file, registry=CollectorRegistry())
    before = hr.snapshot
    file.write_text(rules(server.url, "    headers: {X-Rule: new}\n"))

    start = Watcher.start

    def start_and_dawdle(watcher: Watcher) -> None:  # as if start() lost the processor right here
        start(watcher)
        deadline = time.monotonic() + 1.0
        while hr.snapshot is before and time.monotonic() < deadline:
            time.sleep(0.001)

    monkeypatch.setattr(Watcher, "start", start_and_dawdle)
    with hr:
        wait_until(lambda: hr.snapshot is not before)
        assert requests.get(server.url).headrace.config_digest == hr.snapshot.digest  # type: ignore[attr-defined]
        assert server.requests[-1].header("X-Rule") == "new"


def test_a_reload_that_is_overtaken_by_close_publishes_nothing(
    tmp_path: Path, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path, rules(server.url)) as hr:
        publish, withdraw = install.publish, install.withdraw
        about_to_publish, withdrawn = threading.Event(), threading.Event()

        def publish_late(*args: Any) -> None:
            about_to_publish.set()
            withdrawn.wait(5)
            publish(*args)

        def withdraw_and_tell(owner: object) -> None:
            withdraw(owner)
            withdrawn.set()

        monkeypatch.setattr(install, "publish", publish_late)
        monkeypatch.setattr(install, "withdraw", withdraw_and_tell)
        Path(hr.files[0]).write_text(rules(server.url, "    headers: {X-Rule: new}\n"))
        reloading = threading.Thread(target=hr.reload)
        reloading.start()
        assert about_to_publish.wait(5)
        hr.close()
        reloading.join()

        assert install.owners() == []
        assert not hasattr(requests.get(server.url), "headrace")
