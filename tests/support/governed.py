"""A real Headrace over a file of the test's own, for tests that talk to real servers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry

import headrace


def rules(base_url: str, body: str = "", *, name: str = "billing", more: str = "") -> str:
    """A file with one upstream; *body* is its further keys (flow style or indented by 4), *more* top-level text."""
    return f"version: 1\n{more}upstreams:\n  {name}:\n    base_url: {base_url}\n{body}"


@contextlib.contextmanager
def running(folder: Path, text: str) -> Iterator[headrace.Headrace]:
    """A started Headrace over `upstreams.yaml` in *folder*, with a registry of its own."""
    file = folder / "upstreams.yaml"
    file.write_text(text)
    with headrace.Headrace(file, registry=CollectorRegistry()) as hr:
        yield hr


def reason_of(error: BaseException) -> str:
    """Why headrace ended the call that raised *error*."""
    return error.headrace.reason.value  # type: ignore[attr-defined]
