"""A call through a PoolManager is what urllib3 makes of it, though the manager does not look for its pool anew.

The same random calls are made as they go (`adapters.urllib3.straight`), through urllib3's own look for the pool, and
ungoverned. A server notes every byte that arrives.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
from hypothesis import example, given, settings
from hypothesis import strategies as st
from urllib3 import PoolManager
from urllib3.util.retry import Retry

import headrace
from bench.calls import least
from headrace.adapters import install
from headrace.adapters.urllib3 import straight
from headrace.policy.routes import RouteTable
from support.faultserver import Answer, FaultServer
from support.governed import running

QUIET = "    retry: {max_attempts: 1}\n    circuit_breaker: {mode: disabled}\n    propagate: {request_id: false}\n"
INSTALL = "version: 1\ninstall: {urllib3: true}\nupstreams:\n  billing:\n"


def test_the_layer_has_the_signature_of_what_it_lies_on_and_goes_with_the_last_configuration(
    tmp_path: Path,
) -> None:
    """The first in this file: the others have a configuration in force."""
    before = PoolManager.urlopen
    with running(tmp_path, f"{INSTALL}    base_url: http://127.0.0.1:9/v3\n"):
        layer = PoolManager.urlopen
        assert layer is not before
        assert layer.__doc__ == before.__doc__
        parameters = [
            [(one.name, one.default, one.kind) for one in inspect.signature(it).parameters.values()]
            for it in (layer, before)
        ]
        assert parameters[0] == parameters[1]
    assert PoolManager.urlopen is before


@pytest.mark.parametrize("name", ["urlopen", "connection_from_pool_key"])
def test_what_was_replaced_before_the_start_sees_each_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As the test above it, before any layer of ours is there."""
    stock, seen = getattr(PoolManager, name), []

    @functools.wraps(stock)
    def watched(self: Any, *args: Any, **kw: Any) -> Any:
        seen.append(name)
        return stock(self, *args, **kw)

    with FaultServer() as server, monkeypatch.context() as patch:
        patch.setattr(PoolManager, name, watched)
        with running(tmp_path, f"{INSTALL}    base_url: {server.url}/v3\n"), PoolManager() as manager:
            for _ in range(3):
                answer: Any = manager.request("GET", f"{server.url}/v3/a")
                assert answer.headrace.upstream == "billing"
    assert seen == [name] * 3


def test_defaults_of_what_was_replaced_before_the_start_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the tests above, before any layer of ours is there."""
    stock = PoolManager.urlopen

    def follows_nothing(self: Any, method: str, url: str, **kw: Any) -> Any:
        kw.setdefault("redirect", False)
        return stock(self, method, url, **kw)

    with FaultServer() as server, monkeypatch.context() as patch:
        server.at("/v3/moved", Answer(302, headers=(("Location", "/v3/there"),)))
        patch.setattr(PoolManager, "urlopen", follows_nothing)
        with running(tmp_path, f"{INSTALL}    base_url: {server.url}/v3\n"), PoolManager() as manager:
            assert manager.request("GET", f"{server.url}/v3/moved").status == 302


@pytest.fixture(autouse=True, scope="module")
def forms_have_one_boundary() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("urllib3.filepost.choose_boundary", lambda: "boundary")
        yield


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture(scope="module")
def hr(server: FaultServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[headrace.Headrace]:
    with running(tmp_path_factory.mktemp("rules"), f"{INSTALL}    base_url: {server.url}/v2\n{QUIET}") as hr:
        yield hr


@contextlib.contextmanager
def ungoverned() -> Iterator[None]:
    """No URL leads to an upstream."""
    routing = install._LIBRARIES[1]._routing
    routes, routing.routes = routing.routes, RouteTable(())
    try:
        yield
    finally:
        routing.routes = routes


@contextlib.contextmanager
def the_long_way() -> Iterator[None]:
    """Someone looks at how a manager finds a pool, so urllib3 finds it."""
    find = PoolManager.connection_from_host

    @functools.wraps(find)
    def watched(self: Any, *args: Any, **kw: Any) -> Any:
        return find(self, *args, **kw)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PoolManager, "connection_from_host", watched)
        yield


WAYS = (contextlib.nullcontext, the_long_way, ungoverned)

urls = st.from_regex(
    r"(https?|HTTP|ftp|)(:?//)([a-zA-Z0-9.-]{1,6}|\[::1\]|a@b|\xe9)(:[0-9]{0,6})?"
    r"(/[a-z.%/A-Z0-9@:;,+~!$&'()*=é _-]{0,4}){0,3}(\?[a-z%/?.= ]{0,4})?(#[a-z]?)?",
    fullmatch=True,
)


@settings(max_examples=3000, deadline=None)
@given(url=urls)
@example("http://h/a/./b")
@example("http://h/a//b?")
@example("http://H:0080/a/")
@example("http://h:99999/a")
@example("http://h/..a?b=/../c")
def test_a_url_is_taken_apart_as_urllib3_takes_it_apart(url: str) -> None:
    parts = straight._parts_of(url)
    if parts is None:
        return
    _, scheme, host, port, target = parts.groups()
    try:
        found = urllib3.util.parse_url(url)
    except urllib3.exceptions.LocationParseError:
        return  # it is asked before anything is remembered
    assert found.request_uri == target
    if "." not in host.strip("."):
        assert found.host == host.lower()
    assert (found.scheme, found.port) == (scheme, None if port is None else int(port))


def seen(answer: Any) -> Any:
    return {
        "status": (answer.status, answer.reason, answer.version),
        "headers": list(answer.headers.items()),
        "data": answer.data,
        "url": answer.geturl(),
        "history": [(one.method, one.url, one.status, one.redirect_location) for one in _history(answer)],
        "retries": None if answer.retries is None else (answer.retries.total, answer.retries.redirect),
    }


def _history(answer: Any) -> Any:
    return () if answer.retries is None else answer.retries.history


def outcome(act: Callable[[], Any], server: FaultServer) -> Any:
    """What *act* ends in, and what the server has heard of it."""
    before = len(server.requests)
    try:
        result = seen(act())
    except Exception as error:
        reason = getattr(error, "reason", None)
        result = (type(error), type(reason), str(reason) if isinstance(reason, str) else None)
    heard = [(one.method, one.target, one.headers, one.body) for one in server.requests[before:]]
    server._queue.clear()
    return result, heard


KEYWORDS = st.fixed_dictionaries(
    {},
    optional={
        "fields": st.sampled_from([None, {"a": "1"}, {"a": "é"}]),
        "headers": st.sampled_from([None, {}, {"X-A": "1"}, {"Authorization": "Bearer x", "Cookie": "a=1"}]),
        "redirect": st.booleans(),
        "retries": st.sampled_from([None, False, 0, 1, Retry(1, redirect=1), Retry(redirect=0)]),
        "timeout": st.sampled_from([None, 30, urllib3.Timeout(3, 30)]),
        "preload_content": st.booleans(),
        "decode_content": st.just(False),
        "assert_same_host": st.booleans(),
        "pool_timeout": st.just(3),
    },
)
BODIES = st.fixed_dictionaries(
    {}, optional={"body": st.sampled_from([b"x", "é"]), "json": st.just({"a": [1]})}
)
PATHS = st.sampled_from(
    [
        "/v2/a",
        "/v2/a?q=1",
        "/v2/a%2fb",
        "/v2/a/../b",
        "/v2//a",
        "/v2/a#f",
        "/v2",
        "/elsewhere",
        "",
        "/v2/é",
        "/v2/a?",
    ]
)
HOSTS = st.sampled_from(["127.0.0.1", "localhost", "LOCALHOST"])
ANSWERS = st.sampled_from(
    [
        Answer(),
        Answer(body=b"0123456789" * 30, chunked=True),
        Answer(404),
        Answer(304, body=b""),
        Answer(302, headers=(("Location", "/v2/next"),)),
        Answer(302, headers=(("Location", "/elsewhere"),)),
        Answer(303, headers=(("Location", "next?a=1"),)),
        Answer(301, headers=(("Location", "http://localhost:{port}/v2/b"),)),
        Answer(302),
    ]
)
MANAGERS = st.fixed_dictionaries(
    {},
    optional={
        "num_pools": st.sampled_from([1, 2]),
        "headers": st.just({"X-Manager": "1"}),
        "retries": st.sampled_from([1, False, Retry(2)]),
        "timeout": st.just(30),
        "maxsize": st.just(2),
        "block": st.just(True),
        "socket_options": st.just([]),
        "cert_reqs": st.just("CERT_NONE"),
    },
)


def told(answer: Answer, server: FaultServer) -> Answer:
    headers = tuple((name, value.replace("{port}", str(server.port))) for name, value in answer.headers)
    return Answer(answer.status, body=answer.body, chunked=answer.chunked, headers=headers)


@settings(max_examples=300, deadline=None)
@given(
    made=MANAGERS,
    calls=st.lists(
        st.tuples(st.sampled_from(["GET", "post", "HEAD", "PUT"]), HOSTS, PATHS, KEYWORDS, BODIES, ANSWERS),
        min_size=1,
        max_size=4,
    ),
)
@example(
    made={"num_pools": 2},
    calls=[
        ("GET", host, "/v2/a", {}, {}, Answer())
        for host in ("127.0.0.1", "localhost", "LOCALHOST", "127.0.0.1")
    ],
)
@example(
    made={},
    calls=[
        (
            "GET",
            "127.0.0.1",
            "/v2/a",
            {"headers": {"Authorization": "x"}},
            {},
            Answer(302, headers=(("Location", "http://localhost:{port}/v2/b"),)),
        ),
        ("POST", "127.0.0.1", "/v2/a", {}, {"body": b"x"}, Answer(303, headers=(("Location", "/v2/b"),))),
        ("GET", "127.0.0.1", "/v2/a", {"retries": 0}, {}, Answer(302, headers=(("Location", "/v2/b"),))),
    ],
)
def test_a_call_through_a_manager_is_what_urllib3_makes_of_it(
    hr: headrace.Headrace, server: FaultServer, made: dict[str, Any], calls: Any
) -> None:
    found = []
    for way in WAYS:
        results = []
        with way(), PoolManager(**made) as manager:
            for method, host, path, kw, body, answer in calls:
                with PoolManager() as warming:
                    warming.request("GET", f"{server.url}/v2/warm")
                server.next(told(answer, server))
                url = f"http://{host}:{server.port}{path}"
                results.append(outcome(lambda: manager.request(method, url, **kw, **body), server))  # noqa: B023
                results.append([(key.key_host, key.key_port) for key in manager.pools._container])
        found.append(results)
    assert found[0] == found[1]
    for straight_one, stock in zip(found[0], found[2], strict=True):
        assert straight_one == stock


def goes_straight(manager: PoolManager, url: str, **kw: Any) -> bool:
    """Whether a call looks for no pool."""
    act = functools.partial(manager.request, "GET", url, **kw)
    entered = least(act, begins="RequestMethods.request", times=2).ours
    return "routed" in entered and not any(name.endswith("connection_from_pool_key") for name in entered)


@pytest.mark.parametrize("path", ["/v2/a", "/v2/a?b=c", "/v2/a/7/"])
def test_a_plain_call_does_not_look_for_its_pool(
    hr: headrace.Headrace, server: FaultServer, path: str
) -> None:
    with PoolManager() as manager:
        assert goes_straight(manager, server.url + path)
        assert goes_straight(manager, server.url + path, timeout=3)
        assert manager.request("GET", server.url + path).headrace.upstream == "billing"  # type: ignore[attr-defined]


class Seen(Exception):
    """What was put in place of a function of urllib3 was entered."""


def is_seen(*args: Any, **kw: Any) -> Any:
    raise Seen


BETWEEN = [
    *("request", "request_encode_url", "urlopen", "connection_from_host", "connection_from_context"),
    *("connection_from_pool_key", "_merge_pool_kwargs"),
]


@pytest.mark.parametrize(
    "replaced",
    [
        *(f"urllib3.PoolManager.{name}" for name in BETWEEN),
        "urllib3.poolmanager.parse_url",
        "urllib3.connectionpool.HTTPConnectionPool.urlopen",
        "http.client.HTTPConnection.putrequest",
    ],
)
def test_what_others_have_replaced_sees_the_call(
    hr: headrace.Headrace, server: FaultServer, monkeypatch: pytest.MonkeyPatch, replaced: str
) -> None:
    url = f"{server.url}/v2/a"
    with PoolManager(retries=False) as manager:
        manager.request("GET", url)
        with monkeypatch.context() as patch:
            patch.setattr(replaced, is_seen)
            with pytest.raises(Seen):
                manager.request("GET", url)
        assert manager.request("GET", url).status == 200


@pytest.mark.parametrize("name", BETWEEN)
def test_so_do_a_class_and_an_object_with_methods_of_their_own(
    hr: headrace.Headrace, server: FaultServer, name: str
) -> None:
    url = f"{server.url}/v2/a"
    with type("Own", (PoolManager,), {name: is_seen})() as own, pytest.raises(Seen):
        own.request("GET", url)
    with PoolManager() as manager:
        manager.request("GET", url)
        setattr(manager, name, is_seen)
        with pytest.raises(Seen):
            manager.request("GET", url)


@pytest.mark.parametrize("by", ["functools", "wrapt"])
@pytest.mark.parametrize("name", ["request", "urlopen", "connection_from_host", "connection_from_pool_key"])
def test_so_does_a_wrapper_that_was_there_before_or_came_later(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str, name: str
) -> None:
    """And both are there after the last configuration has gone."""
    seen: list[str] = []

    def wrapper_of(inner: Any, words: str) -> Any:
        def note(original: Any, instance: Any, args: Any, kw: Any) -> Any:
            seen.append(words)
            return original(*args, **kw)

        @functools.wraps(inner)
        def wrapper(self: Any, *args: Any, **kw: Any) -> Any:
            seen.append(words)
            return inner(self, *args, **kw)

        return pytest.importorskip("wrapt").FunctionWrapper(inner, note) if by == "wrapt" else wrapper

    url = f"{server.url}/v3/a"
    with PoolManager() as manager:
        monkeypatch.setattr(PoolManager, name, wrapper_of(getattr(PoolManager, name), "before"))
        with running(tmp_path, f"{INSTALL}    base_url: {server.url}/v3\n{QUIET}"):
            assert manager.request("GET", url).headrace.upstream == "billing"  # type: ignore[attr-defined]
            assert seen == ["before"]
            monkeypatch.setattr(
                PoolManager,
                name,
                wrapper_of(vars(PoolManager).get(name) or getattr(PoolManager, name), "later"),
            )
            assert manager.request("GET", url).headrace.upstream == "billing"  # type: ignore[attr-defined]
            assert seen == ["before", "later", "before"]
        assert not hasattr(manager.request("GET", url), "headrace")
        assert seen == ["before", "later", "before", "later", "before"]


def test_settings_that_change_make_another_pool_as_in_urllib3(
    hr: headrace.Headrace, server: FaultServer
) -> None:
    url = f"{server.url}/v2/a"
    with PoolManager() as manager:
        for change in ({}, {"maxsize": 3}, {"maxsize": 4}, {"socket_options": [(6, 1, 1)]}):
            manager.connection_pool_kw.update(change)
            manager.request("GET", url)
            manager.request("GET", url)
        found = {(key.key_maxsize, key.key_socket_options) for key in manager.pools.keys()}  # noqa: SIM118
        assert found == {(None, None), (3, None), (4, None), (4, ((6, 1, 1),))}
        manager.clear()
        assert manager.request("GET", url).status == 200
        assert len(manager.pools) == 1


def test_a_pool_that_somebody_holds_is_the_one_that_is_called(
    hr: headrace.Headrace, server: FaultServer
) -> None:
    """A mock, say: it was put on the pool that the manager hands out."""
    url = f"{server.url}/v2/a"
    with PoolManager() as manager:
        manager.request("GET", url)
        pool = manager.connection_from_url(url)
        pool.urlopen = is_seen  # type: ignore[method-assign]
        with pytest.raises(Seen):
            manager.request("GET", url)


def test_keys_of_its_own_are_asked_for(hr: headrace.Headrace, server: FaultServer) -> None:
    url = f"{server.url}/v2/a"
    with PoolManager() as manager:
        manager.request("GET", url)
        manager.key_fn_by_scheme["http"] = is_seen
        with pytest.raises(Seen):
            manager.request("GET", url)


def test_what_is_remembered_is_bounded(server: FaultServer, tmp_path: Path) -> None:
    """A host may be written in many ways."""
    with (
        running(tmp_path, f"{INSTALL}    base_url: http://localhost:{server.port}/v3\n{QUIET}"),
        PoolManager() as manager,
    ):
        for at in range(200):
            host = "".join(one.upper() if at >> n & 1 else one for n, one in enumerate("localhost"))
            answer: Any = manager.request("GET", f"http://{host}:{server.port}/v3/a")
            assert answer.headrace.upstream == "billing"
        assert 1 <= len(vars(manager)[straight._KEYS]) <= straight._MOST_KEYS
        assert len(manager.pools) == 1


def test_a_setting_that_changes_in_place_makes_another_pool(
    hr: headrace.Headrace, server: FaultServer
) -> None:
    options: list[Any] = [(6, 1, 1)]
    with PoolManager(socket_options=options) as manager:
        manager.request("GET", f"{server.url}/v2/a")
        options.append((1, 9, 1))
        manager.request("GET", f"{server.url}/v2/a")
        assert {len(key.key_socket_options) for key in manager.pools.keys()} == {1, 2}  # noqa: SIM118


def test_a_manager_does_not_keep_the_pools_that_it_has_evicted(
    hr: headrace.Headrace, server: FaultServer
) -> None:
    with PoolManager(num_pools=1) as manager:
        manager.request("GET", f"{server.url}/v2/a")
        (pool,) = [manager.pools[key] for key in manager.pools.keys()]  # noqa: SIM118
        gone = weakref.ref(pool)
        del pool
        manager.request("GET", f"http://localhost:{server.port}/elsewhere")
        assert gone() is None


@pytest.mark.parametrize("by", ["clear", "eviction"])
def test_a_redirected_call_is_sent_once_whatever_becomes_of_its_pool_meanwhile(
    hr: headrace.Headrace, server: FaultServer, by: str
) -> None:
    with PoolManager(num_pools=1) as manager:
        manager.request("GET", f"{server.url}/v2/a")
        server.at("/v2/moved", Answer(307, headers=(("Location", "/v2/there"),), delay_s=0.2))
        before = len(server.requests)

        def let_go() -> None:
            server.wait_for(lambda: len(server.requests) > before)
            if by == "clear":
                manager.clear()
            else:
                manager.request("GET", f"http://localhost:{server.port}/elsewhere")

        leaver = threading.Thread(target=let_go)
        leaver.start()
        assert manager.request("POST", f"{server.url}/v2/moved", body=b"once").status == 200
        leaver.join()
        posts = [one.target for one in server.requests[before:] if one.method == "POST"]
        assert posts == ["/v2/moved", "/v2/there"]
