"""No secret is in what a crash reporter takes along: tracebacks with locals of every way that a call fails."""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import json
import pickle
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import requests
import trustme
import urllib3
from requests.adapters import HTTPAdapter
from urllib3._collections import HTTPHeaderDict
from urllib3.util.retry import Retry

import headrace
from headrace.engine.surface import Substitute
from headrace.policy.secret import Secret
from headrace.transport.attempt import current_attempt
from headrace.transport.stock.pool import with_defaults
from headrace.transport.wire.response import WholeResponse
from support.faultserver import Answer, Break, FaultServer, Request, Silence, server_context
from support.governed import running
from support.waiting import wait_until

OF_FILE = "token-of-the-file-5d1f"
OF_CALL = "token-of-the-call-9a3c"

HEADERS = f"    headers: {{X-Partner: {OF_FILE}, X-Other: 'plain {OF_FILE}'}}\n"
FAST = "    retry: {backoff: {base: 1ms, max: 2ms}}\n"
SHORT = "    timeouts: {deadline: 20s, attempt: 150ms, connect: 100ms, read: 150ms, acquire: 50ms}\n"

By = Callable[..., object]


def own_headers() -> dict[str, str]:
    return {"Authorization": f"Bearer {OF_CALL}"}


def by_requests(hr: headrace.Headrace, url: str, **kw: Any) -> object:
    with requests.Session() as session:
        return session.post(url + "/a", data=b"x", headers=own_headers(), **kw)


def by_requests_with_retries(hr: headrace.Headrace, url: str, **kw: Any) -> object:
    with requests.Session() as session:
        session.mount("http", HTTPAdapter(max_retries=Retry(1, status_forcelist=[503], backoff_factor=0)))
        return session.get(url + "/a", headers=own_headers(), **kw)


def by_session(hr: headrace.Headrace, url: str, **kw: Any) -> object:
    with hr.session() as session:
        return session.get(url + "/a", headers=own_headers(), stream=True, **kw).content


def by_handle(hr: headrace.Headrace, url: str, **kw: Any) -> object:
    return hr.upstream("billing").get("/a", headers=own_headers(), **kw)


def by_handle_urlopen(hr: headrace.Headrace, url: str, **kw: Any) -> object:
    return hr.upstream("billing").urlopen("GET", "/a", headers=HTTPHeaderDict(own_headers()), **kw)


def by_urllib3(hr: headrace.Headrace, url: str, **kw: Any) -> object:
    with urllib3.PoolManager() as manager:
        return manager.request("GET", url + "/a", headers=own_headers(), **kw)


def by_urllib3_with_retries(hr: headrace.Headrace, url: str, **kw: Any) -> object:
    with urllib3.PoolManager(headers=own_headers()) as manager:
        retries = Retry(1, status_forcelist=[503], backoff_factor=0)
        return manager.connection_from_url(url).request(
            "GET", "/a", headers=manager.headers, retries=retries, **kw
        )


WAYS = [
    by_requests,
    by_requests_with_retries,
    by_session,
    by_handle,
    by_handle_urlopen,
    by_urllib3,
    by_urllib3_with_retries,
]


def silent(server: FaultServer) -> None:
    server.always(Silence())


def resets(server: FaultServer) -> None:
    server.always(Break("head"))


def breaks_the_body(server: FaultServer) -> None:
    server.always(Break("body"))


def is_gone(server: FaultServer) -> None:
    server.refuse()


def circles(server: FaultServer) -> None:
    server.always(Answer(302, headers=(("Location", "/a"),)))


def is_unwell(server: FaultServer) -> None:
    server.always(Answer(503))


def is_well(server: FaultServer) -> None:
    server.always(Answer())


FAILURES = {
    "circuit open": (is_well, FAST + "    circuit_breaker: {mode: forced_open}\n"),
    "connect refused": (is_gone, FAST + SHORT),
    "reset": (resets, FAST + SHORT),
    "broken body": (breaks_the_body, FAST + SHORT),
    "timeout": (silent, FAST + SHORT),
    "deadline": (silent, FAST + SHORT.replace("20s", "220ms")),
    "too many redirects": (circles, FAST),
    "bad status": (is_unwell, FAST),
    "fallback fails": (
        is_gone,
        FAST + "    circuit_breaker: {mode: forced_open}\n    fallback: {upstream: spare}\n",
    ),
    "pool timeout": (is_well, FAST + SHORT + "    pool: {max_connections: 1}\n"),
    "pool rejected": (is_well, FAST + "    pool: {max_connections: 1, when_full: reject}\n"),
}


def configuration(url: str, body: str, mode: str) -> str:
    spare = f"  spare:\n    base_url: {url}/spare\n{HEADERS}" if "spare" in body else ""
    text = f"    mode: {mode}\n" if mode != "enforce" else ""
    install = "install: {urllib3: true}\n"
    return f"version: 1\n{install}upstreams:\n  billing:\n    base_url: {url}\n{HEADERS}{text}{body}{spare}"


@contextlib.contextmanager
def failing(tmp_path: Path, failure: str, mode: str) -> Iterator[tuple[headrace.Headrace, str]]:
    behave, body = FAILURES[failure]
    with FaultServer() as server, running(tmp_path, configuration(server.url, body, mode)) as hr:
        behave(server)
        with contextlib.ExitStack() as held:
            if failure.startswith("pool") and mode == "enforce":
                held.callback(hr.upstream("billing").urlopen("GET", "/", preload_content=False).close)
            yield hr, server.url


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def our_frames(error: BaseException) -> Iterator[FrameType]:
    for one in chain(error):
        for frame, _ in traceback.walk_tb(one.__traceback__):
            if frame.f_globals["__name__"].startswith("headrace."):
                yield frame


KNOWN_KEYS = {"authorization", "proxy-authorization", "cookie", "auth", "password"}


def shipped(value: object) -> object:
    """What sentry's scrubber leaves with `recursive=True`: it knows keys of mappings, and no pairs."""
    if isinstance(value, Mapping):
        return {
            key: "[Filtered]" if str(key).lower() in KNOWN_KEYS else shipped(one)
            for key, one in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [shipped(one) for one in value]
    return repr(value)


COPIES_HEADERS = "headers = HTTPHeaderDict(headers)\n            headers.update" in inspect.getsource(
    urllib3.HTTPConnectionPool.urlopen
)


def is_copy_of_old_urllib3(line: str) -> bool:
    """Whether it shows the copy of the headers that old versions make themselves: its repr joins the values.

    Sentry, which takes a mapping by its items, sees `***` there as well.
    """
    return COPIES_HEADERS and line.strip().startswith("headers = HTTPHeaderDict(")


def assert_nothing_leaks(error: BaseException) -> None:
    told = traceback.TracebackException.from_exception(error, capture_locals=True)
    told_lines = "".join(told.format()).splitlines()
    assert [line for line in told_lines if OF_FILE in line and not is_copy_of_old_urllib3(line)] == []
    for frame in our_frames(error):
        for name, value in frame.f_locals.items():
            assert OF_CALL not in str(shipped(value)), (frame.f_code.co_qualname, name)
            assert OF_FILE not in str(shipped(value)), (frame.f_code.co_qualname, name)


@pytest.mark.parametrize("mode", ["enforce", "observe"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("failure", FAILURES)
def test_no_secret_is_among_the_locals_of_a_failed_call(
    tmp_path: Path, failure: str, way: By, mode: str
) -> None:
    """failures.md 65: of the file nowhere, of the call not in our frames where no scrubber finds it."""
    limit = {"timeout": 0.15} if mode == "observe" else {}  # where the rules' own limits do not hold
    with failing(tmp_path, failure, mode) as (hr, url):
        caught = None
        try:
            with contextlib.suppress(AttributeError):
                way(hr, url, **limit).raise_for_status()  # type: ignore[attr-defined]
        except Exception as error:
            caught = error
        if caught is not None:
            assert_nothing_leaks(caught)
        else:
            assert mode == "observe" or failure in ("bad status", "too many redirects")


def by_handle_with_a_dict(hr: headrace.Headrace, url: str, **kw: Any) -> object:
    return hr.upstream("billing").urlopen("POST", "/a", headers=own_headers(), body=b"x", **kw)


@pytest.mark.parametrize("way", [by_handle, by_handle_with_a_dict, by_urllib3])
@pytest.mark.parametrize("failure", ["reset", "broken body", "timeout", "deadline", "bad status"])
def test_nor_of_one_that_began_over_a_warm_connection(tmp_path: Path, failure: str, way: By) -> None:
    """failures.md 65."""
    behave, body = FAILURES[failure]
    body += "    retry: {max_attempts: 1}\n" if "retry" not in body else ""
    with FaultServer() as server, running(tmp_path, configuration(server.url, body, "enforce")) as hr:

        def is_warm() -> bool:
            with contextlib.suppress(
                OSError, urllib3.exceptions.HTTPError
            ):  # short limits, and a machine that is busy
                way(hr, server.url)
                return isinstance(hr.upstream("billing").urlopen("GET", "/"), WholeResponse)
            return False

        wait_until(is_warm)
        behave(server)
        caught = None
        try:
            way(hr, server.url).raise_for_status()  # type: ignore[attr-defined]
        except AttributeError:
            pass
        except Exception as error:
            caught = error
        if caught is not None:
            assert_nothing_leaks(caught)
        else:
            assert failure == "bad status"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", ["enforce", "observe"])
def test_no_secret_is_among_the_locals_of_a_failed_handshake(tmp_path: Path, way: By, mode: str) -> None:
    """failures.md 65."""
    with (
        FaultServer(tls=server_context(trustme.CA())) as server,
        running(tmp_path, configuration(server.url, FAST, mode)) as hr,
    ):
        with pytest.raises((requests.exceptions.SSLError, urllib3.exceptions.HTTPError)) as caught:
            way(hr, server.url)
        assert_nothing_leaks(caught.value)


def test_the_failures_above_are_failures(tmp_path: Path) -> None:
    """Else nothing would be looked at."""
    kinds = set()
    for number, (failure, way) in enumerate(itertools.product(FAILURES, WAYS)):
        folder = tmp_path / str(number)
        folder.mkdir()
        with failing(folder, failure, "enforce") as (hr, url):
            try:
                way(hr, url)
            except Exception as error:
                kinds.add((failure, type(error).__name__))
    assert {failure for failure, _ in kinds} == set(FAILURES), kinds


def test_what_is_secret_is_sent_as_it_is(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, configuration(server.url, FAST, "enforce")) as hr:
        for way in WAYS:
            way(hr, server.url)
        hr.upstream("billing").get("/b")
        assert {one.header("X-Partner") for one in server.requests} == {OF_FILE}
        assert {one.header("X-Other") for one in server.requests} == {f"plain {OF_FILE}"}
        for one in (hr, hr.upstream("billing"), hr.snapshot, hr.snapshot.configuration, hr.status()):
            assert OF_FILE not in repr(one)
        plan = hr.snapshot.configuration.upstreams["billing"]
        again = pickle.loads(pickle.dumps(plan.headers))
        assert again == plan.headers == (("X-Partner", OF_FILE), ("X-Other", f"plain {OF_FILE}"))
        assert OF_FILE not in repr(again)
        assert OF_FILE not in repr(plan.headers)


def test_an_attempt_shows_no_header(tmp_path: Path) -> None:
    """failures.md 65: a dataclass made the repr."""
    seen: list[str] = []

    def look(request: Request) -> Answer:
        return Answer()

    class Looking(HTTPAdapter):
        __qualname__ = "Looking"  # the repr has it, and this test's own name says "header"

        def add_headers(self, request: Any, **kw: Any) -> None:
            seen.append(repr(current_attempt.get()))

    with FaultServer() as server, running(tmp_path, configuration(server.url, FAST, "enforce")):
        server.always(look)
        with requests.Session() as session:
            session.mount("http://", Looking())
            session.get(server.url)
    assert seen
    assert seen[0].startswith("Attempt(")
    assert OF_FILE not in seen[0]
    assert "header" not in seen[0]


def test_a_secret_is_text_but_for_its_repr() -> None:
    """failures.md 65."""
    secret = Secret(OF_FILE)
    assert (secret, str(secret), f"{secret}", secret.encode(), secret + "") == (
        (OF_FILE,) * 3 + (OF_FILE.encode(), OF_FILE)
    )
    assert json.loads(json.dumps({"a": secret})) == {"a": OF_FILE}
    assert {secret: 1} == {OF_FILE: 1}
    for again in (pickle.loads(pickle.dumps(secret)), copy.copy(secret), copy.deepcopy(secret)):
        assert (again, repr(again)) == (OF_FILE, "'***'")
    for shown in (repr(secret), ascii(secret), f"{secret!r}", repr((secret,)), repr({"a": secret})):
        assert OF_FILE not in shown


def test_headers_with_a_secret_among_them_show_names_only() -> None:
    """failures.md 65: urllib3's HTTPHeaderDict joins values, which makes plain text of them."""
    for own in (
        {},
        {"Accept": "x"},
        HTTPHeaderDict({"Accept": "x"}),
        requests.structures.CaseInsensitiveDict(),
    ):
        merged = with_defaults(own, (("X-Partner", Secret(OF_FILE)),))
        assert merged["x-partner" if not isinstance(merged, dict) else "X-Partner"] == OF_FILE
        assert OF_FILE not in repr(merged)
    several = HTTPHeaderDict([("A", "1"), ("A", "2")])
    assert list(with_defaults(several, (("B", "3"),)).items()) == [("A", "1"), ("A", "2"), ("B", "3")]
    assert OF_CALL not in repr(Substitute(object(), object(), own_headers()))  # type: ignore[arg-type]
