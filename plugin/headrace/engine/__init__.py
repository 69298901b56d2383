"""The loop around one call."""
