"""`failure_if: package.module:function`: the function that a text names."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from headrace.config.check.problems import Path, Problem
from headrace.config.settings import Settings
from headrace.config.source.written import Written

Predicate = Callable[[Any], bool]


def find_predicates(settings: Settings, written: Written) -> tuple[dict[str, Predicate], list[Problem]]:
    """The function of each upstream that names one, and what is wrong with the others. Imports the modules named."""
    found: dict[str, Predicate] = {}
    problems: list[Problem] = []
    for name, upstream in settings.upstreams.items():
        text = upstream.circuit_breaker.failure_if
        path: Path = ("upstreams", name, "circuit_breaker", "failure_if")
        if text is None or not written.is_usable(path):
            continue
        try:
            found[name] = _load(text)
        except LookupError as error:
            problems.append(
                written.problem(
                    path,
                    f"names {written.shown(path, text)}, {error.args[0]}",
                    "name a function of a module that this process can import: package.module:function",
                )
            )
    return found, problems


def _load(text: str) -> Predicate:
    """The function that *text* names.

    Raises:
        LookupError: There is none. The text goes on from "names …,".
    """
    module_name, _, attributes = text.partition(":")
    try:
        importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise LookupError(f"but there is no module {error.name}") from error
    except Exception as error:  # whatever the import does; its text may hold anything
        raise LookupError(f"but its module fails at import with {type(error).__name__}") from error
    try:
        target: Any = pkgutil.resolve_name(text)
    except AttributeError:
        raise LookupError(f"but the module has no {attributes}") from None
    if not callable(target):
        raise LookupError("which cannot be called")
    return target  # type: ignore[no-any-return]
