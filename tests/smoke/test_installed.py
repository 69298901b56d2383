"""The little that must hold of an installed headrace, run against the built wheel too (`-m smoke`)."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata, resources
from pathlib import Path

import pytest
import requests
from prometheus_client import CollectorRegistry

import headrace

pytestmark = pytest.mark.smoke


class _Upstream(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.path.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def upstream_url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Upstream) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def headrace_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("headrace")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60)


def test_it_is_typed_and_ships_its_schema() -> None:
    package = resources.files("headrace")

    assert (package / "py.typed").is_file()
    assert (package / "config" / "upstreams.v1.schema.json").is_file()
    assert metadata.version("headrace")


def test_it_ships_the_words_that_its_comments_point_to() -> None:
    for page in ("architecture.md", "failures.md"):
        assert (resources.files("headrace") / "docs" / page).is_file()


def test_every_public_name_can_be_had() -> None:
    for name in headrace.__all__:
        assert getattr(headrace, name) is not None


def test_a_plain_call_of_requests_is_governed_by_its_url(upstream_url: str, tmp_path: Path) -> None:
    file = tmp_path / "upstreams.yaml"
    file.write_text(f"version: 1\nupstreams:\n  billing: {{base_url: {upstream_url}/v2}}\n")
    registry = CollectorRegistry()

    with headrace.install(file, registry=registry) as hr:
        by_url = requests.get(f"{upstream_url}/v2/invoices/7", timeout=5)
        by_name = hr.upstream("billing").get("/invoices/7")
        counted = registry.get_sample_value(
            "headrace_requests_total", {"upstream": "billing", "outcome": "2xx"}
        )

    assert (by_url.text, by_name.text) == ("/v2/invoices/7", "/v2/invoices/7")
    assert counted == 2


def test_pytest_finds_its_plugin_and_runs_a_marked_test(tmp_path: Path) -> None:
    (tmp_path / "upstreams.yaml").write_text(
        "version: 1\nupstreams:\n  billing: {base_url: https://billing.internal}\n"
    )
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "from headrace.testing import Simulation\n"
        "@pytest.mark.headrace('upstreams.yaml')\n"
        "def test_it(headrace_instance):\n"
        "    billing = Simulation('upstreams.yaml').upstream('billing')\n"
        "    billing.answers(503, 200)\n"
        "    assert billing.call().status == 200\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "--strict-markers", "-W", "error", "test_it.py"]

    found = [
        entry.value for entry in metadata.entry_points(group="pytest11") if entry.name == "pytest_headrace"
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    assert found == ["pytest_headrace"]
    assert done.returncode == 0, done.stdout


def test_the_command_accepts_a_good_file_and_refuses_a_bad_one(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("version: 1\nupstreams:\n  billing: {base_url: https://billing.internal}\n")
    bad.write_text("version: 1\nupstreams:\n  billing: {base_ulr: https://billing.internal}\n")

    assert headrace_command("check", str(good)).returncode == 0
    refused = headrace_command("check", str(bad))

    assert refused.returncode == 1
    assert "bad.yaml:3:" in refused.stdout + refused.stderr
