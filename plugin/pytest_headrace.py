"""The pytest plugin: `@pytest.mark.headrace`, off for every test without it.

Beside the package and not in it, as Hypothesis has its own: pytest imports plugins at
start, and importing the package there would cost every project in the environment a
third of a second, and hide its import from coverage. Here nothing of headrace
is imported until a marked test runs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from headrace import Headrace

_MARK = "headrace"
_ISOLATION = "headrace_isolation"


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, so that `--strict-markers` knows it."""
    config.addinivalue_line(
        "markers",
        "headrace(file=None, env={…}): run this test isolated from what headrace has learned, started and patched "
        "in others; with a file, under its rules (fixture `headrace_instance`).",
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give marked tests the isolation as their first fixture of function scope."""
    if item.get_closest_marker(_MARK) is None:
        return
    names = getattr(item, "fixturenames", None)
    if names is None:
        raise pytest.UsageError(f"{item.nodeid}: the marker {_MARK} is for tests that take fixtures")
    if _ISOLATION not in names:  # the list is shared by the parameters of a function
        names.insert(_first_of_function_scope(item, names), _ISOLATION)


@pytest.fixture
def headrace_isolation(request: pytest.FixtureRequest) -> Iterator[Headrace | None]:
    """What headrace learns, starts and patches in this test stays in it (`headrace.testing.isolated`)."""
    from headrace.testing import isolated

    file, env = _arguments_of(request.node.get_closest_marker(_MARK))
    with isolated():
        if file is None:
            yield None
            return
        from prometheus_client import CollectorRegistry

        import headrace

        with pytest.MonkeyPatch.context() as environment:
            for name, value in env.items():
                environment.setenv(name, value)
            with headrace.install(file, registry=CollectorRegistry()) as instance:
                yield instance


@pytest.fixture
def headrace_instance(headrace_isolation: Headrace | None) -> Headrace:
    """The running `Headrace` of the file that the marker names."""
    if headrace_isolation is None:
        pytest.fail('headrace_instance needs a file: @pytest.mark.headrace("upstreams.yaml")', pytrace=False)
    return headrace_isolation


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Timelines that differ, line by line."""
    module = sys.modules.get("headrace.testing.timeline")
    if module is None or op != "==":
        return None
    for happened, expected in ((left, right), (right, left)):
        if isinstance(happened, module.Timeline) and isinstance(expected, list):
            return ["timelines differ (- expected, + happened)", *module.differences(happened, expected)]
    return None


def _arguments_of(mark: pytest.Mark | None) -> tuple[Any, dict[str, str]]:
    def arguments(file: Any = None, *, env: Any = None) -> tuple[Any, dict[str, str]]:
        if file is None and env:
            raise ValueError("env= is for a file, and none is named")
        return file, dict(env or {})

    if mark is None:
        return None, {}
    try:
        return arguments(*mark.args, **mark.kwargs)
    except (TypeError, ValueError) as error:
        pytest.fail(f"@pytest.mark.{_MARK} takes a file and env={{…}}: {error}", pytrace=False)


def _first_of_function_scope(item: pytest.Item, names: list[str]) -> int:
    """Where the fixtures of wider scope end: those are set up before, and outlive the test."""
    known = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
    for place, name in enumerate(names):
        found = known.get(name)
        if found and found[-1].scope == "function":
            return place
    return len(names)
