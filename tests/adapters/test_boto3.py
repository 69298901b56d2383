"""boto3 against a server that answers as S3 does: its calls are governed over its own connection class."""

from __future__ import annotations

import gc
import io
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.awsrequest
import botocore.exceptions
import pytest
import trustme
from botocore.config import Config
from urllib3 import PoolManager
from urllib3.exceptions import InsecureRequestWarning

import headrace
from headrace.transport.stock.own_class import governed_over
from support.faultserver import Answer, Break, FaultServer, server_context
from support.governed import rules, running

ON = "install: {urllib3: true}\n"
FAST = "    retry: {max_attempts: 4, methods: [GET, PUT], backoff: {base: 1ms, throttled: 1ms, max: 2ms}}\n"
CLOSED = "    circuit_breaker: {mode: disabled}\n"
OBJECT = Answer(200, (("ETag", '"5d41402a"'),), b"object")
STORED = Answer(200, (("ETag", '"5d41402a"'),), b"")
FAILED = Answer(503, body=b"")


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        server.always(OBJECT)
        yield server


def client(
    url: str, *, tries: int = 1, verify: str | bool | None = None, client_cert: str | None = None
) -> Any:
    """An S3 client that makes so many tries itself."""
    settings = Config(
        retries={"total_max_attempts": tries, "mode": "standard"},
        s3={"addressing_style": "path"},
        client_cert=client_cert,
    )
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name="eu-central-1",
        aws_access_key_id="id",
        aws_secret_access_key="secret",
        verify=verify,
        config=settings,
    )


@pytest.fixture
def s3(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client with no retries of its own, and no pauses where it has some."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *args: 0.0)
    made = client(server.url)
    yield made
    made.close()


def put(s3: Any, body: Any = b"object") -> None:
    s3.put_object(Bucket="bucket", Key="key", Body=body)


def get(s3: Any) -> bytes:
    body: bytes = s3.get_object(Bucket="bucket", Key="key")["Body"].read()
    return body


def test_an_object_is_put_and_got_under_the_rules(tmp_path: Path, server: FaultServer, s3: Any) -> None:
    server.next(STORED)
    with running(tmp_path, rules(server.url, more=ON)) as hr:
        put(s3, io.BytesIO(b"object"))
        assert get(s3) == b"object"

        stored, _ = server.requests
        assert (stored.method, stored.header("Expect"), stored.body) == ("PUT", "100-continue", b"object")
        assert len(stored.header("X-Request-ID") or "") == 32
        status = hr.status()
        assert status["upstreams"]["billing"]["requests"] == {"2xx": 2}
        assert (status["ungoverned"], server.connections) == ({}, 1)


@pytest.mark.parametrize("tries", [1, 3])
def test_its_own_tries_are_all_that_are_made(
    tmp_path: Path, server: FaultServer, s3: Any, tries: int
) -> None:
    """failures.md 12: where an SDK is configured to make one try, one is made."""
    s3 = client(server.url, tries=tries)
    with running(tmp_path, rules(server.url, FAST + CLOSED, more=ON)) as hr:
        server.always(FAILED)
        for _ in range(2):
            with pytest.raises(botocore.exceptions.ClientError, match="503"):
                put(s3, io.BytesIO(b"object"))
            with pytest.raises(botocore.exceptions.ClientError, match="503"):
                get(s3)
        server.always(Break("request"))
        with pytest.raises(botocore.exceptions.ConnectionClosedError):
            get(s3)
        assert len(server.requests) == tries * 5 + 1  # a connection that had been idle: sent again, as ever
        assert {one.body for one in server.requests} == {b"object", b""}
        status = hr.status()["upstreams"]["billing"]
        assert status["retry"]["delegated"] == tries * 5
        assert sum(status["attempts"].values()) == tries * 5
    s3.close()


def test_a_refusal_is_its_own_error_at_once_and_reaches_nobody(
    tmp_path: Path, server: FaultServer, s3: Any
) -> None:
    s3 = client(server.url, tries=5)
    text = rules(server.url, "    circuit_breaker: {mode: forced_open}\n", more=ON)
    with running(tmp_path, text), pytest.raises(botocore.exceptions.HTTPClientError) as caught:
        put(s3)
    assert isinstance(caught.value.kwargs["error"], headrace.CircuitOpenError)
    assert server.requests == []
    s3.close()


def test_an_answer_in_place_of_100_spares_the_body_and_ends_the_connection(
    tmp_path: Path, server: FaultServer, s3: Any
) -> None:
    server.on_expect = "answer"
    with running(tmp_path, rules(server.url, more=ON)) as hr:
        server.always(Answer(403, body=b""))
        for _ in range(2):
            with pytest.raises(botocore.exceptions.ClientError, match="403"):
                put(s3, io.BytesIO(b"object" * 100_000))
        assert [one.body for one in server.requests] == [b"", b""]
        assert server.connections == 2
        pool = hr.status()["upstreams"]["billing"]["pool"]
        assert (pool["inuse"], pool["idle"]) == (0, 0)


def test_a_deadline_holds_while_it_waits_for_100(tmp_path: Path, server: FaultServer, s3: Any) -> None:
    server.on_expect = "answer"
    server.always(Answer(200, delay_s=30.0))
    began = time.monotonic()
    with (
        running(
            tmp_path, rules(server.url, "    timeouts: {attempt: 200ms, deadline: 300ms}\n", more=ON)
        ) as hr,
        pytest.raises(botocore.exceptions.HTTPClientError),
    ):
        put(s3, io.BytesIO(b"object"))
    assert time.monotonic() - began < 20
    assert hr.status()["upstreams"]["billing"]["pool"]["inuse"] == 0


def test_no_caller_gets_a_connection_of_another_class_and_all_count_towards_one_size(
    tmp_path: Path, server: FaultServer, s3: Any
) -> None:
    with (
        running(tmp_path, rules(server.url, "    pool: {max_connections: 3}\n", more=ON)) as hr,
        PoolManager() as manager,
    ):
        for _ in range(2):
            assert manager.request("GET", server.url).headrace.upstream == "billing"
            get(s3)
        numbers = [one.connection for one in server.requests]
        assert numbers[:2] == numbers[2:] == [1, 2]
        other = client(server.url)
        get(other)
        assert server.requests[-1].connection == 3
        assert hr.status()["upstreams"]["billing"]["pool"]["idle"] == 3

        another = client(server.url)  # its connection makes room for itself
        get(another)
        pool = hr.status()["upstreams"]["billing"]["pool"]
        assert (pool["idle"], pool["inuse"]) == (3, 0)
        other.close()
        another.close()
        del other, another
        gc.collect()
        assert hr.status()["upstreams"]["billing"]["pool"]["idle"] < 3  # what was theirs is closed


def test_it_waits_its_turn_for_a_slot_and_gets_one_of_its_own(
    tmp_path: Path, server: FaultServer, s3: Any
) -> None:
    import threading

    with (
        running(tmp_path, rules(server.url, "    pool: {max_connections: 1}\n", more=ON)) as hr,
        PoolManager() as manager,
    ):
        held = manager.request("GET", server.url, preload_content=False)
        got: list[bytes] = []
        waiting = threading.Thread(target=lambda: got.append(get(s3)))
        waiting.start()
        ends_at = time.monotonic() + 20
        while not hr.status()["upstreams"]["billing"]["pool"]["waiting"]:
            assert time.monotonic() < ends_at
            time.sleep(0.01)
        held.read()
        waiting.join(20)
        assert got == [b"object"]
        assert [one.connection for one in server.requests] == [1, 2]


def test_a_reload_takes_its_connections_along(tmp_path: Path, server: FaultServer, s3: Any) -> None:
    with running(tmp_path, rules(server.url, more=ON)) as hr:
        get(s3)
        Path(hr.files[0]).write_text(rules(server.url, "    retry: {max_attempts: 2}\n", more=ON))
        assert hr.reload() == "applied"
        get(s3)
        assert server.connections == 1
        Path(hr.files[0]).write_text(rules(server.url, "    pool: {tcp_keepalive: {idle: 7s}}\n", more=ON))
        assert hr.reload() == "applied"
        get(s3)
        assert server.connections == 2  # as for all others: that key rebuilds the pool
        assert hr.status()["upstreams"]["billing"]["pool"]["idle"] == 1


def test_in_observe_mode_it_is_served_by_its_own_pool_and_observed(
    tmp_path: Path, server: FaultServer, s3: Any
) -> None:
    server.next(STORED)
    with running(tmp_path, rules(server.url, "    mode: observe\n", more=ON)) as hr:
        put(s3, io.BytesIO(b"object"))
        assert server.requests[0].body == b"object"
        assert sum(hr.status()["upstreams"]["billing"]["requests"].values()) == 1


OF_THE_RULE = {"verify": "ca.pem"}


@pytest.mark.parametrize(
    ("asked", "is_governed"),
    [
        pytest.param(OF_THE_RULE, True, id="the CA of the rule"),
        pytest.param({"verify": "copy.pem"}, True, id="a copy of it"),
        pytest.param({"verify": False}, False, id="no check"),
        pytest.param({"verify": "both.pem"}, False, id="another bundle"),
        pytest.param({**OF_THE_RULE, "client_cert": "client.pem"}, False, id="a client certificate"),
    ],
)
def test_over_https_it_is_governed_where_its_trust_is_the_rules(
    tmp_path: Path, asked: dict[str, Any], is_governed: bool
) -> None:
    """failures.md 55: where it is not, its own holds, and the call is counted."""
    authority, other = trustme.CA(), trustme.CA()
    ca = authority.cert_pem.bytes()
    authority.issue_cert("client").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "client.pem"))
    for name, content in {"ca": ca, "copy": ca, "both": ca + other.cert_pem.bytes()}.items():
        (tmp_path / f"{name}.pem").write_bytes(content)
    asked = {name: value and str(tmp_path / value) for name, value in asked.items()}
    with FaultServer(tls=server_context(authority)) as server:
        server.always(OBJECT)
        text = rules(server.url, f"    tls: {{ca: '{tmp_path / 'ca.pem'}'}}\n", more=ON)
        with running(tmp_path, text) as hr, warnings.catch_warnings():
            warnings.simplefilter("ignore", InsecureRequestWarning)
            s3 = client(server.url, **asked)
            for _ in range(2):
                assert get(s3) == b"object"
            s3.close()
            status = hr.status()
            assert status["ungoverned"] == ({} if is_governed else {"tls": 2})
            assert sum(status["upstreams"]["billing"]["requests"].values()) == 2 * is_governed
            if is_governed:
                server.next(STORED)
                put(client(server.url, **asked), io.BytesIO(b"object"))
                assert b"\r\nobject\r\n" in server.requests[-1].body  # chunked, with its checksum behind it


def test_over_https_a_peer_of_another_authority_is_refused(tmp_path: Path) -> None:
    authority = trustme.CA()
    ca = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(ca))
    with FaultServer(tls=server_context(authority)) as server:
        with running(tmp_path, rules(server.url, f"    tls: {{ca: '{ca}'}}\n", more=ON)) as hr:
            s3 = client(server.url, verify=str(ca))
            with pytest.raises(botocore.exceptions.SSLError, match="verify failed"):
                get(s3)
            s3.close()
            assert hr.status()["upstreams"]["billing"]["requests"] == {"certificate": 1}
        assert server.requests == []


def test_both_of_its_classes_are_made_once() -> None:
    for theirs in (botocore.awsrequest.AWSHTTPConnection, botocore.awsrequest.AWSHTTPSConnection):
        made = governed_over(theirs)
        assert made is not None
        assert made is governed_over(theirs)
        assert issubclass(made, theirs)
