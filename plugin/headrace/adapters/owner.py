"""Whose a connection is that its peer has authenticated: those share it who would share it under stock."""

from __future__ import annotations

from contextvars import ContextVar

from requests.adapters import HTTPAdapter


class CallByName:
    """One call through a handle: all callers share its adapter, and nobody is to share what it authenticates.

    Attributes:
        adapter: Of its own, for plain connections, once it has begun to authenticate one; None before.
    """

    __slots__ = ("__weakref__", "adapter")

    def __init__(self) -> None:
        self.adapter: HTTPAdapter | None = None


call_by_name: ContextVar[CallByName | None] = ContextVar("headrace_call_by_name", default=None)
"""The call that the running code makes; what a hook of it sends again is part of it."""


def owner_behind(adapter: HTTPAdapter) -> object | None:
    """Whose connections a call through *adapter* authenticates: the adapter's, or, of a handle, the call's."""
    return getattr(adapter, "headrace_owner", adapter)
