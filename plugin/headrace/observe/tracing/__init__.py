"""What OpenTelemetry is told. `gate` alone knows whether it is there."""
