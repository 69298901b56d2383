"""The inbound request that the running code belongs to: one variable, on the floor, so that every layer may ask."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

inbound_var: ContextVar[Any] = ContextVar("headrace_inbound", default=None)
"""A `runtime.inbound.Inbound`, or None outside of any request. Log lines use only its `request_id`."""
