"""Calls through requests: the surface, the patch, and adapters that retry by themselves."""
