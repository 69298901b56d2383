"""Where and with what it was measured: without that a figure means little."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
_NAMED = ("urllib3", "requests", "prometheus-client", "pydantic", "httptools")
_PEERS = ("httpx2", "aiohttp", "pycurl", "pyreqwest", "tenacity", "pybreaker", "circuitbreaker", "aiobreaker")


def machine() -> dict[str, Any]:
    """Processor, cores, kernel, Python and how busy it was at the beginning."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "compiler": platform.python_compiler(),
        "load_before": round(os.getloadavg()[0], 1),
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def versions(nginx: str, niquests: str | None) -> dict[str, str]:
    """Of everything that takes part and is installed."""
    found = {}
    for name in (*_NAMED, *_PEERS, "purgatory", "interlock-cb", "starlette"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if niquests is not None:
        program = "from importlib.metadata import version; print(version('niquests'))"
        done = subprocess.run([niquests, "-c", program], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            found["niquests"] = done.stdout.strip()
    told = subprocess.run([nginx, "-v"], capture_output=True, text=True, check=False).stderr
    found["nginx"] = told.strip().rpartition("/")[2]
    return found


def commit() -> dict[str, Any]:
    """What was checked out, and whether it had been changed since; outside of a checkout, nothing."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
            )
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    name = git("rev-parse", "--short=12", "HEAD")
    return {
        "commit": name,
        "is_changed": bool(
            git("status", "--porcelain", "--untracked-files=no", "--", "plugin", ":!plugin/headrace/docs")
        )
        if name
        else None,
        "measured_on": time.strftime("%Y-%m-%d"),
        "command": " ".join(["tests/bench/run", *_shown(sys.argv[1:])]),
    }


def _shown(arguments: list[str]) -> list[str]:
    """The options that a person gave; those with paths are the script's own."""
    own = ("--nginx", "--niquests", "--left-out")
    shown = []
    at = 0
    while at < len(arguments):
        if arguments[at] in own:
            at += 2
        else:
            shown.append(arguments[at])
            at += 1
    return shown
