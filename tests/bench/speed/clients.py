"""The clients that headrace is measured beside, each set up once and used as its documentation has it.

A client is a context manager over a function that makes one call, and reads status and body as an application would.
Each imports its library when it is made: no environment has all of them.
"""

from __future__ import annotations

import asyncio
import functools
import http.client
import queue
import socket
import ssl
import threading
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from io import BytesIO

from table import Factory, Lab, Many, Work

Act = Callable[[], object]
LIMIT_S = 10.0
"""Each client gets a limit, as any application should give one."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked of nginx."""

    path: str = "/1k"
    method: str = "GET"
    body: bytes | None = None
    tls: bool = False
    connections: int = 1

    def url(self, lab: Lab) -> str:
        """The whole of it."""
        return (lab.https if self.tls else lab.http) + self.path


Client = Callable[[Lab, Ask], AbstractContextManager[Act]]


def asking(client: Client, ask: Ask) -> Factory:
    """One thread that makes one call after the other."""

    @contextmanager
    def make(lab: Lab) -> Iterator[Work]:
        with client(lab, ask) as act:
            yield act

    return make


def crowd(client: Client, ask: Ask, *, is_shared: bool = True) -> Factory:
    """As many threads as *ask* has connections, all calling; the client is one, or one for each thread."""

    @contextmanager
    def make(lab: Lab) -> Iterator[Work]:
        with ExitStack() as stack:
            number = ask.connections
            acts = [stack.enter_context(client(lab, ask)) for _ in range(1 if is_shared else number)]
            turns: queue.SimpleQueue[int] = queue.SimpleQueue()
            done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

            def work(act: Act) -> None:
                while share := turns.get():
                    try:
                        for _ in range(share):
                            act()
                    except BaseException as error:
                        done.put(error)
                    else:
                        done.put(None)

            threads = [threading.Thread(target=work, args=(acts[at % len(acts)],)) for at in range(number)]
            for thread in threads:
                thread.start()

            def run(wanted: int) -> None:
                for _ in range(number):
                    turns.put(max(1, wanted // number))
                for _ in range(number):
                    if (error := done.get()) is not None:
                        raise error

            try:
                yield Many(run, step=number)
            finally:
                for _ in threads:
                    turns.put(0)
                for thread in threads:
                    thread.join()

    return make


@contextmanager
def raw_socket(lab: Lab, ask: Ask) -> Iterator[Act]:
    """The floor: request and answer as bytes over a socket with a limit; nothing is parsed.

    All answers to one request are equally long, so the first tells how much is to be read.
    """
    host, port = ask.url(lab).split("/")[2].split(":")
    sock = socket.create_connection((host, int(port)), LIMIT_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if ask.tls:
        sock = ssl.create_default_context(cafile=lab.ca).wrap_socket(sock, server_hostname=host)
    head = f"{ask.method} {ask.path} HTTP/1.1\r\nHost: {host}:{port}\r\nAccept-Encoding: identity\r\n"
    body = ask.body or b""
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    request = f"{head}{length}\r\n".encode() + body
    answer_bytes, body_at = _measured(sock, request)
    buffer = memoryview(bytearray(answer_bytes))

    def small() -> bytes:
        sock.sendall(request)
        answer = sock.recv(65536)
        while len(answer) < answer_bytes:
            if not (more := sock.recv(65536)):
                raise ConnectionError("nginx has closed the connection")
            answer += more
        return answer

    def large() -> object:
        sock.sendall(request)
        got = 0
        while got < answer_bytes:
            if not (more := sock.recv_into(buffer[got:])):
                raise ConnectionError("nginx has closed the connection")
            got += more
        return buffer

    def gzipped() -> object:
        return zlib.decompress(small()[body_at:], 31)

    with sock:
        yield gzipped if ask.path == "/gzip" else large if answer_bytes > 65536 else small


def _measured(sock: socket.socket, request: bytes) -> tuple[int, int]:
    """Bytes of the whole answer, and where its body begins."""
    sock.sendall(request)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += sock.recv(65536)
    head, _, _ = answer.lower().partition(b"\r\n\r\n")
    assert head.startswith(b"http/1.1 200 "), head
    body_at = len(head) + 4
    if b"transfer-encoding: chunked" in head:
        while not answer.endswith(b"0\r\n\r\n"):
            answer += sock.recv(65536)
        return len(answer), body_at
    answer_bytes = body_at + int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    got = len(answer)
    while got < answer_bytes:
        got += len(sock.recv(65536))
    return answer_bytes, body_at


@contextmanager
def http_client(lab: Lab, ask: Ask) -> Iterator[Act]:
    """The standard library's."""
    connection = http.client.HTTPConnection(lab.http.removeprefix("http://"), timeout=LIMIT_S)

    def act() -> object:
        connection.request(ask.method, ask.path, ask.body)
        answer = connection.getresponse()
        return answer.status, answer.read()

    yield act
    connection.close()


@contextmanager
def pool_manager(lab: Lab, ask: Ask) -> Iterator[Act]:
    """urllib3, with a pool that blocks where several threads share it."""
    import urllib3

    settings = {"ca_certs": lab.ca} if ask.tls else {}
    url, method, body = ask.url(lab), ask.method, ask.body
    with urllib3.PoolManager(
        maxsize=ask.connections, block=ask.connections > 1, timeout=LIMIT_S, **settings
    ) as pools:

        def act() -> object:
            answer = pools.request(method, url, body=body)
            return answer.status, answer.data

        yield act


@contextmanager
def session(lab: Lab, ask: Ask) -> Iterator[Act]:
    """requests."""
    import requests

    url, method, body = ask.url(lab), ask.method, ask.body
    with requests.Session() as one:
        one.verify = lab.ca if ask.tls else True

        def act() -> object:
            answer = one.request(method, url, data=body, timeout=LIMIT_S)
            return answer.status_code, answer.content

        yield act


@contextmanager
def requests_get(lab: Lab, ask: Ask) -> Iterator[Act]:
    """What most code does: a session, and so a connection, per call."""
    import requests

    url = ask.url(lab)

    def act() -> object:
        answer = requests.get(url, timeout=LIMIT_S)
        return answer.status_code, answer.content

    yield act


@contextmanager
def niquests(lab: Lab, ask: Ask) -> Iterator[Act]:
    """A fork of requests over a fork of urllib3 that takes urllib3's place on the disk."""
    import niquests as library

    url = ask.url(lab)
    with library.Session() as one:

        def act() -> object:
            answer = one.get(url, timeout=LIMIT_S)
            return answer.status_code, answer.content

        yield act


@contextmanager
def httpx2(lab: Lab, ask: Ask) -> Iterator[Act]:
    """httpx' successor."""
    import httpx2 as library

    url, method, body = ask.url(lab), ask.method, ask.body
    with library.Client(timeout=LIMIT_S) as client:

        def act() -> object:
            answer = client.request(method, url, content=body)
            return answer.status_code, answer.content

        yield act


@contextmanager
def pyreqwest(lab: Lab, ask: Ask) -> Iterator[Act]:
    """Rust: reqwest over hyper."""
    from pyreqwest.client import SyncClientBuilder

    builder = SyncClientBuilder().timeout(timedelta(seconds=LIMIT_S)).gzip(True)
    if ask.tls:
        with open(lab.ca, "rb") as file:
            builder = builder.add_root_certificate_pem(file.read())
    url, body = ask.url(lab), ask.body
    with builder.build() as client:

        def get() -> object:
            answer = client.get(url).build().send()
            return answer.status, answer.bytes()

        def post() -> object:
            answer = client.post(url).body_bytes(body).build().send()
            return answer.status, answer.bytes()

        yield get if body is None else post


@contextmanager
def pycurl(lab: Lab, ask: Ask) -> Iterator[Act]:
    """C: libcurl."""
    import pycurl as library

    curl = library.Curl()
    curl.setopt(library.URL, ask.url(lab))
    curl.setopt(library.TIMEOUT, int(LIMIT_S))
    curl.setopt(library.NOSIGNAL, 1)
    if ask.tls:
        curl.setopt(library.CAINFO, lab.ca)
    if ask.body is not None:
        curl.setopt(library.POSTFIELDS, ask.body)

    def act() -> object:
        body = BytesIO()
        curl.setopt(library.WRITEDATA, body)
        curl.perform()
        return curl.getinfo(library.RESPONSE_CODE), body.getvalue()

    yield act
    curl.close()


@contextmanager
def aiohttp(lab: Lab, ask: Ask) -> Iterator[Work]:
    """On an event loop, one call after the other."""
    import aiohttp as library

    url = ask.url(lab)
    loop = asyncio.new_event_loop()

    async def opened() -> library.ClientSession:
        return library.ClientSession(timeout=library.ClientTimeout(total=LIMIT_S))

    client = loop.run_until_complete(opened())

    async def calls(turns: int) -> None:
        for _ in range(turns):
            async with client.get(url) as answer:
                await answer.read()

    yield Many(lambda turns: loop.run_until_complete(calls(turns)))
    loop.run_until_complete(client.close())
    loop.close()


def _glued(send: Callable[[dict[str, str]], int], failures: type[Exception]) -> Act:
    """What teams put together by hand: retries, a breaker, metrics and a request id around *send*."""
    import prometheus_client
    import pybreaker
    import tenacity

    registry = prometheus_client.CollectorRegistry()
    answered = prometheus_client.Counter("calls", "Calls.", ["upstream", "outcome"], registry=registry)
    took = prometheus_client.Histogram("took_seconds", "Time.", ["upstream"], registry=registry)
    circuit = pybreaker.CircuitBreaker(fail_max=5, reset_timeout=2)

    @tenacity.retry(
        stop=tenacity.stop_after_attempt(3) | tenacity.stop_after_delay(LIMIT_S),
        wait=tenacity.wait_random_exponential(multiplier=0.025, max=1),
        retry=tenacity.retry_if_exception_type(failures),
        reraise=True,
    )
    def act() -> object:
        with took.labels("billing").time():
            status = circuit.call(send, {"X-Request-ID": uuid.uuid4().hex})
        answered.labels("billing", f"{status // 100}xx").inc()
        return status

    return act


@contextmanager
def glue_urllib3(lab: Lab, ask: Ask) -> Iterator[Act]:
    """urllib3 with tenacity, pybreaker and prometheus_client."""
    import urllib3

    url = ask.url(lab)
    limit = urllib3.Timeout(connect=2.0, read=4.0)
    with urllib3.PoolManager() as pools:

        def send(headers: dict[str, str]) -> int:
            answer = pools.request("GET", url, headers=headers, retries=False, timeout=limit)
            assert answer.data
            return answer.status

        yield _glued(send, urllib3.exceptions.HTTPError)


@contextmanager
def glue_requests(lab: Lab, ask: Ask) -> Iterator[Act]:
    """requests with tenacity, pybreaker and prometheus_client."""
    import requests

    url = ask.url(lab)
    with requests.Session() as one:

        def send(headers: dict[str, str]) -> int:
            answer = one.get(url, headers=headers, timeout=(2.0, 4.0))
            assert answer.content
            return answer.status_code

        yield _glued(send, requests.RequestException)


GET, POST = Ask(), Ask(method="POST", body=b"x" * 1024)
"""Of 1 KiB; the answer to a POST is 1 KiB, too."""

get = functools.partial(asking, ask=GET)
post = functools.partial(asking, ask=POST)
