"""The owner of a connection that its peer has authenticated: the same callers share it as under stock."""

from __future__ import annotations

from contextvars import ContextVar

from requests.adapters import HTTPAdapter


class CallByName:
    """One call through a handle. All callers share the handle's adapter, but none may share what a call authenticates.

    Attributes:
        adapter: The call's own, for plain connections, once it has begun to authenticate one; None before.
    """

    __slots__ = ("__weakref__", "adapter")

    def __init__(self) -> None:
        self.adapter: HTTPAdapter | None = None


call_by_name: ContextVar[CallByName | None] = ContextVar("headrace_call_by_name", default=None)
"""The call that the running code makes. What a hook of that call sends again is part of it."""


def owner_behind(adapter: HTTPAdapter) -> object | None:
    """The owner of what a call through *adapter* authenticates: the adapter, or the call if it is a handle's."""
    return getattr(adapter, "headrace_owner", adapter)
