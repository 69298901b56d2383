"""What the pages say of metrics and traces is what there is."""

from __future__ import annotations

import inspect
import re
import socket
from pathlib import Path

from prometheus_client import REGISTRY

import headrace
from headrace.observe.tracing import call_trace, otel, span_facts
from support.faultserver import FaultServer
from support.pages import python, shows, text, text_of, write


@shows("metrics: Several worker processes/1")
def test_gunicorn_tells_prometheus_of_workers_that_went(folder: Path, upstream: FaultServer) -> None:
    """In a process of its own: prometheus_client decides at import whether it is in multiprocess mode."""
    (folder / "metrics").mkdir()
    write(folder, "gunicorn_conf.py", "metrics: Several worker processes/1", upstream)
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
    explained = set(re.findall(r"`((?:headrace|circuit)\.[a-z_.]+)`", text("traces")))
    assert explained == told
    for name in ("http.request.resend_count", "error.type", "server.address"):
        assert f"`{name}`" in text("traces")


@shows("metrics: Celery/1")
def test_the_parent_of_celerys_workers_shows_their_metrics(folder: Path, upstream: FaultServer) -> None:
    """Celery is not among the test's dependencies: its signals are stood in for. In a process of its own, as above."""
    (folder / "metrics").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    block = text_of("metrics: Celery/1", {"9100": str(port)})
    (folder / "main.py").write_text(
        "import os, sys, types, headrace, requests\n"
        "told = {}\n"
        "def signal(name): return types.SimpleNamespace(connect=lambda f: told.setdefault(name, f))\n"
        "names = 'worker_init', 'worker_process_shutdown'\n"
        "sys.modules['celery'] = types.ModuleType('celery')\n"
        "sys.modules['celery.signals'] = types.SimpleNamespace(**{name: signal(name) for name in names})\n"
        f"{block}\n"
        "told['worker_init'](sender=None)\n"
        f"with headrace.install(): requests.get({upstream.url!r})\n"
        f"def metrics(): return requests.get('http://127.0.0.1:{port}/metrics').text\n"
        "before = metrics()\n"
        "told['worker_process_shutdown'](sender=None, pid=os.getpid(), exitcode=0)\n"
        "print(before, '=====', metrics())\n"
    )

    said = python("main.py", folder, PROMETHEUS_MULTIPROC_DIR=str(folder / "metrics"))
    before, _, after = said.partition("=====")

    for shown in before, after:
        assert 'headrace_requests_total{outcome="2xx",upstream="billing"} 1.0' in shown
    each = 'headrace_breaker_state{pid="'
    assert each in before
    assert each not in after
