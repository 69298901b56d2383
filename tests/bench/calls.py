"""Which Python functions of ours a happy governed call enters: the count is the same on every machine.

    python tests/bench/calls.py [--list]

Asked twice for each surface: on the way in, from where a caller's library hands the call over
(`HTTPAdapter.send`, `Handle.urlopen`) to the `send` of the socket, and for the whole of it. The connection
is kept, nothing is traced, nobody serves an inbound request. Prints a table; asserts nothing (the tests do).
"""

from __future__ import annotations

import argparse
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import requests
import urllib3
from prometheus_client import CollectorRegistry

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import headrace
from support.faultserver import FaultServer

_INLINED = ("<listcomp>", "<dictcomp>", "<setcomp>")
"""Frames of their own before Python 3.12 (PEP 709): not counted, so that the count is the same on each."""

_OURS = f"{Path(headrace.__file__).parent}/"


@dataclass(slots=True)
class Counted:
    """Python functions entered by one call.

    Attributes:
        ours: Qualified names of those of headrace, in order.
        to_socket: How many of *ours* were entered before the first byte left.
        all_to_socket, all: Every library's.
    """

    ours: list[str] = field(default_factory=list)
    to_socket: int = 0
    all_to_socket: int = 0
    all: int = 0


def counted(act: Callable[[], object], *, begins: str) -> Counted:
    """What one warm *act* enters, counted from the first function whose qualified name is *begins* on."""
    act()
    found = Counted()
    begun = sent = False

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal begun, sent
        if event == "call":
            code = frame.f_code
            begun = begun or code.co_qualname == begins
            if begun and code.co_name not in _INLINED:
                found.all += 1
                if code.co_filename.startswith(_OURS):
                    found.ours.append(code.co_qualname)
        elif event == "c_call" and begun and not sent:
            of = getattr(argument, "__self__", None)
            if isinstance(of, socket.socket) and getattr(argument, "__name__", "") in ("send", "sendall"):
                sent = True
                found.to_socket, found.all_to_socket = len(found.ours), found.all

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(before)
    return found


def least(act: Callable[[], object], *, begins: str, times: int = 5) -> Counted:
    """The least of *times*: now and then a call finds the deadline thread awake, or begins a second of the tallies."""
    found = []
    for _ in range(times):
        time.sleep(0.02)
        found.append(counted(act, begins=begins))
    return min(found, key=lambda one: (one.all, len(one.ours)))


class _Sending(requests.Session):
    """A session with a `send` of its own: its calls go through requests, and are governed below it."""

    def send(self, *args: Any, **kw: Any) -> requests.Response:
        return super().send(*args, **kw)


def happy_calls(url: str, hr: headrace.Headrace, name: str) -> dict[str, Counted]:
    """By surface, for the upstream *name* of *hr* (started) at *url*."""
    handle = hr.upstream(name)
    with _Sending() as session, hr.session() as ours:
        ours.trust_env = False  # what this machine's environment says is not the same on each
        return {
            "requests, from HTTPAdapter.send": least(
                lambda: session.get(f"{url}/a"), begins="RequestsPatch.__init__.<locals>.send"
            ),
            "hr.session()": least(lambda: ours.get(f"{url}/a"), begins="GovernedSession.request"),
            "Handle.get": least(lambda: handle.get("/a"), begins="Handle.get"),
            "Handle.urlopen": least(lambda: handle.urlopen("GET", "/a"), begins="Handle.urlopen"),
        }


def happy_calls_as_written(url: str) -> dict[str, Counted]:
    """The same of calls as most code has them, with a limit of their own, from their first line on.

    Both libraries must be governed.
    """
    with requests.Session() as session, urllib3.PoolManager(timeout=10) as manager:
        session.trust_env = False  # as above
        return {
            "Session.get": least(lambda: session.get(f"{url}/a"), begins="Session.get"),
            "Session.post(json=…)": least(
                lambda: session.post(f"{url}/a", json={"a": 1}), begins="Session.post"
            ),
            "requests.get": least(lambda: requests.get(f"{url}/a"), begins="get"),
            "Session.get(timeout=…)": least(
                lambda: session.get(f"{url}/a", timeout=(2, 10)), begins="Session.get"
            ),
            "PoolManager(timeout=…).request": least(
                lambda: manager.request("GET", f"{url}/a"), begins="RequestMethods.request"
            ),
            "PoolManager.request(json=…)": least(
                lambda: manager.request("POST", f"{url}/a", json={}), begins="RequestMethods.request"
            ),
            "urllib3.request": least(lambda: urllib3.request("GET", f"{url}/a"), begins="request"),
        }


def main() -> int:
    """Count and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--list", action="store_true", help="print the names as well")
    options = parser.parse_args()
    with FaultServer() as server, tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "upstreams.yaml")
        text = (
            f"version: 1\ninstall: {{urllib3: true}}\nupstreams: {{billing: {{base_url: '{server.url}'}}}}\n"
        )
        file.write_text(text)
        with headrace.Headrace(file, registry=CollectorRegistry()) as hr:
            found = happy_calls(server.url, hr, "billing") | happy_calls_as_written(server.url)
    print(f"{'':36}{'ours to the socket':>20}{'all':>6}{'ours, whole':>14}{'all':>6}")
    for surface, one in found.items():
        print(f"{surface:36}{one.to_socket:20}{one.all_to_socket:6}{len(one.ours):14}{one.all:6}")
        if options.list:
            print("    " + " · ".join(one.ours[: one.to_socket]))
            print("    then " + " · ".join(one.ours[one.to_socket :]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
