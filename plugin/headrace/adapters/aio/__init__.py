"""Calls by name that are awaited: what `engine.aio` asks of whoever sends, and what their callers get."""
