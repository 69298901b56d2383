"""Files of others, read up to a limit and without ever waiting: a FIFO, a device or a huge file is no file of ours."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

MAX_TRUST_FILE_BYTES: Final = 8 << 20
"""As much is taken of a certificate, key or CA file: 60 times a public bundle."""

# O_NONBLOCK: without it, opening a FIFO that nobody writes to would hang the start. Windows has neither flag.
_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class ReadingError(Exception):
    """A file that cannot be used. The text goes on from "which …" and holds nothing of the file's content."""


def read_bounded(path: str, limit_bytes: int) -> bytes:
    """The content of the regular file *path*, at most *limit_bytes*. No more than that is read. Blocks for the disk.

    Raises:
        ReadingError: Missing, unreadable, not a regular file, or longer.
    """
    try:
        descriptor = os.open(path, _FLAGS)
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            os.close(descriptor)
            raise ReadingError("is a directory" if stat.S_ISDIR(mode) else "is not a regular file")
        with open(descriptor, "rb") as file:
            content = file.read(limit_bytes + 1)
    except (OSError, ValueError) as error:
        raise ReadingError(_reason(error, path)) from error
    if len(content) > limit_bytes:
        unit = f"{limit_bytes >> 20} MiB" if limit_bytes >= 1 << 20 else f"{limit_bytes >> 10} KiB"
        raise ReadingError(f"is longer than {unit}")
    return content


def _reason(error: OSError | ValueError, path: str) -> str:
    code = getattr(error, "errno", None)
    if code in (errno.ENOENT, errno.ENOTDIR):
        return f"does not exist (looked for {path})"
    if code in (errno.EACCES, errno.EPERM):
        return "may not be read by this user"
    return f"cannot be read ({os.strerror(code) if code else 'not a path'})"
