"""`python -m sample_app`: the playground, or the story with --check or without a terminal."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from http.client import HTTPException
from pathlib import Path
from types import FrameType

from sample_app.playground import play
from sample_app.stage import FORMS
from sample_app.story import StoryFailed, tell

STORY_S = 240
"""The story is given up after this; it takes about 15 s a form."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="sample_app/run", description=__doc__)
    parser.add_argument("--check", action="store_true", help="run the story unattended; exit 0 or 1")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)  # as an exception, so that every child is taken down
    signal.signal(signal.SIGHUP, _stop)
    # Settings of headrace in the caller's environment would be another story than the one told.
    for name in [name for name in os.environ if name.startswith("HEADRACE_")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="headrace-sample-") as directory:
        if arguments.check or not sys.stdout.isatty():
            return _check(Path(directory))
        try:
            play(Path(directory))
        except KeyboardInterrupt:
            print("\nended; every process is stopped.")
        return 0


def _check(directory: Path) -> int:
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(STORY_S)
    began = time.monotonic()
    try:
        for number, form in enumerate(FORMS):
            room = directory / str(number)
            room.mkdir()
            tell(form, room)
    except (StoryFailed, OSError, HTTPException, RuntimeError, ValueError) as error:
        print(f"\nsample app: FAILED: {error}")
        return 1
    signal.alarm(0)
    print(f"\nsample app: all claims held for both forms, {time.monotonic() - began:.0f} s")
    return 0


def _stop(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _give_up(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError(f"the story did not end within {STORY_S} s")


if __name__ == "__main__":
    sys.exit(main())
