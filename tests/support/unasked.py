"""Many calls over many connections to a server that sends an unasked answer after every tenth."""

from __future__ import annotations

import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import requests

from support.governed import running
from support.talker import Asked, Line, Talker

EVERY = 10


@dataclass
class Told:
    """What came of it; `foreign` are calls that got an answer to something else."""

    calls: int = 0
    unasked: int = 0
    foreign: int = 0
    closed: dict[str, int] = field(default_factory=dict)


def _answer(target: str) -> bytes:
    body = target.encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def storm(folder: Path, *, threads: int, rounds: int, tls: ssl.SSLContext | None, keys: str = "") -> Told:
    """*threads* × *rounds* calls, each thread one a round, half of them through requests.

    The server answers a round when all of it has come, so that every call has a connection to itself, and the
    next round begins when what follows every tenth answer is out: half of that in one piece with the answer, half
    a moment later. Code that uses such a connection again then has had the means to see it.
    """
    told = Told(calls=threads * rounds)
    answered = threading.Barrier(threads)
    over = threading.Barrier(2 * threads)  # the callers and the server's threads
    counted = threading.Lock()
    count = 0

    def say(line: Line, asked: Asked) -> None:
        nonlocal count
        with counted:
            count += 1
            nth = count
        answered.wait(30)
        if nth % EVERY:
            line.send(_answer(asked.target))
        elif nth % (2 * EVERY):
            line.send(_answer(asked.target) + _answer("/nobody"))
        else:
            line.send(_answer(asked.target))
            line.send(_answer("/nobody"))
        over.wait(30)

    def caller(number: int) -> int:
        foreign = 0
        with requests.Session() as session:
            for turn in range(rounds):
                target = f"/{number}/{turn}"
                if number % 2:
                    got = session.get(server.url + target).content
                else:
                    got = hr.upstream("u").urlopen("GET", target).data
                foreign += got != target.encode()
                over.wait(30)
        return foreign

    with (
        Talker(say, tls=tls) as server,
        running(folder, f"version: 1\nupstreams: {{u: {{base_url: '{server.url}'{keys}}}}}\n") as hr,
    ):
        with ThreadPoolExecutor(threads) as crowd:
            told.foreign = sum(crowd.map(caller, range(threads)))
        told.closed = dict(hr.status()["upstreams"]["u"]["pool"]["closed"])
    told.unasked = told.calls // EVERY
    return told
