"""Examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import headrace

MODULES = sorted(found.name for found in pkgutil.walk_packages(headrace.__path__, "headrace."))


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_the_module_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_every_module_was_found() -> None:
    assert {"headrace.app", "headrace.policy.breaker.circuit", "headrace.middleware.django"} <= set(MODULES)
