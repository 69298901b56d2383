"""How tests of the configuration read one: from a real file, with an environment of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from headrace.config import Inspection, inspect, load
from headrace.policy.plan import Configuration
from support.configs import InspectText, LoadText


def _written(folder: Path, text: str | bytes) -> str:
    (folder / "upstreams.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return "upstreams.yaml"


@pytest.fixture
def load_text(tmp_path: Path) -> LoadText:
    """Loads a text as `upstreams.yaml` in the test's own directory; the environment is empty unless given."""

    def load_it(text: str | bytes, /, *, env: Mapping[str, str] | None = None) -> Configuration:
        return load(_written(tmp_path, text), env=env or {}, cwd=tmp_path)

    return load_it


@pytest.fixture
def inspect_text(tmp_path: Path) -> InspectText:
    """As `load_text`, but answers everything there is to say."""

    def inspect_it(text: str | bytes, /, *, env: Mapping[str, str] | None = None) -> Inspection:
        return inspect(_written(tmp_path, text), env=env or {}, cwd=tmp_path)

    return inspect_it
