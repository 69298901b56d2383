"""A slice of `tests/bench/echoes.py`: in a storm of faults each caller gets its own answer; nothing is left over."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.echoes import FAULTS, SURFACES, run


@pytest.mark.parametrize("parser", ["auto", "stdlib"], indirect=True)
def test_whatever_the_server_does_each_caller_gets_its_own_answer(tmp_path: Path, parser: str) -> None:
    """failures.md 53, 90."""
    found = run(tmp_path, parser, seconds=5.0, still_every_s=2.0)

    assert found.wrong == []
    assert {surface for surface, _, _ in found.ends} == set(SURFACES)
    assert len({fault for _, fault, _ in found.ends}) > len(FAULTS) / 2
    assert found.own() > found.calls() / 2 > 16
