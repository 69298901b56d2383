"""Calls through urllib3: the surface, the patch, the pools that a manager hands out, and callers that retry."""
