"""`failure_if` names a function of the application; a name that leads nowhere is a problem of the file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from headrace.config import inspect
from headrace.config.load import load

MODULE = """
NOT = 3

def is_error(response):
    return False

class Rules:
    @staticmethod
    def odd(response):
        return True
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "shop_of_test").mkdir()
    (tmp_path / "shop_of_test" / "__init__.py").write_text("")
    (tmp_path / "shop_of_test" / "billing.py").write_text(MODULE)
    (tmp_path / "shop_of_test" / "broken.py").write_text("raise RuntimeError('password=hunter2')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("shop_of_test")]:
        del sys.modules[name]


def written(folder: Path, text: str) -> Path:
    file = folder / "upstreams.yaml"
    breaker = f"circuit_breaker: {{failure_if: {text}}}"
    file.write_text(f"upstreams:\n  billing:\n    base_url: http://billing.internal\n    {breaker}\n")
    return file


@pytest.mark.parametrize("name", ["is_error", "Rules.odd"])
def test_the_function_is_the_plans(shop: Path, name: str) -> None:
    file = written(shop, f"'shop_of_test.billing:{name}'")
    first, second = load(file), load(file)

    assert callable(first.upstreams["billing"].circuit_breaker.failure_if)
    assert first == second  # so that a reload finds the upstream unchanged


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("shop_of_test.nope:is_error", "there is no module shop_of_test.nope", id="no module"),
        pytest.param("shop_of_test.billing:is_eror", "the module has no is_eror", id="no function"),
        pytest.param("shop_of_test.billing:NOT", "which cannot be called", id="not callable"),
        pytest.param("shop_of_test.broken:f", "its module fails at import with RuntimeError", id="broken"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused_with_its_position(shop: Path, text: str, words: str) -> None:
    inspection = inspect(written(shop, f"'{text}'"))

    (problem,) = inspection.problems
    assert (problem.line, problem.path) == (4, "upstreams.billing.circuit_breaker.failure_if")
    assert words in str(problem)
    assert "hunter2" not in str(problem)
