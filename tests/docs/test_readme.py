"""README.md does what it says: every block is run or has a reason why not, every table agrees with the code."""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3
from prometheus_client import REGISTRY
from requests.adapters import HTTPAdapter
from starlette.applications import Starlette
from starlette.testclient import TestClient
from urllib3.util.retry import Retry

import headrace
from headrace import cli
from headrace.adapters.twins import REQUESTS, URLLIB3
from headrace.config import inspect as inspect_files
from headrace.config.source.sources import KNOWN_VARIABLES
from headrace.observe import events
from headrace.observe.tracing import call_trace, otel, span_facts
from headrace.policy.decision import EndReason
from headrace.policy.outcome import FAULT_WORDS, STATUS_WORDS, Fault
from headrace.policy.plan import CountWindowPlan
from headrace.policy.record import AttemptRecord, Record
from support import tables as generated
from support.faultserver import Answer, Break, FaultServer
from support.gateways import WsgiGateway
from support.readme import README, SHOWN, assert_same, blocks, run_line, serving, shows, tables, text_of
from support.waiting import wait_until

NOT_RUN = {
    "headrace/2": "installing needs a package index; the scripts and `.ci/run` do it. Its second line is headrace/5.",
    "Development/1": "`.ci/run` runs the first with --check, and the second runs this; only that they exist is checked",
}
"""Blocks that cannot run, each with its reason."""

BILLING = "https://billing.internal"
FILE = "headrace/1"  # that of the first screen


@pytest.fixture
def upstream() -> Iterator[FaultServer]:
    """Stands in for billing.internal."""
    with FaultServer() as server:
        server.always(Answer(headers=(("Content-Type", "application/json"),), body=b'{"invoice": 7}'))
        yield server


@pytest.fixture
def folder(tmp_path: Path, upstream: FaultServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the file of the first screen in it, enforced."""
    text = text_of(FILE, {BILLING: upstream.url, "mode: observe": "mode: enforce"})
    (tmp_path / "upstreams.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(key: str, upstream: FaultServer, **names: Any) -> dict[str, Any]:
    """What the Python block *key* leaves behind, run with *names* given."""
    text = blocks()[key].text.replace(BILLING, upstream.url)
    names.setdefault("__name__", "__main__")
    exec(compile(text, f"README.md, {key}", "exec", dont_inherit=True), names)
    return names


def write(folder: Path, name: str, key: str, upstream: FaultServer) -> None:
    (folder / name).write_text(blocks()[key].text.replace(BILLING, upstream.url))


# --- The whole page -------------------------------------------------------------------------------------


def test_every_block_is_shown_by_a_test_or_has_a_reason_why_not() -> None:
    assert SHOWN & NOT_RUN.keys() == set()
    assert set(blocks()) == SHOWN | NOT_RUN.keys()


@pytest.mark.parametrize("name", ["keys", "events", "metrics"])
def test_generated_tables_are_up_to_date(name: str) -> None:
    text = README.read_text("utf-8")
    written = text.partition(f"<!-- {name}:begin -->\n")[2].partition(f"<!-- {name}:end -->")[0]
    assert written == generated.tables()[name], "renew it with: python tests/support/tables.py"


def test_first_screen_is_eight_lines_of_yaml_beginning_with_observe_and_four_to_install() -> None:
    assert len(blocks()[FILE].text.splitlines()) == 8
    assert "mode: observe" in blocks()[FILE].text
    assert len((blocks()["headrace/2"].text + blocks()["headrace/3"].text).splitlines()) == 4


def test_the_kill_switch_comes_before_everything_else() -> None:
    headings = re.findall(r"^## (.*)", README.read_text("utf-8"), flags=re.MULTILINE)
    assert headings[0] == "At three in the morning"
    assert "HEADRACE_MODE=off" in tables(headings[0])[0][1]


def test_links_lead_somewhere() -> None:
    text = README.read_text("utf-8")
    anchors = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)", text, flags=re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target[1:] in anchors if target.startswith("#") else (README.parent / target).is_file(), target


def test_every_variable_and_every_public_name_is_mentioned() -> None:
    text = README.read_text("utf-8")
    public = set(headrace.__all__) - {"HeadraceError", "UpstreamError", "Headrace"}
    assert [name for name in (*KNOWN_VARIABLES, *sorted(public)) if name not in text] == []


# --- YAML and the command line --------------------------------------------------------------------------


SOUND = [
    FILE,
    "The file/1",
    "Secrets and the environment/1",
    "The circuit breaker/1",
    "A pool that follows its load/1",
    "Deadlines of the caller/1",
]


@shows(*SOUND)
@pytest.mark.parametrize("key", SOUND)
def test_yaml_loads_without_a_finding(key: str, tmp_path: Path) -> None:
    text = blocks()[key].text.replace("/run/secrets", str(tmp_path))
    (tmp_path / "billing").write_text("Bearer x\n")
    (tmp_path / "upstreams.yaml").write_text(text)

    found = inspect_files(tmp_path / "upstreams.yaml", env={})

    assert (found.problems, found.findings, found.misspelt) == ((), (), ())
    assert found.configuration is not None
    upstreams = found.configuration.upstreams
    if key == FILE:
        assert upstreams["billing"].mode == "observe"
    elif key == "The file/1":
        reports = upstreams["billing_reports"]
        assert (reports.retry.max_attempts, reports.match, reports.timeouts.attempt_s) == (2, (), 10)
    elif key == "Secrets and the environment/1":
        assert upstreams["billing"].headers == (("Authorization", "Bearer x"),)
    elif key == "Deadlines of the caller/1":
        assert found.configuration.service.deadline is not None
        assert upstreams["billing"].propagate.deadline
    elif key == "The circuit breaker/1":
        circuit = upstreams["billing"].circuit_breaker
        assert (circuit.window, circuit.half_open.ramp_s) == (CountWindowPlan(size=200, max_age_s=60.0), 30.0)
    else:
        assert upstreams["billing"].pool.adaptive is not None


@shows("headrace/4", "headrace/5", "Life of a call/1", "Command line/1")
@pytest.mark.parametrize(
    ("key", "file", "code"),
    [
        pytest.param("headrace/5", "headrace/4", 1, id="rejected"),
        pytest.param("Life of a call/1", FILE, 0, id="explain"),
        pytest.param("Command line/1", FILE, 0, id="check"),
    ],
)
def test_commands_say_what_is_shown(key: str, file: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "upstreams.yaml").write_text(blocks()[file].text)
    command, _, shown = blocks()[key].text.partition("\n")

    answered, output = run_line(command.removeprefix("$ "), tmp_path)

    assert answered == code
    assert_same(shown, output)


@shows("Secrets and the environment/2")
def test_variables_of_the_environment_win(tmp_path: Path) -> None:
    (tmp_path / "upstreams.yaml").write_text(blocks()[FILE].text)
    exports = dict(
        line.removeprefix("export ").split("=")
        for line in blocks()["Secrets and the environment/2"].text.splitlines()
    )

    code, output = run_line(f"headrace explain {exports['HEADRACE_FILE']} {BILLING}/x", tmp_path, exports)

    assert code == 0
    assert re.search(r"timeouts\.deadline +8s +environment", output)


def test_command_table_has_every_command_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row[0].strip("`").split()[1]: row[1] for row in tables("Command line")}
    assert cli.main(["--help"]) == 0
    listed = capsys.readouterr().out.partition("commands:")[2]
    assert set(rows) == set(re.findall(r"^    ([a-z]+)", listed, flags=re.MULTILINE))
    for command, says in rows.items():
        assert cli.main([command, "--help"]) == 0
        options = set(re.findall(r"--[a-z]+", capsys.readouterr().out)) - {"--help"}
        assert options == set(re.findall(r"--[a-z]+", says)), command


# --- Wiring ---------------------------------------------------------------------------------------------


def assert_governed(get: Callable[[str], Any], upstream: FaultServer) -> None:
    """An invoice is answered, with a request id; and with a 502 problem once the upstream breaks off."""
    answer = get("/invoices/7")
    assert (answer.status_code, answer.json()) == (200, {"invoice": 7})
    assert upstream.requests[-1].header("X-Request-ID") == answer.headers["X-Request-ID"]
    upstream.next(*[Break()] * 4)  # the first on a pooled connection: resent
    answer = get("/invoices/7")
    assert (answer.status_code, answer.headers["Content-Type"]) == (502, "application/problem+json")


@shows("headrace/3")
def test_the_first_screen_installs(folder: Path, upstream: FaultServer) -> None:
    app = run("headrace/3", upstream, app=Starlette())["app"]
    assert isinstance(app, headrace.ASGIMiddleware)
    with TestClient(app):
        assert requests.get(upstream.url).headrace.upstream == "billing"  # type: ignore[attr-defined]
    assert not hasattr(requests.get(upstream.url), "headrace")


@shows("Starlette/1", "FastAPI/1")
@pytest.mark.parametrize("key", ["Starlette/1", "FastAPI/1"])
def test_asgi_wiring(key: str, folder: Path, upstream: FaultServer) -> None:
    with TestClient(run(key, upstream)["app"]) as client:
        assert_governed(client.get, upstream)


@shows("Flask/1", "Seeing it/1")
def test_flask_wiring_and_a_status_route(folder: Path, upstream: FaultServer) -> None:
    names = run("Flask/1", upstream)
    run("Seeing it/1", upstream, **names)
    client = names["app"].test_client()
    try:
        answer = client.get("/invoices/7")
        assert answer.json == {"invoice": 7}
        upstream.next(*[Break()] * 4)  # the first on a pooled connection: resent
        answer = client.get("/invoices/7")
        assert (answer.status_code, answer.content_type) == (502, "application/problem+json")
        status = client.get("/upstreams").json
        assert status["upstreams"]["billing"]["requests"] == {"2xx": 1, "reset": 1}
    finally:
        names["app"].wsgi_app.headrace.close()


@shows("Starlette/2", "Flask/2")
@pytest.mark.parametrize(
    ("app", "command", "more"),
    [
        pytest.param("Starlette/1", "Starlette/2", ["--port", "0"], id="uvicorn"),
        # One worker here: this is about the command line and the wiring.
        pytest.param("Flask/1", "Flask/2", ["--bind", "127.0.0.1:0", "--workers", "1"], id="gunicorn"),
    ],
)
def test_servers_start_as_shown(
    app: str, command: str, more: list[str], folder: Path, upstream: FaultServer
) -> None:
    write(folder, "orders.py", app, upstream)
    with serving(blocks()[command].text, folder, *more) as url, requests.Session() as client:
        assert_governed(lambda path: client.get(url + path, timeout=20), upstream)


DJANGO = """
import json, os, sys
import django
from django.conf import settings

MIDDLEWARE = []
exec(open("settings_block.py").read())
settings.configure(
    ALLOWED_HOSTS=["*"], ROOT_URLCONF="urls", MIDDLEWARE=MIDDLEWARE, SECRET_KEY="x", USE_TZ=True, LOGGING_CONFIG=None
)
import wsgi

def get(path):
    answer = {}
    def start_response(status, headers, exc_info=None):
        answer.update(status=int(status[:3]), type=dict(headers)["Content-Type"])
    environ = {
        "REQUEST_METHOD": "GET", "PATH_INFO": path, "SERVER_NAME": "x", "SERVER_PORT": "80",
        "wsgi.input": sys.stdin.buffer, "wsgi.url_scheme": "http",
    }
    body = wsgi.application(environ, start_response)
    answer["body"] = b"".join(body).decode()
    return answer

print(json.dumps([get("/"), get("/")]))
"""


@shows("Django/1", "Django/2")
def test_django_wiring(folder: Path, upstream: FaultServer) -> None:
    """In a process of its own: Django is configured once."""
    write(folder, "wsgi.py", "Django/1", upstream)
    write(folder, "settings_block.py", "Django/2", upstream)
    (folder / "urls.py").write_text(
        "import requests\n"
        "from django.http import HttpResponse\n"
        "from django.urls import path\n"
        f"urlpatterns = [path('', lambda request: HttpResponse(requests.get({upstream.url!r}).text))]\n"
    )
    (folder / "main.py").write_text(DJANGO)
    upstream.next(Answer(body=b"fine"), *[Break()] * 4)  # the first on a pooled connection: resent

    first, second = json.loads(python("main.py", folder))

    assert first["body"] == "fine"
    assert (second["status"], second["type"]) == (502, "application/problem+json")


def python(name: str, folder: Path, **env: str) -> str:
    """What the program *name* prints; its errors are shown when it fails."""
    done = subprocess.run(
        [sys.executable, "-W", "error", name],
        cwd=folder,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@shows("Processes without middleware/1", "Processes without middleware/2")
def test_a_job(folder: Path, upstream: FaultServer, capsys: pytest.CaptureFixture[str]) -> None:
    run("Processes without middleware/1", upstream)
    assert capsys.readouterr().out == blocks()["Processes without middleware/2"].text


@shows("Processes without middleware/3")
def test_celery_workers(folder: Path, upstream: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery is not among the test's dependencies: its signal is stood in for."""
    connected = []
    signals = types.ModuleType("celery.signals")
    signals.worker_process_init = types.SimpleNamespace(connect=lambda f: connected.append(f) or f)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "celery", types.ModuleType("celery"))
    monkeypatch.setitem(sys.modules, "celery.signals", signals)
    run("Processes without middleware/3", upstream)

    connected[0](sender=None, signal=signals.worker_process_init)

    with headrace.current():
        assert requests.get(upstream.url).headrace.upstream == "billing"  # type: ignore[attr-defined]


@shows("Processes without middleware/4")
def test_a_cell_that_is_run_again(folder: Path, upstream: FaultServer) -> None:
    names = run("Processes without middleware/4", upstream)
    first = names["hr"]
    second = run("Processes without middleware/4", upstream, **names)["hr"]
    with second:
        assert second is headrace.current()
        assert second is not first


@shows("Inbound context/1")
def test_work_on_other_threads_belongs_to_the_request(folder: Path, upstream: FaultServer) -> None:
    ids: list[str | None] = []

    def fetch(number: int) -> int:
        ids.append(headrace.request_id())
        return number

    def handler(_: Any) -> tuple[int, list[tuple[str, str]], list[bytes]]:
        names = run("Inbound context/1", upstream, headrace=headrace, threading=threading, fetch=fetch)
        names["pool"].shutdown()
        wait_until(lambda: len(ids) == 3)
        assert names["invoices"] == [7, 8]
        return 200, [], [b""]

    with headrace.Headrace() as hr:
        WsgiGateway(handler, hr).request({"X-Request-ID": "mine"})
    assert ids == ["mine"] * 3


@shows("Streamed answers/1")
def test_an_answer_that_is_handed_on_is_read_after_its_request(folder: Path, upstream: FaultServer) -> None:
    stored: list[bytes] = []
    over = threading.Event()

    def store(download: requests.Response) -> None:
        assert over.wait(20)
        with download:
            stored.append(download.content)

    def handler(_: Any) -> tuple[int, list[tuple[str, str]], list[bytes]]:
        run(
            "Streamed answers/1",
            upstream,
            headrace=headrace,
            requests=requests,
            threading=threading,
            store=store,
        )
        return 200, [], [b""]

    with headrace.Headrace() as hr:
        WsgiGateway(handler, hr).request()
        over.set()
        wait_until(lambda: stored, timeout_s=20)
    assert stored == [b'{"invoice": 7}']


@shows("Ids and traces/1")
def test_the_applications_own_log_lines_get_the_id(
    folder: Path, upstream: FaultServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def handler(_: Any) -> tuple[int, list[tuple[str, str]], list[bytes]]:
        logging.getLogger("orders").warning("within")
        return 200, [], [b""]

    with headrace.Headrace() as hr:
        names = run("Ids and traces/1", upstream, headrace=headrace, logging=logging)
        try:
            WsgiGateway(handler, hr).request({"X-Request-ID": "mine"})
            logging.getLogger("orders").warning("outside")
        finally:
            logging.getLogger().removeHandler(names["handler"])
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.endswith(("within", "outside"))] == ["mine within", "- outside"]


@pytest.mark.parametrize(
    ("variable", "files"),
    [
        pytest.param(None, ["upstreams.yaml"], id="not set"),
        pytest.param("", ["upstreams.yaml"], id="set to nothing, as compose files and charts do"),
        pytest.param("other.yaml", ["other.yaml"], id="another name"),
        pytest.param(f"upstreams.yaml{os.pathsep}other.yaml", ["upstreams.yaml", "other.yaml"], id="two"),
    ],
)
def test_without_a_name_the_file_is_found(
    variable: str | None, files: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "other.yaml").write_text((folder / "upstreams.yaml").read_text())
    if variable is None:
        monkeypatch.delenv("HEADRACE_FILE", raising=False)
    else:
        monkeypatch.setenv("HEADRACE_FILE", variable)
    assert headrace.Headrace().files == tuple(str(folder / name) for name in files)


# --- Records, errors, names -----------------------------------------------------------------------------


@pytest.fixture
def hr(folder: Path) -> Iterator[headrace.Headrace]:
    with headrace.install("upstreams.yaml") as instance:
        yield instance


@shows("What a record holds/1", "What a record holds/2")
def test_record_of_a_response(
    hr: headrace.Headrace, upstream: FaultServer, capsys: pytest.CaptureFixture[str]
) -> None:
    upstream.next(Answer(503))
    run("What a record holds/1", upstream, requests=requests)
    assert capsys.readouterr().out == blocks()["What a record holds/2"].text


@shows("What a record holds/3", "What a record holds/4")
def test_notes_of_an_exception(
    hr: headrace.Headrace, upstream: FaultServer, capsys: pytest.CaptureFixture[str]
) -> None:
    upstream.always(Break())
    run("What a record holds/3", upstream, requests=requests)
    assert_same(blocks()["What a record holds/4"].text, capsys.readouterr().out)


@shows("What a record holds/5", "What a record holds/6", "Logs/1", "Logs/2")
def test_record_of_a_refusal_and_the_log_line_before_it(
    hr: headrace.Headrace, upstream: FaultServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "upstreams.yaml"
    file.write_text(file.read_text().replace("max_attempts: 3", "max_attempts: 1"))
    hr.reload()
    upstream.always(Break())
    root, ours = logging.getLogger(), logging.getLogger("headrace")
    handlers, root.handlers = root.handlers, []
    try:
        run("Logs/1", upstream)
        for _ in range(5):
            with pytest.raises(requests.ConnectionError):
                requests.get(upstream.url)
    finally:
        root.handlers = handlers
        ours.setLevel(logging.NOTSET)
    assert_same(blocks()["Logs/2"].text, capsys.readouterr().err)

    run("What a record holds/5", upstream, requests=requests, headrace=headrace)
    assert_same(blocks()["What a record holds/6"].text, capsys.readouterr().out)


def test_record_tables_are_complete() -> None:
    rows = tables("What a record holds")
    computed = {name for name, value in vars(Record).items() if isinstance(value, property)}
    public = {name for name in inspect.get_annotations(Record) if name[0] != "_"} | computed
    fields = [row[0].strip("`") for row in rows[: len(public)]]
    assert set(fields) == public
    assert set(re.findall(r"`(\w+)`", rows[3][1])) == set(inspect.get_annotations(AttemptRecord))
    words = [word for row in rows[len(public) :] for word in re.findall(r"`(\w+)`", row[0])]
    assert sorted(words) == sorted(reason.value for reason in EndReason)


def test_error_table_has_every_class_with_its_family() -> None:
    rows = {re.findall(r"headrace\.(\w+)", row[0])[0]: row[1] for row in tables("Errors")}
    twins = [
        REQUESTS.circuit_open,
        REQUESTS.deadline,
        REQUESTS.pool_timeout,
        REQUESTS.pool_rejected,
        REQUESTS.cancelled,
        REQUESTS.too_large,
    ]
    assert set(rows) == {twin.__mro__[1].__name__ for twin in twins}
    for twin in twins:
        family = getattr(requests, re.findall(r"requests\.(\w+)", rows[twin.__mro__[1].__name__])[0])
        assert issubclass(twin, family)
    assert issubclass(URLLIB3.circuit_open, headrace.CircuitOpenError)


def test_words_of_retry_on_are_explained() -> None:
    text = README.read_text("utf-8")
    assert [word for word in FAULT_WORDS if f"`{word}`" not in text] == []


def test_words_of_retry_on_are_those_of_the_table_and_mean_what_they_mean_there() -> None:
    sentence = _between("- **When.** ", " A method that")

    assert _quoted(sentence) - {"retry_on"} == {*FAULT_WORDS, *STATUS_WORDS}
    told: dict[str, set[str]] = {}
    for clause in sentence.rstrip(".").split("; "):
        _, word, meaning = clause.split("`", 2)
        numbers = set(re.findall(r"\d+", meaning))
        if " is all of them but " in meaning:
            hundred = int(word[0]) * 100
            numbers = set(map(str, range(hundred, hundred + 100))) - numbers
        told[word] = numbers | _quoted(meaning) - {"retry_on"}
    faults = {
        word: {*meant} for word, meant in FAULT_WORDS.items() if meant != {word}
    }  # the others mean themselves
    assert told == faults | {word: set(map(str, meant)) for word, meant in STATUS_WORDS.items()}


def test_words_for_no_answer_are_all_faults_there_are() -> None:
    sentence = _between("Words for no answer are those of `retry_on` ", " An attempt that")

    assert _quoted(sentence) == {*Fault}
    assert _quoted(sentence.partition(")")[0]) == {
        word for word, meant in FAULT_WORDS.items() if meant == {word}
    }


def _between(start: str, end: str) -> str:
    text = " ".join(README.read_text("utf-8").split())
    assert text.count(start) == 1
    return text.partition(start)[2].partition(end)[0]


def _quoted(text: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", text))


@shows("Your own retries/1")
def test_a_session_with_retries_of_its_own(hr: headrace.Headrace, upstream: FaultServer) -> None:
    names = run("Your own retries/1", upstream, requests=requests, HTTPAdapter=HTTPAdapter, Retry=Retry)
    with names["session"] as session:
        session.mount("http://", session.adapters["https://"])
        upstream.next(Answer(503), Answer(503))
        assert len(session.get(upstream.url).headrace.attempts) == 3


@shows("The circuit breaker/2")
def test_a_function_is_protected_as_shown(folder: Path, upstream: FaultServer) -> None:
    class Stub:
        @staticmethod
        def GetInvoice(number: int) -> str:
            if number < 0:
                raise OSError
            return f"invoice {number}"

    with headrace.install("upstreams.yaml"):
        invoice = run("The circuit breaker/2", upstream, stub=Stub)["invoice"]
        assert invoice(7) == "invoice 7"
        with pytest.raises(OSError):
            invoice(-1)
        status = headrace.current().status()["upstreams"]["billing"]
        assert status["protected"] == {"success": 1, "failure": 1}


@shows("urllib3 and what is built on it/1")
def test_urllib3_is_governed_as_shown(folder: Path, upstream: FaultServer) -> None:
    write(folder, "upstreams.yaml", "urllib3 and what is built on it/1", upstream)
    with headrace.install("upstreams.yaml"), urllib3.PoolManager() as manager:
        assert urllib3.request("GET", upstream.url).headrace.upstream == "billing"
        assert manager.request("GET", upstream.url).headrace.upstream == "billing"
        assert requests.get(upstream.url).headrace.upstream == "billing"


@shows("Calling by name/1")
def test_calls_by_name(hr: headrace.Headrace, upstream: FaultServer) -> None:
    names = run("Calling by name/1", upstream, headrace=headrace)
    assert names["answer"].json() == {"invoice": 7}
    assert (names["raw"].status, names["raw"].headrace.upstream) == (200, "billing")
    assert [request.target for request in upstream.requests] == ["/invoices/7"] * 3


# --- Tests ----------------------------------------------------------------------------------------------


@shows("Testing your rules/1", "Testing your rules/2")
def test_a_simulation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "upstreams.yaml").write_text(text_of(FILE))
    names: dict[str, Any] = {}
    exec(text_of("Testing your rules/1"), names)

    names["test_billing_opens_and_recovers"]()

    shown, printed = text_of("Testing your rules/2"), capsys.readouterr().out
    assert printed.startswith(shown.removesuffix("…\n"))


@shows("Testing your rules/3")
def test_the_pytest_plugin(folder: Path, upstream: FaultServer) -> None:
    write(folder, "test_invoices.py", "Testing your rules/3", upstream)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "pytest_headrace", "--strict-markers", "-W", "error"],
        cwd=folder,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert upstream.requests == []


# --- The table for the night ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["off", "observe"])
def test_the_switch_in_the_environment(
    mode: str,
    folder: Path,
    upstream: FaultServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("HEADRACE_MODE", mode)
    upstream.always(Answer(503))
    with headrace.install() as hr:
        assert not hasattr(requests.get(upstream.url), "headrace")
        assert len(upstream.requests) == 1
        counted = hr.status()["upstreams"]["billing"]["requests"]
    assert counted == ({} if mode == "off" else {"5xx": 1})
    assert events.ModeOverridden.name in [getattr(record, "event", "") for record in caplog.records]


def test_switching_off_by_an_edit_letting_through_and_undoing(
    hr: headrace.Headrace, folder: Path, upstream: FaultServer
) -> None:
    file = folder / "upstreams.yaml"
    original = file.read_text()

    def status() -> Any:
        return hr.status()["upstreams"]["billing"]

    upstream.always(Break())
    for _ in range(5):
        with pytest.raises(requests.ConnectionError):
            requests.get(upstream.url)
    with pytest.raises(headrace.CircuitOpenError):
        requests.get(upstream.url)
    upstream.always(Answer())

    file.write_text(original + "    circuit_breaker: {mode: disabled}\n")
    wait_until(lambda: status()["circuit_breaker"]["state"] == "closed")
    assert requests.get(upstream.url).headrace.reason == "success"  # type: ignore[attr-defined]

    file.write_text(original + "    mode: off\n")
    wait_until(lambda: status()["mode"] == "off")
    assert not hasattr(requests.get(upstream.url), "headrace")

    digest = hr.status()["digest"]
    file.write_text(original + "    mode: of\n")
    wait_until(lambda: hr.status()["rejected"] is not None)
    assert hr.status()["digest"] == digest

    file.write_text(original)
    wait_until(lambda: status()["mode"] == "enforce")
    assert hr.status()["rejected"] is None
    assert requests.get(upstream.url).headrace.reason == "success"  # type: ignore[attr-defined]


# --- Metrics --------------------------------------------------------------------------------------------


@shows("Metrics/1")
def test_gunicorn_tells_prometheus_of_workers_that_went(folder: Path, upstream: FaultServer) -> None:
    """In a process of its own: prometheus_client decides at import whether it is in multiprocess mode."""
    (folder / "metrics").mkdir()
    write(folder, "gunicorn_conf.py", "Metrics/1", upstream)
    (folder / "main.py").write_text(
        "import os, types, headrace, requests\n"
        "from prometheus_client import CollectorRegistry, generate_latest, multiprocess\n"
        "from gunicorn_conf import child_exit\n"
        f"with headrace.install(): requests.get({upstream.url!r})\n"
        "registry = CollectorRegistry()\n"
        "multiprocess.MultiProcessCollector(registry)\n"
        "before = generate_latest(registry).decode()\n"
        "child_exit(None, types.SimpleNamespace(pid=os.getpid()))\n"
        "print(before, '=====', generate_latest(registry).decode())\n"
    )

    before, _, after = python("main.py", folder, PROMETHEUS_MULTIPROC_DIR=str(folder / "metrics")).partition(
        "====="
    )

    counted = 'headrace_requests_total{outcome="2xx",upstream="billing"} 1.0'
    assert counted in before
    assert counted in after
    each = 'headrace_breaker_state{pid="'
    assert each in before
    assert each not in after


def test_metrics_are_on_the_default_registry_while_it_runs(hr: headrace.Headrace) -> None:
    labels = {"upstream": "billing", "state": "closed"}
    assert REGISTRY.get_sample_value("headrace_breaker_state", labels) == 1
    hr.close()
    assert REGISTRY.get_sample_value("headrace_breaker_state", labels) is None


def test_every_attribute_and_event_of_spans_is_explained_and_no_other() -> None:
    sources = "".join(inspect.getsource(module) for module in (span_facts, otel, call_trace))
    told = set(re.findall(r'"((?:headrace|circuit)\.[a-z_.]+)"', sources))
    text = README.read_text("utf-8").partition("### Traces")[2].partition("\n## ")[0]
    explained = set(re.findall(r"`((?:headrace|circuit)\.[a-z_.]+)`", text))
    assert explained == told
    for name in ("http.request.resend_count", "error.type", "server.address"):
        assert f"`{name}`" in text


def test_commands_of_the_development_section_exist() -> None:
    for line in blocks()["Development/1"].text.splitlines():
        assert os.access(README.parent / line, os.X_OK), line


def test_every_link_within_the_readme_leads_to_a_heading() -> None:
    text = README.read_text("utf-8")
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    links = re.findall(r"\]\(#([^)]+)\)", text)

    assert links
    assert [link for link in links if link not in anchors] == []
