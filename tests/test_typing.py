"""`tests/typing/api.py`, which the checkers read, leaves nothing of the public face out."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import headrace
import pytest_headrace
from headrace import testing
from headrace.errors import Problem

API = (Path(__file__).parent / "typing" / "api.py").read_text("utf-8")
USED = frozenset(re.findall(r"\.(\w+)", API))

NOT_FOR_USERS = {
    (headrace.Headrace, "forget"),  # what `headrace.testing.isolated` does
    (headrace.Headrace, "show_metrics"),  # what the middlewares do
    (headrace.Headrace, "is_open"),
    (headrace.Headrace, "reread"),
    (headrace.Headrace, "service"),  # the middlewares' counters
    (headrace.Record, "judge_last"),
    (headrace.Handle, "forget_inherited"),
    # What makes an awaited answer, and follows its body.
    *(
        (headrace.AwaitedAnswer, name)
        for name in (
            "close",
            "follow",
            "keep",
            "lease",
            "let_go",
            "max_bytes",
            "of",
            "on_break",
            "on_excess",
        )
    ),
    (testing.Simulation, "inbound"),  # what its upstreams ask
    (testing.Timeline, "note"),
    (headrace.PropagatingExecutor, "shutdown"),  # as every executor's
    (headrace.RequestIdFilter, "filter"),  # as every filter's
}
CLASSES = [
    *(found for name in headrace.__all__ if isinstance(found := getattr(headrace, name), type)),
    *(found for name in testing.__all__ if isinstance(found := getattr(testing, name), type)),
    Problem,
]


def attributes(cls: type) -> set[str]:
    """Public ones, of the class itself and of those of ours above it: methods, properties, slots, annotations.

    The members of an enumeration are words, not attributes: one of them stands for all.
    """
    ours = [one for one in cls.__mro__ if one.__module__.startswith("headrace")]
    names = {name for one in ours for name in {**vars(one), **inspect.get_annotations(one)} if name[0] != "_"}
    return names - set(getattr(cls, "__members__", ()))


@pytest.mark.parametrize("module", [headrace, testing])
def test_every_public_name_is_used_as_a_user_would(module: object) -> None:
    prefix = "headrace." if module is headrace else ""
    assert [name for name in module.__all__ if not re.search(rf"\b{prefix}{name}\b", API)] == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_attribute_of_a_public_class_is_used(cls: type) -> None:
    wanted = {name for name in attributes(cls) if (cls, name) not in NOT_FOR_USERS}
    assert sorted(wanted - USED) == []


@pytest.mark.parametrize("error", [one for one in CLASSES if issubclass(one, Exception)])
def test_every_attribute_of_an_error_is_used(error: type[Exception]) -> None:
    """Those are set by its constructor: the class knows of some only."""
    names = {name for name in vars(error("text")) if name[0] != "_"}
    assert sorted(names - USED) == []


def test_what_is_not_for_users_is_there() -> None:
    assert [(cls.__name__, name) for cls, name in NOT_FOR_USERS if not hasattr(cls, name)] == []


def test_every_fixture_is_used() -> None:
    fixtures = [name for name in vars(pytest_headrace) if name.startswith("headrace_")]
    assert fixtures == ["headrace_isolation", "headrace_instance"]
    assert [name for name in fixtures if f"{name}: headrace.Headrace" not in API] == []
