"""A plain call of any Session to a governed URL is what requests makes of it, though it goes past most of requests.

The same random calls are made as they go (`adapters.requests.straight`), through requests with the call governed below
it, and ungoverned. A server notes every byte that arrives; another is the proxy that the environment may name.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import http.cookiejar
import inspect
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import example, given, settings
from hypothesis import strategies as st
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

import headrace
from bench.calls import least
from headrace.adapters import install
from headrace.policy.routes import RouteTable
from support.as_requests import (
    ANSWERS,
    GARBAGE,
    REDIRECT,
    SETTINGS,
    calls,
    differences,
    in_turn,
    note_it,
    outcome,
    sign,
    the_long_way,
    without_texts,
)
from support.faultserver import Answer, FaultServer
from support.governed import running

QUIET = "    retry: {max_attempts: 1}\n    circuit_breaker: {mode: disabled}\n    propagate: {request_id: false}\n"


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
def proxy() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture(scope="module")
def hr(server: FaultServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[headrace.Headrace]:
    text = f"version: 1\nupstreams:\n  billing:\n    base_url: {server.url}/v2\n{QUIET}"
    with running(tmp_path_factory.mktemp("rules"), text) as hr:
        yield hr


@pytest.fixture(scope="module", autouse=True)
def the_environment_says_nothing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.lower().endswith(("_proxy", "_ca_bundle", "netrc")):
                patch.delenv(name)
        patch.setenv("HOME", str(home))
        yield home


@contextlib.contextmanager
def ungoverned() -> Iterator[None]:
    """No URL leads to an upstream."""
    routing = install._LIBRARIES[0]._routing
    routes, routing.routes = routing.routes, RouteTable(())
    try:
        yield
    finally:
        routing.routes = routes


WAYS = (contextlib.nullcontext, the_long_way, ungoverned)


class Based(requests.Session):
    """As many applications have one: its own `request`, which adds something."""

    def request(self, method: Any, url: Any, *args: Any, **kw: Any) -> requests.Response:  # type: ignore[override]
        kw["headers"] = {**(kw.get("headers") or {}), "X-Based": "yes"}
        return super().request(method, url, *args, **kw)


class Signing(requests.Session):
    """One that sees each request that is sent."""

    def send(self, request: requests.PreparedRequest, **kw: Any) -> requests.Response:
        request.headers["X-Signing"] = "yes"
        return super().send(request, **kw)


class Preparing(requests.Session):
    def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
        prepared = super().prepare_request(request)
        prepared.headers["X-Preparing"] = "yes"
        return prepared


KINDS = (requests.Session, Based, Signing, Preparing)


def is_exact(session: requests.Session, url: str) -> bool:
    """Whether a call is answered by requests' own class."""
    return type(session.get(url)) is requests.Response


def test_the_layer_has_the_signature_of_what_it_lies_on_and_goes_with_the_last_configuration(
    server: FaultServer, tmp_path: Path
) -> None:
    """The first in this file: the others have a configuration in force."""
    before = requests.Session.request
    text = f"version: 1\nupstreams:\n  billing:\n    base_url: {server.url}/v3\n{QUIET}"
    with running(tmp_path, text):
        layer = requests.Session.request
        assert layer is not before
        assert layer.__doc__ == before.__doc__
        parameters = [
            [(one.name, one.default, one.kind) for one in inspect.signature(it).parameters.values()]
            for it in (layer, before)
        ]
        assert parameters[0] == parameters[1]
    assert requests.Session.request is before


def test_defaults_of_what_was_replaced_before_the_start_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any layer of ours is there. Such a function sees a call as it was made, and has arguments of its own."""
    stock = requests.Session.request

    def with_a_trace(self: Any, method: str, url: str, *args: Any, trace: str = "none", **kw: Any) -> Any:
        kw.setdefault("headers", {})["X-Trace"] = trace
        return stock(self, method, url, *args, **kw)

    with FaultServer() as server:
        text = f"version: 1\nupstreams:\n  billing:\n    base_url: {server.url}/v3\n{QUIET}"
        for replaced, keywords in (
            (functools.partialmethod(stock, headers={"X-Trace": "mine"}, timeout=7), {}),
            (with_a_trace, {"trace": "mine"}),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(requests.Session, "request", replaced)
                with running(tmp_path, text), requests.Session() as session:
                    for _ in range(2):  # over a warm connection, too
                        answer: Any = session.get(f"{server.url}/v3/a", **keywords)
                        assert answer.headrace.upstream == "billing"
                        assert server.requests[-1].header("X-Trace") == "mine"


@settings(max_examples=200, deadline=None)
@given(
    made=calls,
    told_session=st.lists(st.sampled_from(sorted(SETTINGS)), max_size=2, unique=True),
    kind=st.sampled_from(KINDS),
    warm=st.booleans(),
)
@example(made=[("GET", "/a", {}, REDIRECT, True)], told_session=[], kind=requests.Session, warm=True)
@example(made=[("GET", "/a", {}, REDIRECT, True)], told_session=["a signer"], kind=Based, warm=True)
@example(
    made=[("GET", "/a", {}, ANSWERS[3], True), ("GET", "/a", {}, ANSWERS[0], True)],
    told_session=[],
    kind=requests.Session,
    warm=True,
)
@example(
    made=[("GET", "/a", {}, ANSWERS[0], True)] * 2, told_session=["hooks"], kind=requests.Session, warm=True
)
@example(made=[("GET", "/a", {}, ANSWERS[3], True)] * 2, told_session=[], kind=Signing, warm=True)
def test_a_plain_call_is_what_requests_makes_of_it(
    hr: headrace.Headrace, server: FaultServer, made: Any, told_session: list[str], kind: Any, warm: bool
) -> None:
    found = []
    for way in WAYS:
        with way(), kind() as session:
            for one in told_session:
                SETTINGS[one](session)
            found.append(in_turn(session, server, made, warm=warm))
    for straight, by_requests, stock in zip(*found, strict=True):
        assert differences(straight, by_requests) == []
        # Where a connection has broken, a governed call is sent again.
        if all(isinstance(answer, Answer) for _, _, _, answer, _ in made):
            assert differences(*without_texts(straight, stock)) == []


@pytest.mark.parametrize("answer", GARBAGE)
def test_garbage_is_told_in_the_same_words(hr: headrace.Headrace, server: FaultServer, answer: Any) -> None:
    made = [("GET", "/a", {}, answer, True)]
    found = []
    for way in (contextlib.nullcontext, the_long_way):
        with way(), requests.Session() as session:
            found.append(in_turn(session, server, made))
    assert [differences(*pair) for pair in zip(*found, strict=True)] == [[], []]


HOSTS = st.sampled_from(
    ["127.0.0.1", "127.0.0.1:{port}", "127.0.0.0/8", "localhost,127.0.0.1", "*", "", "10.0.0.0/8", ".0.1"]
)
PROXIES = st.sampled_from(["{proxy}", "", "127.0.0.1:1"])
ENVIRONMENTS = st.fixed_dictionaries(
    {},
    optional={
        "HTTP_PROXY": PROXIES,
        "http_proxy": PROXIES,
        "HTTPS_PROXY": PROXIES,
        "ALL_PROXY": PROXIES,
        "ftp_proxy": PROXIES,
        "NO_PROXY": HOSTS,
        "no_proxy": HOSTS,
        "REQUEST_METHOD": st.just("GET"),
        "REQUESTS_CA_BUNDLE": st.sampled_from(["/nowhere.pem", ""]),
        "CURL_CA_BUNDLE": st.just("/nowhere.pem"),
        "NETRC": st.sampled_from(["{netrc}", "/nowhere", ""]),
        "HOME": st.sampled_from(["{home}", "/nowhere", None]),
    },
)
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "proxies": st.sampled_from(
            [None, {}, {"http": "{proxy}"}, {"no_proxy": "127.0.0.1"}, {"ftp": "{proxy}"}, {"http": None}]
        ),
        "verify": st.sampled_from([None, True, False, "/nowhere.pem"]),
        "cert": st.sampled_from([None, ""]),
        "auth": st.just(("user", "password")),
        "allow_redirects": st.booleans(),
        "json": st.just({"a": 1}),
    },
)
OF_SESSION = st.fixed_dictionaries(
    {},
    optional={
        "trust_env": st.booleans(),
        "proxies": st.sampled_from([{}, {"http": "{proxy}"}, {"all": "{proxy}"}, {"no_proxy": "*"}]),
        "verify": st.sampled_from([True, False]),
        "auth": st.just(("of", "session")),
    },
)


def filled(value: Any, **words: Any) -> Any:
    if isinstance(value, dict):
        return {name: filled(one, **words) for name, one in value.items()}
    return value.format(**words) if isinstance(value, str) else value


@settings(max_examples=300, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            ENVIRONMENTS,
            ARGUMENTS,
            OF_SESSION,
            st.sampled_from([Answer(), REDIRECT, Answer(302, headers=(("Location", "/elsewhere/b"),))]),
            st.booleans(),
        ),
        min_size=1,
        max_size=3,
    )
)
@example(steps=[({}, {}, {}, Answer(), True), ({"HTTP_PROXY": "{proxy}"}, {}, {}, Answer(), True)] * 2)
@example(
    steps=[
        ({"HTTP_PROXY": "{proxy}", "NO_PROXY": "127.0.0.1"}, {}, {}, REDIRECT, True),
        ({"HTTP_PROXY": "{proxy}", "NO_PROXY": "10.0.0.0/8"}, {}, {}, REDIRECT, True),
        ({"HTTP_PROXY": "{proxy}", "REQUEST_METHOD": "GET"}, {}, {}, REDIRECT, True),
    ]
)
@example(steps=[({"NETRC": "{netrc}"}, {}, {}, REDIRECT, True), ({"HOME": "{home}"}, {}, {}, Answer(), True)])
@example(
    steps=[
        ({"ALL_PROXY": "{proxy}"}, {}, {}, Answer(), True),
        ({"ftp_proxy": "{proxy}"}, {}, {}, Answer(), True),
    ]
)
def test_the_environment_says_to_a_plain_call_what_it_says_to_requests(
    hr: headrace.Headrace,
    server: FaultServer,
    proxy: FaultServer,
    tmp_path_factory: pytest.TempPathFactory,
    steps: Any,
) -> None:
    folder = tmp_path_factory.getbasetemp() / "netrc"
    folder.mkdir(exist_ok=True)
    netrc = folder / ".netrc"
    netrc.write_text("machine 127.0.0.1 login alice password secret\n")
    netrc.chmod(0o600)
    words = {"proxy": proxy.url, "port": server.port, "netrc": netrc, "home": folder}
    found = []
    for way in WAYS:
        told = []
        with way(), requests.Session() as session:
            untouched = {name: getattr(session, name) for name in ("trust_env", "proxies", "verify", "auth")}
            for environment, arguments, of_session, answer, is_ours in steps:
                with pytest.MonkeyPatch.context() as patch:
                    for name, value in environment.items():
                        if value is None:
                            patch.delenv(name)
                        else:
                            patch.setenv(name, filled(value, **words))
                    for name, value in {**untouched, **of_session}.items():
                        setattr(session, name, filled(value, **words))
                    by_proxy = len(proxy.requests)
                    made = [("GET", "/a", filled(arguments, **words), answer, is_ours)]
                    told += in_turn(session, server, made, warm=True)
                    told.append(
                        ({"by proxy": [(one.target, one.headers) for one in proxy.requests[by_proxy:]]}, ())
                    )
        found.append(told)
    for straight, by_requests, stock in zip(*found, strict=True):
        assert differences(straight, by_requests) == []
        assert differences(*without_texts(straight, stock)) == []


def goes_straight(session: requests.Session, url: str, **kw: Any) -> bool:
    """Whether a call goes past requests."""
    entered = least(lambda: session.get(url, **kw), begins="Session.get", times=2).ours
    return "request_straight" in entered and "RequestsPatch.__init__.<locals>.send" not in entered


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"REQUESTS_CA_BUNDLE": "/etc/bundle.pem"}, id="a bundle"),
        pytest.param({"HTTP_PROXY": "http://127.0.0.1:1", "NO_PROXY": "127.0.0.1"}, id="a proxy for others"),
    ],
)
@pytest.mark.parametrize("kind", [requests.Session, Based])
def test_a_plain_call_goes_past_requests(
    hr: headrace.Headrace,
    server: FaultServer,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    kind: type[requests.Session],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with kind() as session:
        assert goes_straight(session, f"{server.url}/v2/a")
        assert goes_straight(session, f"{server.url}/v2/a", params={"n": 1})
        assert goes_straight(session, f"{server.url}/v2/a", timeout=(3, 30))
        assert session.get(f"{server.url}/v2/a").headrace.upstream == "billing"  # type: ignore[attr-defined]


class Seen(Exception):
    """What was put in place of a function of requests was entered."""


def is_seen(*args: Any, **kw: Any) -> Any:
    raise Seen


@pytest.mark.parametrize(
    "replaced",
    [
        pytest.param("requests.Session.request", id="Session.request"),
        pytest.param("requests.Session.send", id="Session.send, as tracing does"),
        pytest.param("requests.Session.get_adapter", id="Session.get_adapter, as requests-mock does"),
        pytest.param("requests.Session.prepare_request", id="Session.prepare_request"),
        pytest.param("requests.Session.merge_environment_settings", id="Session.merge_environment_settings"),
        pytest.param("requests.adapters.HTTPAdapter.send", id="HTTPAdapter.send, as responses does"),
        pytest.param("requests.adapters.HTTPAdapter.build_response", id="HTTPAdapter.build_response"),
        pytest.param("requests.adapters.HTTPAdapter.add_headers", id="HTTPAdapter.add_headers"),
        pytest.param("requests.models.PreparedRequest.prepare_body", id="a step of the preparation"),
        pytest.param("requests.models.RequestEncodingMixin._encode_params", id="what a class has inherited"),
        pytest.param("requests.models.Response.__init__", id="the making of a response"),
        pytest.param("requests.models.cookiejar_from_dict", id="the making of its jar"),
        pytest.param("requests.adapters.CaseInsensitiveDict", id="the making of its headers"),
        pytest.param("requests.sessions.PreparedRequest", id="the name of a class"),
        pytest.param("requests.sessions.get_netrc_auth", id="the look for a .netrc"),
        pytest.param("requests.sessions.get_environ_proxies", id="the look for proxies"),
        pytest.param("requests.sessions.merge_cookies", id="the merge of cookies"),
        pytest.param("requests.sessions.merge_hooks", id="the merge of hooks"),
        pytest.param("requests.models.Request.__init__", id="the making of a request"),
        pytest.param("requests.models.urlencode", id="the encoding of parameters"),
        pytest.param("requests.models.requote_uri", id="the quoting of a URL"),
        pytest.param("requests.models.check_header_validity", id="the look at headers"),
        pytest.param("requests.utils._validate_header_part", id="the look at one of them"),
        pytest.param("requests.adapters.get_encoding_from_headers", id="a helper"),
    ],
)
def test_what_others_have_replaced_sees_the_call(
    hr: headrace.Headrace, server: FaultServer, monkeypatch: pytest.MonkeyPatch, replaced: str
) -> None:
    with requests.Session() as session:
        url = f"{server.url}/v2/a"
        assert goes_straight(session, url)
        with monkeypatch.context() as patch:
            patch.setattr(replaced, is_seen)
            with pytest.raises(Seen):
                session.get(url, params={"q": "1"})
        assert goes_straight(session, url)


@pytest.mark.parametrize("by", ["functools", "wrapt"])
@pytest.mark.parametrize(
    "name", ["Session.request", "Session.send", "HTTPAdapter.send", "Session.get_adapter"]
)
def test_so_does_a_wrapper_that_was_there_before_or_came_later(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str, name: str
) -> None:
    """And both are there after the last configuration has gone."""
    kind_name, _, method = name.partition(".")
    kind: Any = getattr(requests.sessions, kind_name)
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

    own = vars(kind)[method]
    text = f"version: 1\nupstreams:\n  billing:\n    base_url: {server.url}/v3\n{QUIET}"
    url = f"{server.url}/v3/a"
    with requests.Session() as session:
        monkeypatch.setattr(kind, method, wrapper_of(own, "before"))
        with running(tmp_path, text):
            assert session.get(url).headrace.upstream == "billing"  # type: ignore[attr-defined]
            assert seen == ["before"]
            monkeypatch.setattr(kind, method, wrapper_of(vars(kind)[method], "later"))
            assert session.get(url).headrace.upstream == "billing"  # type: ignore[attr-defined]
            assert seen == ["before", "later", "before"]
        assert not hasattr(session.get(url), "headrace")
        assert seen == ["before", "later", "before", "later", "before"]


ODD: dict[str, Any] = {
    "a method of the object": lambda session, url: setattr(session, "send", is_seen),
    "its preparation": lambda session, url: setattr(session, "prepare_request", is_seen),
    "a method of the adapter": lambda session, url: setattr(session.get_adapter(url), "send", is_seen),
    "headers of the adapter": lambda session, url: setattr(session.get_adapter(url), "add_headers", is_seen),
    "a signer": lambda session, url: setattr(session, "auth", is_seen),
    "a hook": lambda session, url: session.hooks["response"].append(is_seen),
    "an adapter": lambda session, url: session.mount(url, type("Own", (HTTPAdapter,), {"send": is_seen})()),
}


@pytest.mark.parametrize("odd", ODD)
def test_what_a_session_has_of_its_own_is_asked(hr: headrace.Headrace, server: FaultServer, odd: str) -> None:
    url = f"{server.url}/v2/a"
    with requests.Session() as session:
        assert goes_straight(session, url)
        ODD[odd](session, url)
        with pytest.raises(Seen):
            session.get(url)


@pytest.mark.parametrize("name", ["send", "prepare_request", "merge_environment_settings", "get_adapter"])
def test_what_a_class_has_of_its_own_is_asked(hr: headrace.Headrace, server: FaultServer, name: str) -> None:
    with type("Own", (requests.Session,), {name: is_seen})() as session, pytest.raises(Seen):
        session.get(f"{server.url}/v2/a")


@pytest.mark.parametrize(
    "name", ["rebuild_auth", "rebuild_proxies", "should_strip_auth", "resolve_redirects"]
)
def test_so_it_is_on_the_way_of_a_redirect(hr: headrace.Headrace, server: FaultServer, name: str) -> None:
    server.next(REDIRECT)
    with type("Own", (requests.Session,), {name: is_seen})() as session, pytest.raises(Seen):
        session.get(f"{server.url}/v2/a", headers={"Authorization": "Bearer x"})


def test_an_adapter_with_retries_of_its_own_makes_them(hr: headrace.Headrace, server: FaultServer) -> None:
    with requests.Session() as session:
        session.mount("http://", HTTPAdapter(max_retries=Retry(2, status_forcelist=[404], backoff_factor=0)))
        server.next(Answer(404))
        assert session.get(f"{server.url}/v2/a").status_code == 200


def test_the_answer_is_requests_own(hr: headrace.Headrace, server: FaultServer) -> None:
    with requests.Session() as session:
        url = f"{server.url}/v2/a"
        session.get(url)
        server.next(
            Answer(
                body=b'{"a": 1}', headers=(("Content-Type", "application/json"), ("X-A", "1"), ("x-a", "2"))
            )
        )
        answer = session.get(url, headers={"X-Mine": "1"})
        assert type(answer) is requests.Response
        assert type(answer.request) is requests.PreparedRequest
        assert (answer.json(), answer.encoding, answer.headers["x-A"]) == ({"a": 1}, "utf-8", "1, 2")
        assert answer.headers == requests.structures.CaseInsensitiveDict(answer.raw.headers)
        assert json.loads(pickle.loads(pickle.dumps(answer)).text) == {"a": 1}
        assert copy.copy(answer).request.headers["x-mine"] == "1"
        assert answer.connection is session.get_adapter(url)
        assert list(answer.iter_content(3)) == [b'{"a', b'": ', b"1}"]
        answer.request.headers["X-Later"] = "1"
        answer.request.hooks["response"].append(note_it)
        assert "X-Later" not in session.get(url).request.headers


def test_a_signer_s_hook_sees_the_answer(hr: headrace.Headrace, server: FaultServer) -> None:
    with requests.Session() as session:
        assert session.get(f"{server.url}/v2/a", auth=sign).headers["X-Hooked"].startswith("2 ")


def test_a_netrc_that_appears_and_changes_is_honoured_from_then_on(
    hr: headrace.Headrace, server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    netrc = tmp_path / ".netrc"
    sent = []
    with requests.Session() as session:
        for login in (None, "alice", "bob", None):
            if login is None:
                netrc.unlink(missing_ok=True)
            else:
                netrc.write_text(f"machine 127.0.0.1 login {login} password secret\n")
                netrc.chmod(0o600)
            sent.append(session.get(f"{server.url}/v2/a").request.headers.get("Authorization"))
            assert server.requests[-1].header("Authorization") == sent[-1]
    assert sent[0] is sent[3] is None
    assert sent[1] != sent[2]


class Noting(HTTPAdapter):
    """Notes what a Session hands on."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def send(self, request: Any, *args: Any, **kw: Any) -> requests.Response:
        self.seen.append((request.url, args, kw, dict(request.headers)))
        return super().send(request, *args, **kw)


@pytest.mark.parametrize("trusts", [True, False])
@pytest.mark.parametrize("of_session", [{}, {"verify": False}, {"stream": True}])
@pytest.mark.parametrize(
    "keywords", [{}, {"verify": False}, {"timeout": 30}, {"verify": "/other.pem"}, {"stream": True}]
)
def test_the_next_hop_is_handed_what_the_call_came_with(
    hr: headrace.Headrace,
    server: FaultServer,
    monkeypatch: pytest.MonkeyPatch,
    trusts: bool,
    of_session: dict[str, Any],
    keywords: dict[str, Any],
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere.pem")
    monkeypatch.setenv("ftp_proxy", "http://127.0.0.1:1")
    found = []
    for way in WAYS:
        with way(), requests.Session() as session:
            noting, elsewhere = Noting(), f"http://localhost:{server.port}/"
            session.mount(elsewhere, noting)
            session.trust_env = trusts
            for name, value in of_session.items():
                setattr(session, name, value)
            server.next(Answer(302, headers=(("Location", f"{elsewhere}b"),)))
            answer = session.get(f"{server.url}/v2/a", headers={"Authorization": "Bearer x"}, **keywords)
            found.append([noting.seen, answer.text])
    assert found[0] == found[1] == found[2]
    assert len(found[0][0]) == 1


def test_cookies_are_kept_from_call_to_call(hr: headrace.Headrace, server: FaultServer) -> None:
    url = f"{server.url}/v2/a"
    with requests.Session() as session:
        session.get(url)
        server.next(Answer(headers=(("set-COOKIE", "a=1"),)))
        assert session.get(url).cookies.get_dict() == {"a": "1"}
        session.get(url)
        assert server.requests[-1].header("Cookie") == "a=1"


def test_params_may_lead_to_another_adapter(hr: headrace.Headrace, server: FaultServer) -> None:
    url = f"{server.url}/v2/a"
    with requests.Session() as session:
        session.mount(f"{url}?q=", type("Own", (HTTPAdapter,), {"send": is_seen})())
        assert session.get(url).status_code == 200
        with pytest.raises(Seen):
            session.get(url, params={"q": "1"})


def test_a_call_without_an_adapter_is_refused_in_the_words_of_requests(
    hr: headrace.Headrace, server: FaultServer
) -> None:
    with requests.Session() as session:
        session.adapters.clear()
        with pytest.raises(requests.exceptions.InvalidHeader):
            session.get(f"{server.url}/v2/a", headers={"X-A": 3})  # type: ignore[dict-item]
        with pytest.raises(requests.exceptions.InvalidSchema):
            session.get(f"{server.url}/v2/a")


def test_an_outcome_is_compared(server: FaultServer) -> None:
    """The comparison itself can fail."""
    found = [outcome(lambda path=path: requests.get(server.url + path), server) for path in ("/a", "/b")]
    assert differences(*found) != []


def test_a_jar_is_told_of_what_it_would_keep(hr: headrace.Headrace, server: FaultServer) -> None:
    url = f"{server.url}/v2/a"
    policy = http.cookiejar.DefaultCookiePolicy(rfc2965=True, strict_rfc2965_unverifiable=False)
    with requests.Session() as session:
        session.cookies.set_policy(policy)
        session.get(url)
        server.next(Answer(headers=(("Set-Cookie2", 'a="1"; Version="1"'),)))
        session.get(url)
        assert session.cookies.keys() == ["a"]

    class Jar(requests.cookies.RequestsCookieJar):
        asked = 0

        def extract_cookies(self, response: Any, request: Any) -> None:
            self.asked += 1
            super().extract_cookies(response, request)

    with requests.Session() as session:
        session.cookies = jar = Jar()
        for _ in range(3):
            session.get(url)
        assert jar.asked == 3
        session.cookies = {}  # type: ignore[assignment]
        with pytest.raises(AttributeError):
            session.get(url)
