"""Layers of ours on functions of other libraries: which function is one, and what it has found.

A layer has the attribute `headrace_original`. That alone says nothing: `functools.wraps` copies it to the wrapper that
somebody puts over a layer. The proxies of wrapt answer with it, and with the type and the globals of what they wrap.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def is_ours(function: Any) -> bool:
    """Whether *function* is a layer of ours, and no wrapper around one."""
    return (
        type(function) is types.FunctionType
        and str(function.__globals__.get("__name__")).startswith("headrace.")
        and "headrace_original" in function.__dict__
    )


def without_ours(function: F) -> F:
    """*function* without a layer of ours on it: what that layer has found."""
    if not is_ours(function):
        return function
    found: F = function.headrace_original  # type: ignore[attr-defined]
    return found
