"""What the blocks of the pages run against: a server in place of billing.internal, and the file of the first screen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import headrace
from support.faultserver import Answer, FaultServer
from support.pages import BILLING, FILE, text_of


@pytest.fixture
def upstream() -> Iterator[FaultServer]:
    """Stands in for billing.internal."""
    with FaultServer() as server:
        server.always(Answer(headers=(("Content-Type", "application/json"),), body=b'{"invoice": 7}'))
        yield server


@pytest.fixture
def folder(tmp_path: Path, upstream: FaultServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the file of the first screen in it, enforced."""
    text = text_of(FILE, {BILLING: upstream.url, "mode: observe": "mode: enforce"})
    (tmp_path / "upstreams.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def hr(folder: Path) -> Iterator[headrace.Headrace]:
    """An instance with that file in force."""
    with headrace.install("upstreams.yaml") as instance:
        yield instance
