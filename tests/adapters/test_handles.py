"""Calls by name, through requests and through urllib3."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import requests
import responses
import urllib3

import headrace
from support.faultserver import Answer, Break, FaultServer, Silence
from support.governed import reason_of, rules, running

FAST = "    retry: {backoff: {base: 1ms, throttled: 1ms}}\n"


@pytest.mark.parametrize(
    ("path", "target"),
    [
        pytest.param("/invoices/7", "/v2/invoices/7", id="a path"),
        pytest.param("invoices/7", "/v2/invoices/7", id="without a slash"),
        pytest.param("", "/v2", id="nothing"),
        pytest.param("/", "/v2/", id="the base itself"),
        pytest.param("?q=1", "/v2/?q=1", id="a query only"),
        pytest.param("/a?next=http://evil.test/", "/v2/a?next=http://evil.test/", id="a URL in the query"),
        pytest.param("/a:b@c", "/v2/a:b@c", id="what looks like a user"),
    ],
)
def test_a_path_is_appended_to_the_base(tmp_path: Path, path: str, target: str) -> None:
    with FaultServer() as server, running(tmp_path, rules(f"{server.url}/v2")) as hr:
        hr.upstream("billing").get(path)
        hr.upstream("billing").urlopen("GET", path)

        assert [request.target.replace("/v2?", "/v2/?") for request in server.requests] == [target, target]


def test_dots_that_stay_below_the_base_are_allowed(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(f"{server.url}/v2")) as hr:
        hr.upstream("billing").get("/a/../b")

        assert server.requests[0].target == "/v2/b"


@pytest.mark.parametrize(
    "path",
    [
        "http://evil.test/a",
        "HTTPS://evil.test",
        "//evil.test/a",
        "/../admin",
        "/a/../../admin",
        "/%2e%2e/admin",
        "/%2E./admin",
        "/..%2fadmin",
        "/a b",
        "/a\r\nX-Injected: 1",
        "/\\evil.test",
        "\\\\evil.test",
    ],
)
def test_what_leaves_the_base_is_refused(tmp_path: Path, path: str) -> None:
    with FaultServer() as server, running(tmp_path, rules(f"{server.url}/v2")) as hr:
        for call in (hr.upstream("billing").get, lambda path: hr.upstream("billing").urlopen("GET", path)):
            with pytest.raises(ValueError):
                call(path)
        assert server.requests == []


@pytest.mark.parametrize("verb", ["get", "options", "head", "post", "put", "patch", "delete"])
def test_each_verb_sends_its_method(tmp_path: Path, verb: str) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url)) as hr:
        response = getattr(hr.upstream("billing"), verb)("/x")

        assert isinstance(response, requests.Response)
        assert response.headrace.upstream == "billing"
        assert server.requests[0].method == verb.upper()


def test_cookies_of_one_caller_are_not_sent_for_another(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url)) as hr:
        server.always(Answer(headers=(("Set-Cookie", "session=alice"),)))

        assert hr.upstream("billing").get("/").cookies["session"] == "alice"
        hr.upstream("billing").get("/")

        assert server.requests[1].header("Cookie") is None


def test_a_redirect_that_leaves_the_upstream_is_not_governed_by_its_rules(tmp_path: Path) -> None:
    with (
        FaultServer() as server,
        FaultServer() as other,
        running(tmp_path, rules(server.url, "    headers: {X-Secret: s}\n")) as hr,
    ):
        server.next(Answer(302, headers=(("Location", other.url),)))

        response = hr.upstream("billing").get("/")

        assert response.url == other.url
        assert other.requests[0].header("X-Secret") is None


def test_a_close_ends_the_connections_that_a_redirect_has_led_to(tmp_path: Path) -> None:
    with FaultServer() as server, FaultServer() as other:
        with running(tmp_path, rules(server.url)) as hr:
            server.next(Answer(302, headers=(("Location", other.url),)))
            hr.upstream("billing").get("/")
            assert other.open_connections == 1
        other.wait_for(lambda: not other.open_connections)


def test_a_redirect_to_another_upstream_of_the_file_is_governed_by_that_ones_rules(tmp_path: Path) -> None:
    with FaultServer() as server, FaultServer() as other:
        text = (
            f"upstreams:\n  billing: {{base_url: '{server.url}'}}\n  inventory: {{base_url: '{other.url}'}}\n"
        )
        with running(tmp_path, text) as hr:
            server.next(Answer(302, headers=(("Location", other.url),)))

            response = hr.upstream("billing").get("/")

            assert response.headrace.upstream == "inventory"


def test_urlopen_returns_urllib3s_response_with_the_record(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, FAST)) as hr:
        server.next(Answer(503, close=True), Break("request"))

        response = hr.upstream("billing").urlopen("GET", "/a", headers={"X-Mine": "1"})

        assert isinstance(response, urllib3.HTTPResponse)
        assert (response.status, response.data) == (200, b"ok")
        assert [attempt.outcome for attempt in response.headrace.attempts] == ["5xx", "reset", "2xx"]
        assert all(request.header("X-Mine") == "1" for request in server.requests)


def test_urlopen_raises_in_urllib3s_family(tmp_path: Path) -> None:
    body = FAST + "    pool: {max_connections: 1, when_full: reject}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        handle = hr.upstream("billing")
        held = handle.urlopen("GET", "/", preload_content=False)
        with pytest.raises(urllib3.exceptions.EmptyPoolError) as full:
            handle.urlopen("GET", "/")
        assert isinstance(full.value, headrace.PoolRejected)
        held.close()
        server.always(Break("request"))
        with pytest.raises(urllib3.exceptions.ProtocolError) as broken:
            handle.urlopen("GET", "/")
        assert reason_of(broken.value) == "attempts"
        for _ in range(4):
            with pytest.raises(urllib3.exceptions.ProtocolError):
                handle.urlopen("GET", "/")
        with pytest.raises(urllib3.exceptions.HTTPError) as refused:
            handle.urlopen("GET", "/")
        assert isinstance(refused.value, headrace.CircuitOpenError)


def test_urlopen_honours_a_timeout_of_the_call(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url)) as hr:
        server.always(Silence())

        with pytest.raises(urllib3.exceptions.ReadTimeoutError):
            hr.upstream("billing").urlopen("POST", "/", body=b"x", timeout=0.1)


def test_a_streamed_urlopen_failure_is_kept_or_replaced(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, FAST)) as hr:
        server.next(Answer(503, body=b"busy"))
        again = hr.upstream("billing").urlopen("GET", "/", preload_content=False)
        assert again.read() == b"ok"
        server.always(Answer(503, body=b"busy"))
        kept = hr.upstream("billing").urlopen("GET", "/", preload_content=False)
        assert (kept.status, kept.read()) == (503, b"busy")
        kept.close()
        assert hr.snapshot.upstream("billing").endpoint.pool.leases.view().inuse == 0


def test_a_file_is_sent_again_from_where_it_began(tmp_path: Path) -> None:
    body = "    retry: {backoff: {base: 1ms, throttled: 1ms}, methods: [PUT]}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        server.next(Answer(503))
        file = io.BytesIO(b"skipped|sent")
        file.seek(8)

        hr.upstream("billing").urlopen("PUT", "/", body=file, headers={"Content-Length": "4"})

        assert [request.body for request in server.requests] == [b"sent", b"sent"]


def test_released_too_early_a_connection_is_not_used_again(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url)) as hr:
        handle = hr.upstream("billing")
        server.next(Answer(body=b"x" * 1_000_000))
        handle.urlopen("GET", "/", preload_content=False).release_conn()

        assert handle.urlopen("GET", "/").data == b"ok"


def test_the_environments_proxies_and_netrc_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    with FaultServer() as server, running(tmp_path, rules(server.url)) as hr:
        assert hr.upstream("billing").get("/").status_code == 200


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with (
        running(tmp_path, rules("http://a.test")) as hr,
        pytest.raises(headrace.UnknownUpstream, match=r'"biling" is not in .*; it has: billing'),
    ):
        hr.upstream("biling")


@pytest.mark.parametrize("mode", ["off", "observe"])
def test_an_upstream_that_is_not_enforced_is_still_reached_by_name_with_its_headers(
    tmp_path: Path, mode: str
) -> None:
    body = f"    mode: {mode}\n    headers: {{X-Team: orders}}\n"
    with FaultServer() as server, running(tmp_path, rules(f"{server.url}/v2", body)) as hr:
        assert hr.upstream("billing").get("/a").status_code == 200
        assert hr.upstream("billing").urlopen("GET", "/a").status == 200

        assert [request.target for request in server.requests] == ["/v2/a", "/v2/a"]
        assert {request.header("X-Team") for request in server.requests} == {"orders"}


def test_mocks_of_requests_reach_calls_by_name(tmp_path: Path) -> None:
    with running(tmp_path, rules("http://billing.internal")) as hr, responses.RequestsMock() as mock:
        mock.get("http://billing.internal/a", body="mocked")
        mock.get("http://billing.internal/b", body="mocked")

        assert hr.upstream("billing").get("/a").text == "mocked"
        with hr.session() as session:
            assert session.get("http://billing.internal/b").text == "mocked"


def test_a_handle_of_an_instance_that_was_never_started_ends_with_close(tmp_path: Path) -> None:
    with FaultServer() as server:
        (tmp_path / "upstreams.yaml").write_text(rules(server.url))
        hr = headrace.Headrace(tmp_path / "upstreams.yaml")
        assert hr.upstream("billing").get("/").status_code == 200
        hr.close()
        server.wait_for(lambda: server.open_connections == 0)
        for act in (lambda: hr.upstream("billing").get("/"), hr.reload):
            with pytest.raises(headrace.HeadraceError, match="closed"):
                act()


@pytest.mark.parametrize(
    "path",
    [
        "/..;/admin",
        "/a/..;x/..;/admin",
        "/%252e%252e/admin",
        "/..%252fadmin",
        "/..%5cadmin",
        "/a//../../admin",
    ],
)
def test_what_a_server_may_read_as_a_step_out_of_the_base_is_refused(tmp_path: Path, path: str) -> None:
    """failures.md 57: the headers of the upstream would go along."""
    with FaultServer() as server, running(tmp_path, rules(f"{server.url}/v2")) as hr:
        for call in (hr.upstream("billing").get, lambda path: hr.upstream("billing").urlopen("GET", path)):
            with pytest.raises(ValueError, match="leaves"):
                call(path)
        hr.upstream("billing").get("/a;x=1/..;/b%2fc")  # stays below, by every reading
        assert [request.target for request in server.requests] == ["/v2/a;x=1/..;/b%2Fc"]


def again(session: requests.Session, how: str) -> requests.Session:
    """*session* as it comes out of a pickle, or a copy."""
    return pickle.loads(pickle.dumps(session)) if how == "pickle" else getattr(copy, how)(session)  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", ["pickle", "deepcopy", "copy"])
def test_a_session_survives_being_copied_and_pickled(tmp_path: Path, how: str) -> None:
    body = "    headers: {Accept: application/json, User-Agent: shop/7}\n    retry: {backoff: {base: 1ms}}\n"
    text = rules("{}", body, more="install: {requests: false}\n")
    with FaultServer() as server, running(tmp_path, text.replace("{}", server.url, 1)) as hr:
        session = hr.session()
        session.headers["X-Own"] = "kept"
        session.cookies.set("a", "b")
        twin = again(again(session, how), how)
        server.next(Break(at="head"))
        answer = twin.get(server.url)
        assert len(answer.headrace.attempts) == 2
        sent = server.requests[-1]
        assert (sent.header("X-Own"), sent.header("Cookie")) == ("kept", "a=b")
        assert (sent.header("Accept"), sent.header("User-Agent")) == ("application/json", "shop/7")
        assert session.get(server.url).headrace.upstream == "billing"
        assert hr.status()["upstreams"]["billing"]["requests"] == {"2xx": 2}
        with FaultServer() as other:  # a host that the file does not name
            assert twin.get(other.url).status_code == 200


def test_a_pickled_session_finds_the_instance_of_its_files(tmp_path: Path) -> None:
    """In another process, or after a restart in this one: the same files first, else the only one, else it says so."""
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    with FaultServer() as server, FaultServer() as elsewhere:
        text, other = rules(server.url), rules(elsewhere.url, name="other")
        with running(tmp_path / "one", text) as hr:
            pickled = pickle.dumps(hr.session())
        with pytest.raises(headrace.HeadraceError, match=r"upstreams\.yaml, and none of these files runs"):
            pickle.loads(pickled).get(server.url)
        with running(tmp_path / "other", other):
            session = pickle.loads(pickled)
            assert session.get(elsewhere.url).headrace.upstream == "other"
            assert not hasattr(session.get(server.url), "headrace")
            with running(tmp_path / "one", text):
                session = pickle.loads(pickled)
                assert session.get(server.url).headrace.upstream == "billing"


def test_a_session_goes_to_a_process_that_has_its_own_instance(tmp_path: Path) -> None:
    code = (
        "import sys, pickle, headrace\n"
        "session = pickle.load(sys.stdin.buffer)\n"
        "with headrace.install(sys.argv[1]):\n"
        "    print(session.get(sys.argv[2]).headrace.upstream)\n"
    )
    with FaultServer() as server, running(tmp_path, rules(server.url)) as hr:
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "upstreams.yaml"), server.url],
            input=pickle.dumps(hr.session()),
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.stdout == b"billing\n", done.stderr.decode()
