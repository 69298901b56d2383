"""What OpenTelemetry is told. `gate` alone knows whether it is there.

`otel.Tracing` is the rule of one configuration: it says whether a call has anything to tell. `call_trace.CallTrace`
stands around the attempts of one call, and `attempt_spans` makes a span for each where the rule wants that.
`request_trace` collects what the span of an inbound request is told. `span_facts` turns views and outcomes into
attributes, without OpenTelemetry.

A call and its spans belong to one thread. `RequestTrace.lock` guards what several calls of one request add up. A span
is written on only if it records. What may not happen here: a trace changes no decision, and a call without a span
around it makes no Python-level call for tracing.
"""
