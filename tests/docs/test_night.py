"""The table for the night: each thing that it says to do does what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import requests

import headrace
from headrace.observe import events
from support.faultserver import Answer, Break, FaultServer
from support.waiting import wait_until


@pytest.mark.parametrize("mode", ["off", "observe"])
def test_the_switch_in_the_environment(
    mode: str,
    folder: Path,
    upstream: FaultServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("HEADRACE_MODE", mode)
    upstream.always(Answer(503))
    with headrace.install() as hr:
        assert not hasattr(requests.get(upstream.url), "headrace")
        assert len(upstream.requests) == 1
        counted = hr.status()["upstreams"]["billing"]["requests"]
    assert counted == ({} if mode == "off" else {"5xx": 1})
    assert events.ModeOverridden.name in [getattr(record, "event", "") for record in caplog.records]


def test_switching_off_by_an_edit_letting_through_and_undoing(
    hr: headrace.Headrace, folder: Path, upstream: FaultServer
) -> None:
    file = folder / "upstreams.yaml"
    original = file.read_text()

    def status() -> Any:
        return hr.status()["upstreams"]["billing"]

    upstream.always(Break())
    for _ in range(5):
        with pytest.raises(requests.ConnectionError):
            requests.get(upstream.url)
    with pytest.raises(headrace.CircuitOpenError):
        requests.get(upstream.url)
    upstream.always(Answer())

    file.write_text(original + "    circuit_breaker: {mode: disabled}\n")
    wait_until(lambda: status()["circuit_breaker"]["state"] == "closed")
    assert requests.get(upstream.url).headrace.reason == "success"  # type: ignore[attr-defined]

    file.write_text(original + "    mode: off\n")
    wait_until(lambda: status()["mode"] == "off")
    assert not hasattr(requests.get(upstream.url), "headrace")

    digest = hr.status()["digest"]
    file.write_text(original + "    mode: of\n")
    wait_until(lambda: hr.status()["rejected"] is not None)
    assert hr.status()["digest"] == digest

    file.write_text(original)
    wait_until(lambda: status()["mode"] == "enforce")
    assert hr.status()["rejected"] is None
    assert requests.get(upstream.url).headrace.reason == "success"  # type: ignore[attr-defined]
