"""A call through a handle or a session of ours is what `requests.Session` makes of it: on the wire, and as an answer.

The same random calls are made by a stock Session, ungoverned, and by ours. A server notes every byte that arrives.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

import headrace
from headrace.adapters.handles import checked_path
from headrace.adapters.requests.answer import Response as DirectResponse
from headrace.adapters.requests.environment import verify_of_environment
from headrace.adapters.requests.plain import head_of, plain_request
from support.as_requests import (
    ANSWERS,
    GARBAGE,
    REDIRECT,
    SETTINGS,
    asked,
    calls,
    differences,
    documents,
    fields,
    heads,
    in_turn,
    keywords,
    methods,
    note_it,
    outcome,
    paths,
    sign,
    the_long_way,
    without_texts,
)
from support.faultserver import Answer, Break, FaultServer
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
def hr(server: FaultServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[headrace.Headrace]:
    text = f"version: 1\ninstall: {{requests: false}}\nupstreams:\n  billing:\n    base_url: {server.url}/v2\n{QUIET}"
    with running(tmp_path_factory.mktemp("rules"), text) as hr:
        yield hr


FRAMING = st.dictionaries(
    st.sampled_from(["Content-Length", "content-length", "Transfer-Encoding", "CONTENT-TYPE"]),
    st.sampled_from(["3", "chunked", "x", ""]),
    max_size=2,
)
"""Headers after which a server would read something else."""


@settings(max_examples=1500, deadline=None)
@given(
    method=methods, path=paths, params=fields, data=fields, json=documents, headers=st.one_of(heads, FRAMING)
)
@example(method="GET", path="/a%2Db", params=None, data=None, json=None, headers=None)
@example(method="POST", path="/a", params=None, data=None, json=None, headers={"Content-Length": "3"})
def test_a_plain_request_is_what_requests_prepares(
    method: str, path: str, params: Any, data: Any, json: Any, headers: Any
) -> None:
    with requests.Session() as session:
        session.trust_env = False
        head = head_of(session.headers)
        assert head is not None
        before = dict(head.fields), dict(head.sent)
        plain = plain_request(method, "http://h:81/v2", "/v2", path, head, headers, params, data, json)
        assert (head.fields, head.sent) == before
        if plain is None:
            return
        stock = session.prepare_request(
            requests.Request(
                method,
                f"http://h:81/v2{path}",
                headers=headers,
                params=params or {},
                data=data or {},
                json=json,
            )
        )
    assert asked(plain.prepared()) == asked(stock)
    assert plain.target == stock.path_url
    assert plain.headers == dict(stock.headers)
    assert plain.body == (stock.body.encode() if isinstance(stock.body, str) else stock.body)


@pytest.mark.parametrize(
    ("path", "kw"),
    [
        pytest.param("/invoices/7", {}, id="a path"),
        pytest.param("/", {}, id="the root"),
        pytest.param("/a/b/", {}, id="a slash at the end"),
        pytest.param("/a%20b/c%2Fd", {}, id="escapes that stay"),
        pytest.param("/a?b=c&d=/e?f", {}, id="a query"),
        pytest.param("/a", {"params": {"q": "word", "n": 7, "t": "two words"}}, id="params"),
        pytest.param("/a", {"json": {"a": [1, "é"]}}, id="json"),
        pytest.param("/a", {"data": b"\x00\xff"}, id="bytes"),
        pytest.param("/a", {"data": "text"}, id="text"),
        pytest.param("/a", {"data": {"a": "1", "b": ["x", "y"]}}, id="a form"),
        pytest.param("/a", {"headers": {"X-Mine": "1", "user-agent": "me/1"}}, id="headers"),
    ],
)
def test_what_most_callers_send_is_plain(path: str, kw: dict[str, Any]) -> None:
    head = head_of(requests.Session().headers)
    assert head is not None
    given = [kw.get(name) for name in ("headers", "params", "data", "json")]
    assert plain_request("POST", "http://h", "", path, head, *given) is not None


@settings(max_examples=200, deadline=None)
@given(method=methods, path=paths, kw=keywords, answer=st.sampled_from(ANSWERS + GARBAGE))
@example(method="GET", path="/a", kw={}, answer=ANSWERS[0])
@example(method="POST", path="/a", kw={"json": {"a": float("nan")}}, answer=ANSWERS[0])
@example(method="POST", path="/a", kw={"data": {"a": None}}, answer=ANSWERS[0])
@example(method="GET", path="/a", kw={"headers": {"X-A": "a\r\nX-Injected: 1"}}, answer=ANSWERS[0])
@example(method="GET", path="/a", kw={"stream": True}, answer=Break("body", "fin"))
@example(method="GET", path="/a", kw={}, answer=Break("body", "fin"))
@example(method="GET", path="/a", kw={"allow_redirects": False}, answer=REDIRECT)
@example(method="POST", path="/a", kw={"json": 1}, answer=REDIRECT)
def test_a_call_by_name_is_what_a_session_makes_of_it(
    hr: headrace.Headrace, server: FaultServer, method: str, path: str, kw: dict[str, Any], answer: Any
) -> None:
    handle = hr.upstream("billing")
    try:
        checked = checked_path(hr.snapshot.upstream("billing").plan.base, path)
    except requests.exceptions.InvalidURL:
        assume(False)

    server.next(answer)
    ours = outcome(lambda: handle.request(method, path, **copy.deepcopy(kw)), server)
    server.next(answer)
    with the_long_way():
        by_requests = outcome(lambda: handle.request(method, path, **copy.deepcopy(kw)), server)
    assert differences(ours, by_requests) == []

    if answer in GARBAGE:
        return
    server.next(answer)
    with requests.Session() as session:
        session.trust_env = False
        stock = outcome(
            lambda: session.request(method, f"{server.url}/v2{checked}", **copy.deepcopy(kw)), server
        )
    assert differences(*without_texts(ours, stock)) == []


@pytest.fixture(scope="module", autouse=True)
def the_environment_says_nothing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.lower().endswith(("_proxy", "_ca_bundle", "netrc")):
                patch.delenv(name)
        patch.setenv("HOME", str(home))
        yield home


@settings(max_examples=200, deadline=None)
@given(made=calls, told_session=st.lists(st.sampled_from(sorted(SETTINGS)), max_size=2, unique=True))
@example(made=[("GET", "/a", {}, REDIRECT, True)], told_session=[])
@example(made=[("GET", "/a", {}, REDIRECT, True)], told_session=["a signer"])
@example(made=[("GET", "/a", {}, ANSWERS[3], True), ("GET", "/a", {}, ANSWERS[0], True)], told_session=[])
def test_a_session_of_ours_is_what_a_session_is(
    hr: headrace.Headrace, server: FaultServer, made: Any, told_session: list[str]
) -> None:
    found = []
    for way, session in (
        (contextlib.nullcontext(), hr.session()),
        (the_long_way(), hr.session()),
        (contextlib.nullcontext(), requests.Session()),
    ):
        with way, session:
            for one in told_session:
                SETTINGS[one](session)
            found.append(in_turn(session, server, made))
    for ours, by_requests, stock in zip(*found, strict=True):
        assert differences(ours, by_requests) == []
        # Where a connection has broken, a governed call is sent again.
        if all(isinstance(answer, Answer) for _, _, _, answer, _ in made):
            assert differences(*without_texts(ours, stock)) == []


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"HTTP_PROXY": "http://127.0.0.1:{refused}"}, id="a proxy"),
        pytest.param({"HTTP_PROXY": "http://127.0.0.1:1", "NO_PROXY": "127.0.0.1"}, id="a proxy for others"),
        pytest.param({"all_proxy": "http://127.0.0.1:{refused}"}, id="one for all"),
        pytest.param({"REQUESTS_CA_BUNDLE": "/nowhere.pem"}, id="a bundle"),
        pytest.param({"NETRC": "{netrc}"}, id="a netrc, named"),
        pytest.param({"HOME": "{home}"}, id="a netrc at home"),
        pytest.param({"HOME": None}, id="no home"),
    ],
)
@pytest.mark.parametrize("trusts", [True, False], ids=["trusted", "not trusted"])
def test_the_environment_holds_for_a_session_of_ours(
    hr: headrace.Headrace,
    server: FaultServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str | None],
    trusts: bool,
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login alice password secret\n")
    netrc.chmod(0o600)
    with FaultServer() as gone:
        refused = gone.port
    for name, value in environment.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value.format(home=tmp_path, netrc=netrc, refused=refused))
    made = [
        ("GET", "/a", {}, Answer(), True),
        ("POST", "/a", {"json": 1}, Answer(302, headers=(("Location", "/v2/b"),)), True),
    ]
    with hr.session() as ours, requests.Session() as stock:
        ours.trust_env = stock.trust_env = trusts
        by_ours, by_stock = in_turn(ours, server, made), in_turn(stock, server, made)
    for one, other in zip(by_ours, by_stock, strict=True):
        assert differences(*without_texts(one, other)) == []


ELSEWHERE = {"ftp": "http://127.0.0.1:1"}


@pytest.mark.parametrize(
    ("setting", "keywords"),
    [
        pytest.param({}, {"proxies": ELSEWHERE}, id="proxies of the call"),
        pytest.param({}, {"hooks": {"response": note_it}}, id="hooks of the call"),
        pytest.param({}, {"cert": __file__}, id="a certificate of the call"),
        pytest.param({}, {"verify": False}, id="no trust of the call"),
        pytest.param({}, {"verify": "/nowhere.pem"}, id="a bundle of the call"),
        pytest.param({"proxies": ELSEWHERE}, {}, id="proxies"),
        pytest.param({"cert": __file__}, {}, id="a certificate"),
        pytest.param({"verify": False}, {}, id="no trust"),
        pytest.param({"verify": "/nowhere.pem"}, {}, id="a bundle"),
        pytest.param({"hooks": {"response": [note_it]}}, {}, id="hooks"),
    ],
)
def test_what_only_requests_knows_to_do_goes_through_requests(
    hr: headrace.Headrace, server: FaultServer, setting: dict[str, Any], keywords: dict[str, Any]
) -> None:
    url = f"{server.url}/v2/a"
    with hr.session() as session:
        assert type(session.get(url)) is DirectResponse
        for name, value in setting.items():
            setattr(session, name, value)
        answer = session.get(url, **keywords)

    assert type(answer) is not DirectResponse
    has_hooks = "hooks" in {**setting, **keywords}
    assert ("X-Hooked" in answer.headers) is has_hooks


def test_a_url_that_is_no_text_goes_through_requests(hr: headrace.Headrace, server: FaultServer) -> None:
    """Of libraries for URLs, as requests takes it."""

    class Url:
        def __str__(self) -> str:
            return f"{server.url}/v2/a"

    with hr.session() as session:
        assert session.get(Url()).url == f"{server.url}/v2/a"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "keywords", "sent"),
    [
        pytest.param({}, {"cookies": {"a": "1"}}, ("Cookie", "a=1"), id="cookies of the call"),
        pytest.param({}, {"auth": ("a", "b")}, ("Authorization", "Basic YTpi"), id="credentials of the call"),
        pytest.param({"auth": ("a", "b")}, {}, ("Authorization", "Basic YTpi"), id="credentials"),
        pytest.param({}, {"auth": sign}, ("X-Signed", "yes"), id="a signer"),
        pytest.param({"headers": {"X-Only": "1"}}, {}, ("X-Only", "1"), id="headers that are a dict"),
    ],
)
def test_what_requests_adds_to_a_request_is_sent(
    hr: headrace.Headrace,
    server: FaultServer,
    setting: dict[str, Any],
    keywords: dict[str, Any],
    sent: tuple[str, str],
) -> None:
    with hr.session() as session:
        for name, value in setting.items():
            setattr(session, name, value)
        answer = session.get(f"{server.url}/v2/a", **keywords)

    assert server.requests[-1].header(sent[0]) == sent[1]
    assert ("X-Hooked" in answer.headers) is (keywords.get("auth") is sign)


def test_cookies_are_kept_from_call_to_call(hr: headrace.Headrace, server: FaultServer) -> None:
    with hr.session() as session:
        server.next(Answer(headers=(("set-COOKIE", "a=1"),)))
        session.get(f"{server.url}/v2/a")
        session.get(f"{server.url}/v2/a")
        assert server.requests[-1].header("Cookie") == "a=1"
        session.cookies.clear()
        session.get(f"{server.url}/v2/a")
        assert server.requests[-1].header("Cookie") is None


def test_files_and_the_params_of_a_session_are_sent(hr: headrace.Headrace, server: FaultServer) -> None:
    with hr.session() as session:
        session.post(f"{server.url}/v2/a", files={"f": b"content"})
        assert b"content" in server.requests[-1].body
        session.params = {"of": "session"}
        session.get(f"{server.url}/v2/a")
        assert server.requests[-1].target == "/v2/a?of=session"


def test_a_session_that_streams_leaves_the_body_to_its_reader(
    hr: headrace.Headrace, server: FaultServer
) -> None:
    with hr.session() as session:
        session.stream = True
        answer = session.get(f"{server.url}/v2/a")
        assert answer._content_consumed is False
        assert answer.content == b"ok"


def test_a_host_that_requests_refuses_is_refused(hr: headrace.Headrace) -> None:
    with hr.session() as session, pytest.raises(requests.exceptions.InvalidURL):
        session.get("http://.host/a")


def test_headers_that_a_session_changes_hold_from_the_next_call_on(
    hr: headrace.Headrace, server: FaultServer
) -> None:
    """What was made of them is kept from call to call."""
    url, found = f"{server.url}/v2/a", []
    with hr.session() as session, hr.session() as other:
        for value in ("1", "2", None):
            if value is not None:
                session.headers["X-It"] = value
            else:
                del session.headers["X-It"]
            for one in (session, session, other):
                one.get(url)
                found.append(server.requests[-1].header("X-It"))
    assert found == ["1", "1", None, "2", "2", None, None, None, None]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        pytest.param({}, True, id="nothing"),
        pytest.param(
            {"REQUESTS_CA_BUNDLE": "/a.pem", "CURL_CA_BUNDLE": "/b.pem"}, "/a.pem", id="two bundles"
        ),
        pytest.param({"CURL_CA_BUNDLE": "/b.pem"}, "/b.pem", id="curl's bundle"),
        pytest.param({"REQUESTS_CA_BUNDLE": ""}, True, id="an empty bundle"),
        pytest.param({"NETRC": ""}, None, id="a netrc, named"),
        pytest.param({"Https_Proxy": ""}, None, id="a proxy, however it is written"),
        pytest.param({"HOME": "{home}/.of"}, None, id="a .netrc"),
        pytest.param({"HOME": "{home}/_of"}, None, id="a _netrc"),
        pytest.param({"HOME": None}, None, id="no home"),
    ],
)
def test_what_the_environment_says_is_read_as_requests_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str | None], said: object
) -> None:
    for first in "._":
        (tmp_path / f"{first}of").mkdir()
        (tmp_path / f"{first}of" / f"{first}netrc").touch()
    for name, value in environment.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value.format(home=tmp_path))

    assert verify_of_environment() == said


def test_requests_own_ways_to_ask_the_environment_may_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as replaced:
        replaced.setattr(requests.utils, "getproxies", dict)
        assert verify_of_environment() is None
    with monkeypatch.context() as replaced:
        replaced.setattr(requests.utils, "NETRC_FILES", ("other",))
        assert verify_of_environment() is None
    assert verify_of_environment() is True


def test_a_session_that_does_not_trust_the_environment_does_not_ask_it(
    hr: headrace.Headrace, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with hr.session() as session:
        session.trust_env = False
        assert type(session.get(f"{server.url}/v2/a")) is DirectResponse


def test_retries_of_the_adapter_s_own_are_made(hr: headrace.Headrace, server: FaultServer) -> None:
    url = f"{server.url}/v2/a"
    with hr.session() as session:
        adapter: Any = session.get_adapter(url)
        adapter.max_retries = Retry(2, status_forcelist=[404], backoff_factor=0)
        try:
            server.next(Answer(404))
            assert session.get(url).status_code == 200
        finally:
            adapter.max_retries = Retry(0, read=False)


class Seen(Exception):
    """What was put in place of a function of requests was entered."""


def is_seen(*args: Any, **kw: Any) -> Any:
    raise Seen


@pytest.mark.parametrize("way", ["handle", "session"])
@pytest.mark.parametrize(
    "replaced",
    [
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
        pytest.param("requests.sessions.PreparedRequest", id="the name of a class"),
        pytest.param("requests.adapters.get_encoding_from_headers", id="a helper"),
    ],
)
def test_what_others_have_replaced_sees_the_call(
    hr: headrace.Headrace, server: FaultServer, monkeypatch: pytest.MonkeyPatch, way: str, replaced: str
) -> None:
    def call() -> requests.Response:
        if way == "handle":
            return hr.upstream("billing").get("/a", params={"q": "1"})
        with hr.session() as session:
            return session.get(f"{server.url}/v2/a", params={"q": "1"})

    assert type(call()) is DirectResponse
    with monkeypatch.context() as patch:
        patch.setattr(replaced, is_seen)
        with pytest.raises(Seen):
            call()
    assert type(call()) is DirectResponse


@pytest.mark.parametrize("way", ["handle", "session"])
@pytest.mark.parametrize("by", ["functools", "wrapt"])
@pytest.mark.parametrize(
    "name",
    ["Session.send", "HTTPAdapter.send", "HTTPAdapter.build_response", "Response.content"],
)
def test_so_does_a_wrapper_that_passes_for_what_it_wraps(
    hr: headrace.Headrace, server: FaultServer, monkeypatch: pytest.MonkeyPatch, way: str, by: str, name: str
) -> None:
    """`functools.wraps` copies our mark, too; wrapt's proxies have the class, the globals and the equality."""
    kind_name, _, method = name.partition(".")
    kind: Any = {"Session": requests.Session, "HTTPAdapter": HTTPAdapter, "Response": requests.Response}[
        kind_name
    ]
    wrapped = vars(kind)[method]
    seen: list[str] = []

    def note(original: Any, instance: Any, args: Any, kw: Any) -> Any:
        seen.append(method)
        return original(*args, **kw)

    def call() -> None:
        seen.clear()
        if way == "handle":
            hr.upstream("billing").get("/a").content  # noqa: B018
        else:
            with hr.session() as session:
                session.get(f"{server.url}/v2/a").content  # noqa: B018

    call()
    assert not seen
    inner = wrapped.fget if isinstance(wrapped, property) else wrapped

    @functools.wraps(inner)
    def wrapper(self: Any, *args: Any, **kw: Any) -> Any:
        seen.append(method)
        return inner(self, *args, **kw)

    outer: Any = wrapper
    if by == "wrapt":
        outer = pytest.importorskip("wrapt").FunctionWrapper(inner, note)
    monkeypatch.setattr(kind, method, property(outer) if isinstance(wrapped, property) else outer)
    call()
    assert seen
    monkeypatch.setattr(kind, method, wrapped)
    call()
    assert not seen


def test_a_subclass_and_an_object_with_methods_of_its_own_go_through_requests(
    hr: headrace.Headrace, server: FaultServer
) -> None:
    url = f"{server.url}/v2/a"
    with hr.session() as session:
        assert type(session.get(url)) is DirectResponse
        session.send = is_seen  # type: ignore[method-assign]
        with pytest.raises(Seen):
            session.get(url)
        del session.send
        session.get_adapter(url).add_headers = is_seen  # type: ignore[attr-defined]
        with pytest.raises(Seen):
            session.get(url)
        del session.get_adapter(url).add_headers  # type: ignore[attr-defined]
        session.mount(url, HTTPAdapter())
        assert not hasattr(session.get(url), "headrace")

    kind: Any = type(hr.session())
    with type("Own", (kind,), {"prepare_request": is_seen})() as own:
        own.mount("http://", hr.session().get_adapter(url))
        with pytest.raises(Seen):
            own.get(url)


def test_the_answer_is_a_response_to_all_who_take_it_apart(
    hr: headrace.Headrace, server: FaultServer
) -> None:
    server.next(Answer(body="é".encode(), headers=(("Content-Type", "text/plain; charset=utf-8"),)))
    answer = hr.upstream("billing").get("/a")

    assert isinstance(answer, requests.Response)
    assert type(answer).__name__ == "Response"
    for copied in (
        copy.copy(answer),
        pickle.loads(pickle.dumps(answer)),
        pickle.loads(pickle.dumps(answer, 0)),
    ):
        assert type(copied) is requests.Response
        assert (copied.text, copied.status_code, copied.url) == ("é", 200, answer.url)
        assert copied.request.method == "GET"
    answer.headers["Content-Type"] = "text/plain; charset=latin-1"
    assert answer.encoding == "utf-8"  # requests has looked before the caller could
    assert not hasattr(answer, "unheard_of")
    with pytest.raises(AttributeError, match="'Response' object has no attribute 'unheard_of'"):
        answer.unheard_of  # noqa: B018
    answer.raw = None
    assert answer.reason == "OK"
    assert answer.cookies is answer.cookies
    assert answer.request is answer.request
    assert {"headers", "cookies", "history", "elapsed", "request"} <= set(dir(answer))
    assert list(answer.iter_content(1)) == [b"\xc3", b"\xa9"]


def test_two_threads_that_touch_an_answer_at_once_get_the_same(hr: headrace.Headrace) -> None:
    names = ("headers", "encoding", "history", "request", "cookies")
    for _ in range(20):
        answer = hr.upstream("billing").get("/a")
        barrier = threading.Barrier(4)

        def touch(answer: Any = answer, barrier: threading.Barrier = barrier) -> list[int]:
            barrier.wait()
            return [id(getattr(answer, name)) for name in names]

        with ThreadPoolExecutor(4) as threads:
            found = [one.result() for one in [threads.submit(touch) for _ in range(4)]]
        assert found == [found[0]] * 4
