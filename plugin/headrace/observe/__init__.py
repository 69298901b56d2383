"""What headrace shows of itself: log events, metrics, status and traces.

Three kinds of things flow out, each by a way of its own.

- **Events** are rare facts. The code that notices one makes an object of `events` and gives it to `logs.emit`.
- **Metrics and status** come from one source. `runtime.readings` makes a `readings.Reading` at a look. `status`
  makes plain data of it. `families` and `samples` make values of it, which `metrics` or `multiprocess` show.
- **Traces** are told while a call runs, by `tracing`, and only where the configuration asks for it.

What may not happen here: a call makes no object of prometheus and renders no log line on its way to success. Nothing
here decides about a call. An error in a log handler of the application is no concern of a call. Loops over many
elements go by `isolation`, so that one broken element costs the others nothing. `emit` is never called under a lock.
Only these modules import prometheus_client, structlog and opentelemetry (an import contract).
"""
