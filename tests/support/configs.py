"""Types of the fixtures that load a configuration from a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from headrace.config import Inspection
from headrace.policy.plan import Configuration


class LoadText(Protocol):
    def __call__(self, text: str | bytes, /, *, env: Mapping[str, str] | None = None) -> Configuration: ...


class InspectText(Protocol):
    def __call__(self, text: str | bytes, /, *, env: Mapping[str, str] | None = None) -> Inspection: ...
