"""The circuit breaker: its states, windows, trip rules and permits. Pure."""
