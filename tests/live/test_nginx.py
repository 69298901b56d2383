"""Against nginx, the server that most upstreams sit behind: its limits, its reloads, its tickets, its answers."""

from __future__ import annotations

import random
import select
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest
import requests
import trustme

import headrace
from support.faultserver import Answer, FaultServer
from support.governed import rules, running
from support.nginx import Nginx
from support.waiting import wait_until

T = TypeVar("T")


class MakeNginx(Protocol):
    def __call__(self, server: str, *, http: str = "", ca: Any = None) -> Nginx: ...


FAST = "    retry: {backoff: {base: 1ms, throttled: 1ms}}\n"
FINE = "location / { return 200 fine; }\n"


def pool_of(hr: headrace.Headrace) -> dict[str, object]:
    return hr.status()["upstreams"]["billing"]["pool"]  # type: ignore[no-any-return]


def outcomes(answer: requests.Response) -> list[str]:
    return [one.outcome for one in answer.headrace.attempts]  # type: ignore[attr-defined]


# --- How long nginx keeps a connection ------------------------------------------------------------------


def test_a_limit_of_requests_per_connection_costs_no_attempt(tmp_path: Path, nginx: MakeNginx) -> None:
    """nginx says `Connection: close` in the last answer that it will give on a connection."""
    server = nginx(FINE + "keepalive_requests 5;")
    with running(tmp_path, rules(server.url, FAST)) as hr:
        for number in range(50):
            send = requests.post if number % 2 else requests.get
            assert outcomes(send(server.url)) == ["2xx"]

        assert server.accepted == 10
        pool = pool_of(hr)
        assert pool["acquires"] == {"hit": 40, "miss": 10}
        assert (pool["idle"], pool["closed"]) == (0, {"dead": 10})
    server.wait_for(lambda: len(server.lines) == 50)
    assert max(line.nth for line in server.lines) == 5


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_connections_that_nginx_has_closed_are_all_skipped(
    tmp_path: Path, nginx: MakeNginx, method: str
) -> None:
    """failures.md 18: not only one of them. A POST is sent once although it met twenty dead connections."""
    server = nginx(FINE + "keepalive_timeout 100ms;")
    with running(tmp_path, rules(server.url, FAST)) as hr:
        answers = [requests.get(server.url, stream=True) for _ in range(20)]
        for answer in answers:
            assert answer.content == b"fine"
        assert pool_of(hr)["idle"] == 20
        sockets = [lease.conn.sock for lease in _idle(hr)]
        wait_until(lambda: len(select.select(sockets, [], [], 0)[0]) == 20, what="the FIN on all 20")

        answer = requests.request(method, server.url)

        (attempt,) = answer.headrace.attempts  # type: ignore[attr-defined]
        assert (attempt.outcome, attempt.resent) == ("2xx", False)
        assert pool_of(hr)["closed"] == {"dead": 20}
        assert server.accepted == 21


def test_calls_at_the_very_moment_of_nginx_closing_neither_fail_nor_repeat(
    tmp_path: Path, nginx: MakeNginx
) -> None:
    """Pauses around `keepalive_timeout`, so that requests cross the FIN. No GET fails, no POST arrives twice."""
    server = nginx(FINE + "keepalive_timeout 20ms;")
    body = FAST + "    circuit_breaker: {mode: disabled}\n"
    with running(tmp_path, rules(server.url, body)):

        def call(seed: int) -> list[str]:
            rng, posted = random.Random(seed), []
            with requests.Session() as session:
                for number in range(25):
                    time.sleep(rng.uniform(0.015, 0.025))
                    assert session.get(f"{server.url}/get").status_code == 200
                    time.sleep(rng.uniform(0.015, 0.025))
                    order = f"/order/{seed}-{number}"
                    if is_answered(session, f"{server.url}{order}"):
                        posted.append(order)
            return posted

        answered = {order for orders in in_threads(6, call) for order in orders}
    assert_sent_once(server, answered, at_least=15)  # of 150: on a busy machine many cross


def test_a_reload_of_nginx_fails_no_get_and_sends_no_post_twice(tmp_path: Path, nginx: MakeNginx) -> None:
    """Its old workers close their idle connections at once, under a dozen threads that use them.

    An old worker also leaves a request now and then without an answer, and the connection open, until its peer
    closes it: with nginx 1.22.1 and nothing but sockets, 25 of some 55,000 requests in 912 reloads.
    """
    server = nginx(FINE)
    body = FAST + "    timeouts: {attempt: 2s, deadline: 60s}\n    circuit_breaker: {mode: disabled}\n"
    with running(tmp_path, rules(server.url, body)) as hr:
        enough, all_posted = threading.Event(), []

        def call(seed: int) -> list[str]:
            rng, posted, number = random.Random(seed), [], 0
            with requests.Session() as session:
                while not enough.is_set():
                    number += 1
                    assert session.get(f"{server.url}/get").status_code == 200
                    order = f"/order/{seed}-{number}"
                    if is_answered(session, f"{server.url}{order}", or_left=True):
                        posted.append(order)
                        all_posted.append(order)
                    enough.wait(rng.uniform(0.0, 0.01))
            return posted

        with ThreadPoolExecutor(1) as side:
            reloads = side.submit(_reload_amid, all_posted, server, enough)
            answered = {order for orders in in_threads(12, call) for order in orders}
            reloads.result(60)
        assert pool_of(hr)["inuse"] == 0
    assert_sent_once(server, answered, at_least=100)


def test_after_a_restart_of_nginx_nothing_fails(tmp_path: Path, nginx: MakeNginx) -> None:
    server = nginx(FINE)
    with running(tmp_path, rules(server.url, FAST)) as hr:
        for send in (requests.post, requests.get):
            answers = [requests.get(server.url, stream=True) for _ in range(5)]
            for answer in answers:
                assert answer.content == b"fine"
            server.stop()
            server.start()

            assert outcomes(send(server.url)) == ["2xx"]
        assert hr.status()["upstreams"]["billing"]["retry"]["retries"] == {}


# --- TLS ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_warmed_tls_connections_with_a_ticket_to_read_do_not_look_dropped(
    tmp_path: Path, nginx: MakeNginx, method: str
) -> None:
    """failures.md 22: nginx sends two session tickets after the handshake, before any request."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    server = nginx(FINE, ca=ca)
    body = f"    tls: {{ca: '{tmp_path}/ca.pem'}}\n    pool: {{min_idle: 4}}\n"
    with running(tmp_path, rules(server.url, body)) as hr:
        wait_until(lambda: pool_of(hr)["idle"] == 4, what="four warm connections")
        sockets = [lease.conn.sock for lease in _idle(hr)]
        wait_until(lambda: len(select.select(sockets, [], [], 0)[0]) == 4, what="a ticket on each")

        together = threading.Barrier(4)

        def call(_: int) -> None:
            together.wait(60)
            for _ in range(5):
                answer = requests.request(method, server.url)
                (attempt,) = answer.headrace.attempts  # type: ignore[attr-defined]
                assert (attempt.outcome, attempt.resent, attempt.connect_s) == ("2xx", False, None)

        in_threads(4, call)
        assert pool_of(hr)["closed"] == {}
        assert pool_of(hr)["acquires"] == {"hit": 20}
    server.wait_for(lambda: len(server.lines) == 20)
    assert len({line.connection for line in server.lines}) <= 4


# --- What nginx answers ---------------------------------------------------------------------------------


def test_a_503_of_nginx_is_retried_over_the_same_connection(tmp_path: Path, nginx: MakeNginx) -> None:
    server = nginx('location / { add_header Retry-After 0 always; return 503 "busy"; }')
    with running(tmp_path, rules(server.url, "    retry: {max_attempts: 3}\n")) as hr:
        answer = requests.get(server.url)

        assert (answer.status_code, answer.text) == (503, "busy")
        assert outcomes(answer) == ["5xx"] * 3
        assert server.accepted == 1
        assert pool_of(hr)["acquires"] == {"hit": 2, "miss": 1}


def test_a_pool_within_nginxs_limit_of_connections_never_meets_it(tmp_path: Path, nginx: MakeNginx) -> None:
    """`limit_conn 2` answers 503 to the third request at once: a pool of two lets a dozen threads wait instead."""
    with FaultServer() as behind:
        behind.always(Answer(delay_s=0.02))
        server = nginx(
            f"limit_conn all 2;\nlocation / {{ proxy_pass {behind.url}; }}\n",
            http="limit_conn_zone $server_port zone=all:1m;",
        )
        once = "    retry: {max_attempts: 1}\n    circuit_breaker: {mode: disabled}\n"

        def statuses(folder: str, pool: str) -> Counter[int]:
            (tmp_path / folder).mkdir()
            body = f"{once}    timeouts: {{acquire: 30s, deadline: 60s}}\n    pool: {{{pool}}}\n"
            with running(tmp_path / folder, rules(server.url, body)):
                found = in_threads(12, lambda _: [requests.get(server.url).status_code for _ in range(3)])
            return Counter(status for each in found for status in each)

        assert statuses("within", "max_connections: 2") == {200: 36}
        assert statuses("beyond", "max_connections: 12")[503] > 0


def test_chunked_and_compressed_answers_are_whole_and_keep_their_connection(
    tmp_path: Path, nginx: MakeNginx
) -> None:
    text = "all rivers run into the sea " * 40
    with FaultServer() as behind:
        behind.always(Answer(body=text.encode(), chunked=True))
        server = nginx(
            "gzip on; gzip_types text/plain; gzip_min_length 1;\n"
            f'location /gzip {{ return 200 "{text}"; }}\n'
            f"location /chunked {{ proxy_pass {behind.url}; proxy_http_version 1.1; gzip off; }}\n"
        )
        with running(tmp_path, rules(server.url)) as hr:
            handle = hr.upstream("billing")
            for _ in range(3):
                for path, header in (("/gzip", "Content-Encoding"), ("/chunked", "Transfer-Encoding")):
                    answer = requests.get(server.url + path)
                    assert (answer.text, header in answer.headers) == (text, True)
                    with requests.get(server.url + path, stream=True) as streamed:
                        assert b"".join(streamed.iter_content(100)) == text.encode()
                    raw = handle.urlopen("GET", path, headers={"Accept-Encoding": "gzip"})
                    assert raw.data == text.encode()
                    assert requests.head(server.url + path).status_code == 200

            assert pool_of(hr)["acquires"] == {"hit": 23, "miss": 1}
            with requests.get(f"{server.url}/gzip", stream=True) as streamed:
                assert streamed.raw.read(10)  # and no more: the connection cannot be used again
            assert pool_of(hr)["closed"] == {"error": 1}
        assert server.accepted == 1


# --- Helpers --------------------------------------------------------------------------------------------


def in_threads(count: int, act: Callable[[int], T]) -> list[T]:
    """What *act(number)* answered in each of *count* threads. Blocks."""
    with ThreadPoolExecutor(count) as crowd:
        return [one.result(120) for one in [crowd.submit(act, number) for number in range(count)]]


def is_answered(session: requests.Session, url: str, *, or_left: bool = False) -> bool:
    """Whether a POST to *url* was; if not, the connection ended under it. Either way it was sent once.

    With *or_left* nginx may also have left it without an answer.
    """
    try:
        record = session.post(url).headrace  # type: ignore[attr-defined]
    except (requests.ConnectionError, requests.Timeout) as error:
        record = error.headrace  # type: ignore[attr-defined]
    # nginx logs no request that came to a closing connection: what it has not seen may have been sent all the same.
    (attempt,) = record.attempts
    ends = [("2xx", "success"), ("reset", "method"), *([("timeout", "method")] if or_left else [])]
    assert (attempt.outcome, record.reason) in ends, record
    assert not attempt.resent
    return attempt.outcome == "2xx"  # type: ignore[no-any-return]


def assert_sent_once(server: Nginx, answered: set[str], *, at_least: int) -> None:
    """Each POST that was answered reached nginx once, and no other more often than that."""
    assert len(answered) >= at_least

    def posted() -> Counter[str]:
        return Counter(line.target for line in server.lines if line.method == "POST")

    server.wait_for(lambda: answered <= posted().keys())
    assert {order: times for order, times in posted().items() if times > 1} == {}
    assert all(line.status == 200 for line in server.lines if line.method in ("GET", "POST"))


def _reload_amid(posted: list[str], server: Nginx, enough: threading.Event) -> None:
    """Reload four times, after every thirty of *posted*, and set *enough* when there are a hundred and fifty."""
    try:
        for number in range(1, 5):
            wait_until(lambda number=number: len(posted) >= 30 * number)  # type: ignore[misc]
            server.reload()
        wait_until(lambda: len(posted) >= 150)
    finally:
        enough.set()


def _idle(hr: headrace.Headrace) -> list[Any]:
    """The idle connections, looked at where the pool keeps them; nobody calls meanwhile."""
    leases = hr.snapshot.upstream("billing").endpoint.pool.leases
    leases.view()  # what was given back is put away
    return list(leases._idle)
