"""Whether anything is told to OpenTelemetry, and by which rule: the one place that knows if it is there.

What is told is in `otel` and the three modules that it imports. They are imported
from here only, and only when a configuration asks for it: without opentelemetry-api,
or with `tracing: off`, nothing is imported and a call looks at one None.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.policy.plan import TracingMode

if TYPE_CHECKING:
    from headrace.observe.otel import Tracing


def tracing_of(mode: TracingMode) -> Tracing | None:
    """What tells OpenTelemetry as *mode* says, or None: nothing is told. Imports opentelemetry-api if it is there."""
    if mode == "off":
        return None
    try:
        from headrace.observe.otel import Tracing
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "opentelemetry":
            raise
        return None
    return Tracing(makes_spans=mode == "spans")
