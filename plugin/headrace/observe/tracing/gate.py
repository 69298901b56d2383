"""Whether anything is told to OpenTelemetry, and by which rule: the one place that knows if it is there.

`otel`, and the three modules that it imports, say what is told. They are imported
from here only, and only when a configuration asks for it. Without opentelemetry-api,
or with `tracing: off`, nothing is imported, and a call looks at one None.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.observe.events import ConfigWarning
from headrace.observe.logs import emit
from headrace.policy.plan import TracingMode

if TYPE_CHECKING:
    from headrace.observe.tracing.otel import Tracing


def tracing_of(mode: TracingMode) -> Tracing | None:
    """The `Tracing` that *mode* asks for, or None: nothing is told. Imports opentelemetry-api if it is there.

    Logs when it is there and cannot be imported.
    """
    if mode == "off":
        return None
    try:
        from headrace.observe.tracing.otel import Tracing
    except Exception as error:
        is_absent = isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("opentelemetry")
        if not is_absent:
            # The import reads the environment, and OTEL_PROPAGATORS may name a package that is not installed. An
            # application that only happens to have opentelemetry must be able to start.
            emit(ConfigWarning(f"nothing is traced: opentelemetry cannot be imported ({error!r})"))
        return None
    return Tracing(makes_spans=mode == "spans")
