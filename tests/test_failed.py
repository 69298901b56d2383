"""A test that fails costs the next one nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = """
import gc
import urllib3
from support.faultserver import Answer, FaultServer

def test_that_fails():
    with FaultServer() as server:
        answer = urllib3.request("GET", server.url, preload_content=False)
        try:
            assert answer.status == 500
        except AssertionError as error:
            error.itself = error  # so that it is the collector's
            raise ValueError from error

def test_after_it():
    gc.collect()
"""


def test_what_a_failed_test_leaves_unread_is_no_warning_in_the_next(tmp_path: Path) -> None:
    (tmp_path / "test_two.py").write_text(TESTS)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-W",
            "error",
            "-p",
            "support.failed",
            "-p",
            "no:cacheprovider",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert re.search(r"^1 failed, 1 passed in", done.stdout, re.MULTILINE), done.stdout + done.stderr
