"""NTLM, Negotiate and Kerberos authenticate a connection: it serves the same callers as under stock, and no other."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme
import urllib3
from requests.adapters import HTTPAdapter

import headrace
from headrace.transport.connection_auth import authenticates_connection
from support.connection_auth import Authenticating, NtlmLike
from support.faultserver import server_context
from support.governed import running
from support.waiting import wait_until


@pytest.fixture
def server() -> Iterator[Authenticating]:
    with Authenticating() as server:
        yield server


@pytest.fixture
def hr(tmp_path: Path, server: Authenticating) -> Iterator[headrace.Headrace]:
    with running(tmp_path, _file(server)) as hr:
        yield hr


def _file(server: Authenticating, keys: str = "") -> str:
    return f"version: 1\ninstall: {{urllib3: true}}\nupstreams: {{u: {{base_url: '{server.url}'{keys}}}}}\n"


def user(answer: Any) -> str:
    """The user that the server took us for; "-" for none."""
    status = answer.status_code if isinstance(answer, requests.Response) else answer.status
    text = answer.text if isinstance(answer, requests.Response) else answer.data.decode()
    return "-" if status == 401 else text


def pool(hr: headrace.Headrace) -> dict[str, Any]:
    found: dict[str, Any] = hr.status()["upstreams"]["u"]["pool"]
    return found


def with_ntlm(name: str, *, retries: int = 0) -> requests.Session:
    session = requests.Session()
    session.auth = NtlmLike(name)
    session.mount("http://", HTTPAdapter(max_retries=retries))
    return session


SCRIPTS: dict[str, Callable[[str], list[str]]] = {}


def script(act: Callable[[str], list[str]]) -> Callable[[str], list[str]]:
    SCRIPTS[act.__name__] = act
    return act


@script
def nobody_after_alice(url: str) -> list[str]:
    with with_ntlm("alice") as alice:
        first = user(alice.get(url))
        return [first, user(requests.get(url)), user(alice.get(url))]


@script
def alice_and_bob_in_turn(url: str) -> list[str]:
    with with_ntlm("alice") as alice, with_ntlm("bob") as bob, requests.Session() as nobody:
        return [user(one.get(url)) for one in (alice, bob, nobody) * 3]


@script
def without_credentials_in_the_same_session(url: str) -> list[str]:
    with with_ntlm("alice") as alice:
        answers = [user(alice.get(url))]
        alice.auth = None
        return [*answers, user(alice.get(url))]


@script
def own_credentials_of_another_kind(url: str) -> list[str]:
    with with_ntlm("alice") as alice, requests.Session() as carol:
        first = user(alice.get(url))
        carol.headers["Authorization"] = "Bearer carol"
        return [first, user(carol.get(url)), user(alice.get(url))]


@script
def kerberos_without_being_asked(url: str) -> list[str]:
    with requests.Session() as alice, requests.Session() as bob:
        first = user(alice.get(url, headers={"authorization": "negotiate alice"}))
        return [first, user(bob.get(url)), user(alice.get(url))]


@script
def a_header_of_bytes(url: str) -> list[str]:
    with requests.Session() as alice, requests.Session() as bob:
        first = user(alice.get(url, headers={"Authorization": b"KERBEROS alice"}))
        return [first, user(bob.get(url)), user(alice.get(url))]


@script
def the_header_of_a_proxy(url: str) -> list[str]:
    with requests.Session() as alice, requests.Session() as bob:
        first = user(alice.get(url, headers={"Proxy-Authorization": "Negotiate alice"}))
        return [first, user(bob.get(url)), user(alice.get(url))]


@script
def own_retries(url: str) -> list[str]:
    with with_ntlm("alice", retries=2) as alice, with_ntlm("bob", retries=2) as bob:
        first = [user(alice.get(url)), user(bob.get(url))]
        return [*first, user(requests.get(url)), user(alice.get(url)), user(bob.get(url))]


@script
def streamed(url: str) -> list[str]:
    with with_ntlm("alice") as alice, with_ntlm("bob") as bob:
        with alice.get(url, stream=True) as first, bob.get(url, stream=True) as second:
            read = [user(first), user(second)]
        return [*read, user(requests.get(url)), user(alice.get(url)), user(bob.get(url))]


@script
def pool_managers(url: str) -> list[str]:
    with urllib3.PoolManager() as alice, urllib3.PoolManager() as bob:
        first = user(alice.request("GET", url, headers={"Authorization": "Negotiate alice"}))
        return [first, user(bob.request("GET", url)), user(alice.request("GET", url))]


@script
def a_pool_whose_manager_has_gone(url: str) -> list[str]:
    alice = urllib3.PoolManager().connection_from_url(url)
    bob = urllib3.PoolManager().connection_from_url(url)
    first = user(alice.request("GET", "/", headers={"Authorization": "Negotiate alice"}))
    gc.collect()
    return [first, user(bob.request("GET", "/")), user(alice.request("GET", "/"))]


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_caller_gets_the_answers_that_stock_would_give(
    name: str, tmp_path: Path, server: Authenticating
) -> None:
    """failures.md 54."""
    stock = SCRIPTS[name](server.url)
    handshakes = len(server.handshakes)
    with running(tmp_path, _file(server)):
        governed = SCRIPTS[name](server.url)

    assert governed == stock
    assert len(server.handshakes) == 2 * handshakes, "not the handshakes of stock"


def test_over_tls_too(tmp_path: Path) -> None:
    """failures.md 54."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with (
        Authenticating(tls=server_context(ca, "127.0.0.1")) as server,
        running(tmp_path, _file(server, f", tls: {{ca: '{tmp_path}/ca.pem'}}")) as hr,
        hr.session() as alice,
        hr.session() as bob,
    ):
        alice.auth = NtlmLike("alice")
        assert [user(one.get(server.url)) for one in (alice, bob, alice)] == ["alice", "-", "alice"]
        assert server.handshakes == ["alice"]


def test_sessions_of_headrace_each_have_their_own(hr: headrace.Headrace, server: Authenticating) -> None:
    """failures.md 54."""
    with hr.session() as alice, hr.session() as bob, hr.session() as nobody:
        alice.auth, bob.auth = NtlmLike("alice"), NtlmLike("bob")
        answers = [user(one.get(server.url)) for one in (alice, bob, nobody) * 2]
    assert answers == ["alice", "bob", "-"] * 2
    assert server.handshakes == ["alice", "bob"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_by_name_authenticates_for_itself_alone(
    stream: bool, hr: headrace.Headrace, server: Authenticating
) -> None:
    """failures.md 54. All callers of a handle share one adapter."""
    handle = hr.upstream("u")
    assert user(handle.get("/", auth=NtlmLike("alice"), stream=stream)) == "alice"
    assert user(handle.get("/")) == "-"
    assert user(handle.get("/", auth=NtlmLike("bob"), stream=stream)) == "bob"
    assert user(handle.urlopen("GET", "/", headers={"Authorization": "Negotiate carol"})) == "carol"
    assert user(handle.urlopen("GET", "/")) == "-"
    wait_until(lambda: pool(hr)["inuse"] == 0)
    assert pool(hr)["closed"] == {"surplus": 3}


@pytest.mark.parametrize("mode", ["observe", "off"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_by_name_that_is_not_governed_authenticates_for_itself_alone_too(
    mode: str, stream: bool, tmp_path: Path, server: Authenticating
) -> None:
    """failures.md 54. The plain connections of a handle are shared by all its callers as well."""
    with running(tmp_path, _file(server, f", mode: {mode}")) as hr:
        handle = hr.upstream("u")
        for _ in range(2):
            assert user(handle.get("/", auth=NtlmLike("alice"), stream=stream)) == "alice"
            assert user(handle.get("/")) == "-"
            assert user(handle.urlopen("GET", "/", headers={"authorization": "Negotiate carol"})) == "carol"
            assert user(handle.urlopen("GET", "/")) == "-"


def test_the_third_message_meets_the_connection_of_the_second_during_the_calls_of_others(
    hr: headrace.Headrace, server: Authenticating
) -> None:
    """failures.md 54."""
    over = threading.Event()

    def bystander() -> int:
        calls = 0
        with requests.Session() as session:
            while not over.is_set():
                assert user(session.get(server.url)) == "-"
                calls += 1
        return calls

    def one(number: int) -> list[str]:
        return [user(hr.upstream("u").get("/", auth=NtlmLike(f"user{number}"))) for _ in range(10)]

    with ThreadPoolExecutor(8) as crowd:
        bystanders = [crowd.submit(bystander) for _ in range(3)]
        answers = list(crowd.map(one, range(4)))
        over.set()
        assert all(one.result(10) for one in bystanders)
    assert answers == [[f"user{number}"] * 10 for number in range(4)]
    assert len(server.handshakes) == 40


def test_an_authenticated_connection_is_closed_when_its_session_has_gone(
    hr: headrace.Headrace, server: Authenticating
) -> None:
    """failures.md 54."""
    alice = with_ntlm("alice")
    assert user(alice.get(server.url)) == "alice"
    assert pool(hr)["idle"] == 1
    alice.auth = None
    del alice
    gc.collect()
    assert (pool(hr)["idle"], pool(hr)["closed"]) == (0, {"surplus": 1})


def test_other_callers_are_served_when_the_pool_is_full_of_authenticated_connections(
    tmp_path: Path, server: Authenticating
) -> None:
    """failures.md 54."""
    with running(tmp_path, _file(server, ", pool: {max_connections: 2}")) as hr:
        sessions = [with_ntlm(f"user{number}") for number in range(4)]
        for _ in range(2):
            assert [user(one.get(server.url)) for one in sessions] == [f"user{n}" for n in range(4)]
            assert user(requests.get(server.url)) == "-"
        assert pool(hr)["idle"] <= 2


def test_credentials_for_one_request_leave_the_connection_to_everybody(
    hr: headrace.Headrace, server: Authenticating
) -> None:
    for number, scheme in enumerate(("Bearer", "Basic", "bearer")):
        name = f"user{number}"
        answer = requests.get(server.url, headers={"Authorization": f"{scheme} {name}"})
        assert user(answer) == name
    assert server.connections == 1
    assert pool(hr)["closed"] == {}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("Authorization: NTLM TlRMTVNTUAAB", True),
        ("authorization:Negotiate", True),
        ("AUTHORIZATION: \tkerberos YII", True),
        ("Proxy-Authorization: Negotiate YII", True),
        ("Authorization: Basic bnRsbQ==", False),
        ("Authorization: NTLMv9 x", False),
        ("Authorization: Bearer ntlm", False),
        ("X-Authorization: NTLM x", False),
        ("X-Note: authorization: ntlm x", False),
    ],
)
def test_which_requests_authenticate_their_connection(line: str, says: bool) -> None:
    head = f"GET /authorization:ntlm HTTP/1.1\r\nHost: a\r\n{line}\r\nAccept: */*\r\n\r\n".encode()
    assert authenticates_connection(head.lower()) is says


def test_a_body_that_speaks_of_ntlm_authenticates_nothing(
    hr: headrace.Headrace, server: Authenticating
) -> None:
    body = b"Authorization: NTLM hello\r\nAuthorization: Negotiate alice\r\n"
    assert user(requests.post(server.url, data=body)) == "-"
    assert (pool(hr)["idle"], server.connections) == (1, 1)
