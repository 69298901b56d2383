"""The inbound request's id: which ids of callers are taken as they are.

An id is passed on and logged unchanged, whatever its format (Pitfall 45: peers throw
away what is not a UUID), so it must not be able to end a header line or a log line.
"""

from __future__ import annotations

import re

MAX_ID_BYTES = 200
"""Longer than any format in use (an AWS trace header has about 100), shorter than what would hurt a log."""

is_sane_bytes = re.compile(rb"[\x21-\x7e]{1,%d}" % MAX_ID_BYTES).fullmatch
"""Whether a raw header value is 1..200 visible ASCII characters: no space, control or non-ASCII byte.

A C callable on purpose, like `is_sane_text`: it runs once per request."""

is_sane_text = re.compile(rf"[\x21-\x7e]{{1,{MAX_ID_BYTES}}}").fullmatch
"""`is_sane_bytes` for WSGI's native strings."""
