"""What an adapter or a manager has settled about its connections holds: its calls pass through, counted and said."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import pytest
import requests
import requests_mock
import responses
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.poolmanager import PoolManager

from headrace.adapters.own_connections import settled_by_adapter
from headrace.policy.retry import RetryAllowance
from headrace.runtime.inbound import Inbound, inbound_var
from headrace.transport.stock.own_class import governed_over
from support.faultserver import Answer, FaultServer
from support.governed import rules, running

ON = "install: {urllib3: true}\n"
ONLY = "install: {requests: false, urllib3: true}\n"
FAST = "    retry: {backoff: {base: 1ms, throttled: 1ms}}\n"
WRONG = "00" * 32


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


# Adapters as people write them


class Pin(HTTPAdapter):
    """The hook that requests 2.32 has for it."""

    def build_connection_pool_key_attributes(self, request, verify, cert=None):  # type: ignore[no-untyped-def]
        host, pool = super().build_connection_pool_key_attributes(request, verify, cert)
        return host, pool | {"assert_fingerprint": WRONG}


class PinByCertVerify(HTTPAdapter):
    def cert_verify(self, conn, url, verify, cert):  # type: ignore[no-untyped-def]
        super().cert_verify(conn, url, verify, cert)
        conn.assert_fingerprint = WRONG


class FingerprintAdapter(HTTPAdapter):
    """As requests_toolbelt has it."""

    def __init__(self, fingerprint: str = WRONG, **kw: Any) -> None:
        self.fingerprint = fingerprint
        super().__init__(**kw)

    def init_poolmanager(self, connections, maxsize, block=False, **kw):  # type: ignore[no-untyped-def]
        self.poolmanager = PoolManager(
            num_pools=connections, maxsize=maxsize, block=block, assert_fingerprint=self.fingerprint
        )


class PinByPool(HTTPAdapter):
    def get_connection_with_tls_context(self, *args, **kw):  # type: ignore[no-untyped-def]
        pool = super().get_connection_with_tls_context(*args, **kw)
        pool.assert_fingerprint = WRONG
        return pool


class PinnedPool(HTTPSConnectionPool):
    def __init__(self, *args: Any, **kw: Any) -> None:
        super().__init__(*args, **kw)
        self.assert_fingerprint = WRONG


class PinByPoolClass(HTTPAdapter):
    def init_poolmanager(self, *args, **kw):  # type: ignore[no-untyped-def]
        super().init_poolmanager(*args, **kw)
        self.poolmanager.pool_classes_by_scheme = {"http": HTTPConnectionPool, "https": PinnedPool}


class PinningManager(PoolManager):
    def _new_pool(self, *args, **kw):  # type: ignore[no-untyped-def]
        pool = super()._new_pool(*args, **kw)
        pool.assert_fingerprint = WRONG
        return pool


class PinByManagerClass(HTTPAdapter):
    def init_poolmanager(self, connections, maxsize, block=False, **kw):  # type: ignore[no-untyped-def]
        self.poolmanager = PinningManager(num_pools=connections, maxsize=maxsize, block=block, **kw)


class PinPerCall(HTTPAdapter):
    """As requests_toolbelt's HostHeaderSSLAdapter changes its settings from call to call."""

    def send(self, request, **kw):  # type: ignore[no-untyped-def]
        self.poolmanager.connection_pool_kw["assert_fingerprint"] = WRONG
        return super().send(request, **kw)


def pinned_on_the_instance() -> HTTPAdapter:
    adapter = HTTPAdapter()
    build = adapter.build_connection_pool_key_attributes

    def pinned(*args: Any, **kw: Any) -> Any:
        host, pool = build(*args, **kw)
        return host, pool | {"assert_fingerprint": WRONG}

    adapter.build_connection_pool_key_attributes = pinned  # type: ignore[method-assign]
    return adapter


def pinned_on_its_manager() -> HTTPAdapter:
    adapter = HTTPAdapter()
    make = adapter.poolmanager._new_pool

    def pinned(*args: Any, **kw: Any) -> Any:
        pool = make(*args, **kw)
        pool.assert_fingerprint = WRONG
        return pool

    adapter.poolmanager._new_pool = pinned  # type: ignore[method-assign]
    return adapter


PINS = [
    pytest.param(Pin, "adapter", id="build_connection_pool_key_attributes"),
    pytest.param(PinByCertVerify, "adapter", id="cert_verify"),
    pytest.param(FingerprintAdapter, "tls", id="init_poolmanager"),
    pytest.param(PinByPool, "adapter", id="get_connection_with_tls_context"),
    pytest.param(PinByPoolClass, "adapter", id="pool class"),
    pytest.param(PinByManagerClass, "adapter", id="manager class"),
    pytest.param(PinPerCall, "tls", id="settings changed in send"),
    pytest.param(pinned_on_the_instance, "adapter", id="on the instance"),
    pytest.param(pinned_on_its_manager, "adapter", id="on its manager"),
]


@pytest.mark.parametrize("more", [pytest.param("", id="requests"), pytest.param(ON, id="urllib3 on as well")])
@pytest.mark.parametrize("mode", ["enforce", "observe"])
@pytest.mark.parametrize(("pin", "reason"), PINS)
def test_a_pin_holds_wherever_an_adapter_has_it(
    tmp_path: Path,
    secure: FaultServer,
    ca: Path,
    caplog: pytest.LogCaptureFixture,
    pin: Callable[[], HTTPAdapter],
    reason: str,
    mode: str,
    more: str,
) -> None:
    """failures.md 55: the pin was dropped without a word, and the call answered 200 where stock refuses."""
    text = rules(secure.url, f"    mode: {mode}\n    tls: {{ca: '{ca}'}}\n", more=more)
    with running(tmp_path, text) as hr, requests.Session() as session:
        session.mount("https://", pin())
        for _ in range(2):
            with pytest.raises(requests.exceptions.SSLError, match="ingerprint"):
                session.get(secure.url, verify=str(ca))

        assert secure.requests == []
        assert hr.status()["ungoverned"] == {reason: 2}
        said = [one for one in caplog.records if getattr(one, "event", "") == "call.ungoverned"]
        assert [one.reason for one in said] == [reason]  # type: ignore[attr-defined]
        requests.get(secure.url, verify=str(ca))  # of all others nothing changes
        assert hr.status()["upstreams"]["billing"]["requests"] == {"2xx": 1}


@pytest.mark.parametrize(("pin", "reason"), PINS)
def test_a_pin_holds_on_the_urllib3_surface_alone(
    tmp_path: Path, secure: FaultServer, ca: Path, pin: Callable[[], HTTPAdapter], reason: str
) -> None:
    """failures.md 55: requests ungoverned, its pools governed."""
    with (
        running(tmp_path, rules(secure.url, f"    tls: {{ca: '{ca}'}}\n", more=ONLY)) as hr,
        requests.Session() as session,
    ):
        session.mount("https://", pin())
        with pytest.raises(requests.exceptions.SSLError, match="ingerprint"):
            session.get(secure.url, verify=str(ca))
        assert secure.requests == []
        assert sum(hr.status()["ungoverned"].values()) == 1


def test_a_pin_on_an_adapter_of_our_own_session_holds(tmp_path: Path, secure: FaultServer, ca: Path) -> None:
    """failures.md 55."""
    with running(tmp_path, rules(secure.url, f"    tls: {{ca: '{ca}'}}\n")) as hr, hr.session() as session:
        assert session.get(secure.url).headrace.upstream == "billing"
        adapter = session.get_adapter(secure.url)
        adapter.poolmanager.connection_pool_kw["assert_fingerprint"] = WRONG
        with pytest.raises(requests.exceptions.SSLError, match="ingerprint"):
            session.get(secure.url, verify=str(ca))
        assert hr.status()["ungoverned"] == {"tls": 1}


class SourceAddressAdapter(HTTPAdapter):
    def init_poolmanager(self, connections, maxsize, block=False, **kw):  # type: ignore[no-untyped-def]
        self.poolmanager = PoolManager(
            num_pools=connections, maxsize=maxsize, block=block, source_address=("127.0.0.2", 0)
        )

    def proxy_manager_for(self, *args, **kw):  # type: ignore[no-untyped-def]
        return super().proxy_manager_for(*args, **kw, source_address=("127.0.0.2", 0))


OPTIONS = [*HTTPConnection.default_socket_options, (socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)]


class SocketOptionsAdapter(HTTPAdapter):
    def init_poolmanager(self, *args, **kw):  # type: ignore[no-untyped-def]
        super().init_poolmanager(*args, **kw, socket_options=OPTIONS)


class OwnConnection(HTTPConnection):
    """Says another name, and dials as stock's."""


class OwnPool(HTTPConnectionPool):
    ConnectionCls = OwnConnection


class ElsewhereConnection(HTTPConnection):
    """Dials by itself, as those of SOCKS and of unix sockets do."""

    def _new_conn(self) -> socket.socket:
        return super()._new_conn()


class ElsewherePool(HTTPConnectionPool):
    ConnectionCls = ElsewhereConnection


class BusyPool(HTTPConnectionPool):
    """Does more than stock's pool."""

    def urlopen(self, *args, **kw):  # type: ignore[no-untyped-def]
        return super().urlopen(*args, **kw)


class OwnPoolAdapter(HTTPAdapter):
    def init_poolmanager(self, *args, **kw):  # type: ignore[no-untyped-def]
        super().init_poolmanager(*args, **kw)
        self.poolmanager.pool_classes_by_scheme = {"http": OwnPool}


class OtherAddress(HTTPAdapter):
    """Dials elsewhere than the URL says, as adapters for unix sockets and for fixed addresses do."""

    elsewhere = ""

    def get_connection_with_tls_context(self, request, verify, proxies=None, cert=None):  # type: ignore[no-untyped-def]
        return self.poolmanager.connection_from_url(self.elsewhere)


class OfRequests231(HTTPAdapter):
    def get_connection(self, url, proxies=None):  # type: ignore[no-untyped-def]
        raise AssertionError("requests 2.32.2 does not ask for it")


class OfRequests2320(HTTPAdapter):
    def _get_connection(self, request, verify, proxies=None, cert=None):  # type: ignore[no-untyped-def]
        raise AssertionError("requests 2.32.2 does not ask for it")


@pytest.mark.parametrize(
    "own", [SourceAddressAdapter, SocketOptionsAdapter, OwnPoolAdapter, OfRequests231, OfRequests2320]
)
def test_what_an_adapter_settles_about_dialling_is_left_to_it(
    tmp_path: Path, server: FaultServer, own: type[HTTPAdapter]
) -> None:
    """failures.md 55."""
    for more in ("", ON):
        with running(tmp_path, rules(server.url, more=more)) as hr, requests.Session() as session:
            session.mount("http://", own())
            assert not hasattr(session.get(server.url), "headrace")
            assert hr.status()["ungoverned"] == {"adapter": 1}


def test_an_adapter_that_dials_elsewhere_reaches_that(tmp_path: Path, server: FaultServer) -> None:
    """failures.md 55."""
    with FaultServer() as elsewhere, running(tmp_path, rules(server.url, more=ON)) as hr:
        adapter = OtherAddress()
        adapter.elsewhere = elsewhere.url
        with requests.Session() as session:
            session.mount("http://", adapter)
            session.get(server.url)
        assert (len(server.requests), len(elsewhere.requests)) == (0, 1)
        assert hr.status()["ungoverned"] == {"adapter": 1}


class Larger(HTTPAdapter):
    """Changes sizes only."""

    def init_poolmanager(self, connections, maxsize, block=False, **kw):  # type: ignore[no-untyped-def]
        super().init_poolmanager(50, 50, block=True, **kw)


class Harmless(HTTPAdapter):
    """Overrides all that does not choose a connection."""

    def __init__(self) -> None:
        super().__init__(pool_connections=3, pool_maxsize=3, pool_block=True)
        self.cache: dict[str, object] = {}

    def send(self, request, *args, **kw):  # type: ignore[no-untyped-def]
        return super().send(request, *args, **kw)

    def build_response(self, request, raw):  # type: ignore[no-untyped-def]
        response = super().build_response(request, raw)
        self.cache[request.url] = response
        return response

    def add_headers(self, request, **kw):  # type: ignore[no-untyped-def]
        request.headers["X-Added"] = "1"

    def request_url(self, request, proxies):  # type: ignore[no-untyped-def]
        return super().request_url(request, proxies)

    def proxy_manager_for(self, proxy, **kw):  # type: ignore[no-untyped-def]
        return super().proxy_manager_for(proxy, **kw)

    def close(self) -> None:
        super().close()


class Explicit(HTTPAdapter):
    """Says what stock does anyhow."""

    def init_poolmanager(self, connections, maxsize, block=False, **kw):  # type: ignore[no-untyped-def]
        self.poolmanager = PoolManager(
            num_pools=connections,
            maxsize=maxsize,
            block=block,
            source_address=None,
            socket_options=list(HTTPConnection.default_socket_options),
            blocksize=65536,
            timeout=3,
            retries=2,
        )


class ForTls(HTTPAdapter):
    """urllib3 takes no notice of TLS settings on http."""

    def init_poolmanager(self, *args, **kw):  # type: ignore[no-untyped-def]
        super().init_poolmanager(*args, **kw, ssl_context=ssl.create_default_context())


@pytest.mark.parametrize("more", [pytest.param("", id="requests"), pytest.param(ON, id="urllib3 on as well")])
@pytest.mark.parametrize("harmless", [HTTPAdapter, Larger, Harmless, Explicit, ForTls])
def test_an_adapter_whose_connections_are_stocks_stays_governed(
    tmp_path: Path, server: FaultServer, harmless: type[HTTPAdapter], more: str
) -> None:
    with running(tmp_path, rules(server.url, FAST, more=more)) as hr, requests.Session() as session:
        session.mount("http://", harmless())
        server.next(Answer(503))
        assert session.get(server.url).headrace.upstream == "billing"
        assert hr.status()["upstreams"]["billing"]["attempts"] == {"5xx": 1, "2xx": 1}
        assert hr.status()["ungoverned"] == {}


def test_an_adapter_is_looked_at_anew_when_it_changes(tmp_path: Path, server: FaultServer) -> None:
    """failures.md 55: whatever was true of it at its last call."""
    adapter = HTTPAdapter()
    with running(tmp_path, rules(server.url)) as hr, requests.Session() as session:
        session.mount("http://", adapter)

        def is_governed() -> bool:
            return hasattr(session.get(server.url), "headrace")

        assert is_governed()
        for change in (
            lambda: setattr(adapter, "poolmanager", PoolManager(source_address=("127.0.0.1", 0))),
            lambda: adapter.poolmanager.connection_pool_kw.update(source_address=("127.0.0.1", 0)),
            lambda: setattr(adapter, "cert_verify", lambda *args: None),
            lambda: setattr(adapter.poolmanager, "pool_classes_by_scheme", {"http": OwnPool}),
        ):
            change()
            assert not is_governed()
            vars(adapter).pop("cert_verify", None)
            adapter.poolmanager = PoolManager()
            assert is_governed()
        with mock.patch.object(HTTPAdapter, "cert_verify"):
            assert not is_governed()
        with mock.patch.object(HTTPConnectionPool, "ConnectionCls", OwnConnection):  # as vcrpy does
            assert not is_governed()
        assert is_governed()
        assert hr.status()["ungoverned"] == {"adapter": 6}


def test_mocks_that_replace_send_or_the_adapter_see_governed_calls(tmp_path: Path) -> None:
    with running(tmp_path, rules("http://billing.internal")) as hr:
        with responses.RequestsMock() as mocked:
            mocked.get("http://billing.internal/a", body="mocked")
            assert requests.get("http://billing.internal/a").text == "mocked"
            assert hr.upstream("billing").get("/a").headrace.upstream == "billing"
        with requests_mock.Mocker() as mocker:
            mocker.get("http://billing.internal/a", text="mocked")
            assert requests.get("http://billing.internal/a").text == "mocked"
        assert hr.status()["ungoverned"] == {}


def test_comparing_a_stock_adapter_with_stock_is_one_python_call(tmp_path: Path) -> None:
    import sys

    made = []
    adapter = Harmless()
    settled_by_adapter(adapter, "https")
    sys.setprofile(lambda frame, event, arg: made.append(frame.f_code.co_name) if event == "call" else None)
    try:
        settled_by_adapter(adapter, "https")
    finally:
        sys.setprofile(None)
    assert made == ["settled_by_adapter"]


# Managers of urllib3


class DiallingManager(PoolManager):
    def _new_pool(self, scheme, host, port, request_context=None):  # type: ignore[no-untyped-def]
        return super()._new_pool(
            scheme, host, port, {**(request_context or {}), "source_address": ("127.0.0.2", 0)}
        )


def with_own_keys() -> PoolManager:
    manager = PoolManager(source_address=("127.0.0.2", 0))
    manager.key_fn_by_scheme["http"] = lambda context: (context["host"], context["port"])  # type: ignore[assignment, return-value]
    return manager


def with_own_pools(kind: type[HTTPConnectionPool] = BusyPool) -> PoolManager:
    manager = PoolManager()
    manager.pool_classes_by_scheme = {"http": kind}
    return manager


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: PoolManager(source_address=("127.0.0.2", 0)), id="source address"),
        pytest.param(lambda: PoolManager(socket_options=OPTIONS), id="socket options"),
        pytest.param(DiallingManager, id="manager class"),
        pytest.param(with_own_keys, id="key function"),
    ],
)
def test_what_a_manager_settles_about_dialling_is_left_to_it(
    tmp_path: Path, server: FaultServer, caplog: pytest.LogCaptureFixture, make: Callable[[], PoolManager]
) -> None:
    """failures.md 55."""
    _is_left_to_it(tmp_path, server, caplog, make, "manager")


@pytest.mark.parametrize("kind", [BusyPool, ElsewherePool])
def test_pool_and_connection_classes_that_do_more_are_left_to_it(
    tmp_path: Path, server: FaultServer, caplog: pytest.LogCaptureFixture, kind: type[HTTPConnectionPool]
) -> None:
    """failures.md 55: boto3's managers were passed over in silence."""
    _is_left_to_it(tmp_path, server, caplog, lambda: with_own_pools(kind), "pool_class")


def _is_left_to_it(
    folder: Path,
    server: FaultServer,
    caplog: pytest.LogCaptureFixture,
    make: Callable[[], PoolManager],
    reason: str,
) -> None:
    with running(folder, rules(server.url, more=ON)) as hr, make() as manager:
        for _ in range(2):
            assert not hasattr(manager.request("GET", f"{server.url}/a"), "headrace")
        assert hr.status()["ungoverned"] == {reason: 2}
        said = [one for one in caplog.records if getattr(one, "event", "") == "call.ungoverned"]
        assert len(said) == 1
        with PoolManager() as stock:
            assert stock.request("GET", server.url).headrace.upstream == "billing"


def test_what_a_request_has_left_running_is_counted_by_the_file_in_force(
    tmp_path: Path, server: FaultServer
) -> None:
    with running(tmp_path, rules(server.url, more=ON)) as hr, with_own_pools() as manager:
        inbound = Inbound(hr, hr.snapshot, "id", RetryAllowance())
        token = inbound_var.set(inbound)
        try:
            manager.request("GET", server.url)
            assert hr.status()["ungoverned"] == {"pool_class": 1}
            Path(hr.files[0]).write_text(rules("http://elsewhere.internal", more=ON))
            assert hr.reload() == "applied"
            manager.request("GET", server.url)
            assert hr.status()["ungoverned"] == {"pool_class": 2}  # it keeps the file that it began with
            inbound.end()
            manager.request("GET", server.url)
            assert hr.status()["ungoverned"] == {"pool_class": 2}
        finally:
            inbound_var.reset(token)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: PoolManager(4, maxsize=7, block=True, timeout=3.0, blocksize=1024), id="sizes"),
        pytest.param(lambda: PoolManager(headers={"A": "b"}, retries=False), id="what a call may say"),
        pytest.param(
            lambda: PoolManager(socket_options=list(HTTPConnection.default_socket_options)),
            id="stock's options",
        ),
        pytest.param(lambda: PoolManager(ssl_context=ssl.create_default_context()), id="TLS, on http"),
    ],
)
def test_a_manager_whose_connections_are_stocks_stays_governed(
    tmp_path: Path, server: FaultServer, make: Callable[[], PoolManager]
) -> None:
    with running(tmp_path, rules(server.url, more=ON)) as hr, make() as manager:
        assert manager.request("GET", server.url).headrace.upstream == "billing"
        assert hr.status()["ungoverned"] == {}


class Talkative(HTTPConnection):
    """Adds to what ours do, by `super()`."""

    said: ClassVar[list[str]] = []

    def __init__(self, *args: Any, **kw: Any) -> None:
        self.said.append("made")
        super().__init__(*args, **kw)

    def send(self, data: Any) -> None:
        self.said.append("send")
        super().send(data)

    def close(self) -> None:
        self.said.append("close")
        super().close()


class PassingOver(HTTPConnection):
    """Names its base, so that it would pass over ours."""

    def send(self, data: Any) -> None:
        HTTPConnection.send(self, data)


class Sealed(HTTPConnection):
    """An answer class in the place of ours."""

    response_class = HTTPResponse


class TalkativePool(HTTPConnectionPool):
    ConnectionCls = Talkative


@pytest.mark.parametrize("kind", [OwnPool, TalkativePool])
def test_a_pool_class_with_another_connection_class_is_governed_over_that(
    tmp_path: Path, server: FaultServer, kind: type[HTTPConnectionPool]
) -> None:
    Talkative.said.clear()
    with running(tmp_path, rules(server.url, FAST, more=ON)) as hr, with_own_pools(kind) as manager:
        server.next(Answer(503))
        answer = manager.request("GET", server.url)  # it has not said how to retry: the rules decide
        assert [one.outcome for one in answer.headrace.attempts] == ["5xx", "2xx"]
        pool: Any = manager.connection_from_url(server.url)
        pool.ConnectionCls = OwnConnection  # and another one from here on
        assert pool.request("GET", "/").headrace.upstream == "billing"
        assert server.connections == 1 + (kind is TalkativePool)
        assert hr.status()["ungoverned"] == {}
    if kind is TalkativePool:
        # It may have been made once before, for a look at what it settles.
        assert "send" in Talkative.said[1:3]
        assert "close" in Talkative.said


@pytest.mark.parametrize(
    ("theirs", "is_sound"),
    [
        (OwnConnection, True),
        (Talkative, True),
        (ElsewhereConnection, False),
        (PassingOver, False),
        (Sealed, False),
    ],
)
def test_a_class_is_put_above_ours_only_where_all_of_ours_is_still_called(
    theirs: type[HTTPConnection], is_sound: bool
) -> None:
    assert (governed_over(theirs) is not None) is is_sound


def test_what_is_written_on_a_pool_handed_out_is_left_to_it(
    tmp_path: Path, server: FaultServer, secure: FaultServer, ca: Path
) -> None:
    """failures.md 55."""
    with running(tmp_path, rules(server.url, more=ON)) as hr, PoolManager() as manager:
        pool = manager.connection_from_url(server.url)
        assert hasattr(pool.request("GET", "/"), "headrace")
        pool.conn_kw["source_address"] = ("127.0.0.2", 0)
        assert not hasattr(pool.request("GET", "/"), "headrace")
        del pool.conn_kw["source_address"]
        pool.ConnectionCls = ElsewhereConnection  # type: ignore[misc]
        assert not hasattr(pool.request("GET", "/"), "headrace")
        assert hr.status()["ungoverned"] == {"manager": 1, "pool_class": 1}
    with running(tmp_path, rules(secure.url, f"    tls: {{ca: '{ca}'}}\n", more=ON)) as hr:
        with PoolManager(ca_certs=str(ca)) as manager:
            secured: Any = manager.connection_from_url(secure.url)
            secured.assert_fingerprint = WRONG
            with pytest.raises(urllib3.exceptions.MaxRetryError, match="ingerprint"):
                secured.request("GET", "/")
        assert hr.status()["ungoverned"] == {"tls": 1}


def test_a_nested_call_of_an_adapter_that_passes_through_is_governed(
    tmp_path: Path, server: FaultServer
) -> None:
    class Refreshing(SourceAddressAdapter):
        def add_headers(self, request, **kw):  # type: ignore[no-untyped-def]
            with PoolManager() as manager:
                request.headers["X-By"] = manager.request("GET", server.url).headrace.upstream

    with running(tmp_path, rules(server.url, more=ON)) as hr, requests.Session() as session:
        session.mount("http://", Refreshing())
        assert not hasattr(session.get(server.url), "headrace")
        assert [one.header("X-By") for one in server.requests] == [None, "billing"]
        assert hr.status()["ungoverned"] == {"adapter": 1}


# The path of a call through a pool


def test_what_stock_encodes_itself_is_no_way_past_the_rules(tmp_path: Path, server: FaultServer) -> None:
    """failures.md 57: a blank in the target slipped past, `forced_open` included."""
    prepared = requests.Request("GET", server.url).prepare()
    text = rules(f"{server.url}/v2", "    circuit_breaker: {mode: forced_open}\n", more=ON)
    with running(tmp_path, text) as hr, PoolManager() as manager, requests.Session() as session:
        pool = manager.connection_from_url(server.url)
        for target in ("/v2/a?q=x", "/v2/a?q=x y", "/v2/a b", "/v2/a\tb", "/v2/a\\b", "/v2/é", "/v2/<x>?\n"):
            with pytest.raises(urllib3.exceptions.HTTPError, match="circuit"):
                pool.request("GET", target)
            with pytest.raises(urllib3.exceptions.HTTPError, match="circuit"):
                manager.request("GET", server.url + target)
            prepared.url = server.url + target  # as it is not prepared: requests would have encoded it
            with pytest.raises(requests.ConnectionError, match="circuit"):
                session.send(prepared)
        assert hr.status()["unknown_hosts"] == []
    assert server.requests == []


@pytest.mark.parametrize(
    "path",
    ["/v2/..%2fadmin", "/v2/..\\admin", "/v2/..%5cadmin", "/..;/admin", "/v2/..;/admin", "/v2/%252e%252e/x"],
)
def test_headers_of_a_prefix_do_not_go_where_a_server_may_leave_it(
    tmp_path: Path, server: FaultServer, path: str
) -> None:
    """failures.md 57."""
    text = (
        f"version: 1\n{ON}upstreams:\n"
        f"  inner: {{base_url: '{server.url}/v2', headers: {{X-Key: inner}}}}\n"
        f"  outer: {{base_url: '{server.url}', headers: {{X-Key: outer}}}}\n"
    )
    with running(tmp_path, text), PoolManager() as manager:
        requests.get(server.url + path)
        manager.request("GET", server.url + path)
        manager.connection_from_url(server.url).request("GET", path)
        requests.get(f"{server.url}/v2/items;x=1")
        assert [one.header("X-Key") for one in server.requests] == ["outer"] * 3 + ["inner"]


def test_a_host_that_nobody_names_is_cut_and_printable(tmp_path: Path) -> None:
    """failures.md 66: 60,000 characters of a name were kept, and its control characters printed."""
    from headrace.adapters.routing import busiest_unknown_hosts, count_unknown

    with running(tmp_path, rules("http://billing.internal")):
        count_unknown("http://" + "a" * 60_000 + "/x")
        count_unknown("http://\x1b[31mred\n/x")
        count_unknown("a" * 60_000)
        hosts = {host for host, _ in busiest_unknown_hosts()}
        assert hosts == {"a" * 255, r"\x1b[31mred\n"}
