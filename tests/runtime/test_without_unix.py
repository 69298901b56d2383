"""Where the system has no fork, no fcntl, no poll(2) and no inotify: Windows, as far as it can be simulated here.

In a process of its own, from which all of these are taken before anything is imported. What cannot be simulated is
Windows itself: its sockets, its file names, files that are in use.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from support.faultserver import Answer, FaultServer, server_context
from support.governed import rules

TAKEN_AWAY = """
    import os, select, signal, socket, sys, time
    import asyncio, logging, subprocess, tempfile       # their own halves for Unix

    def take(module, *names):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)

    take(os, "fork", "forkpty", "register_at_fork", "O_CLOEXEC", "O_NONBLOCK", "O_DIRECTORY", "O_NOFOLLOW", "uname",
         "sysconf", "getuid", "geteuid", "getgid", "getppid", "killpg", "setsid", "sched_getaffinity", "pread",
         "pwrite", "mkfifo", "posix_spawn", "set_blocking", "wait", "WNOHANG")
    take(select, "poll", "epoll", "EPOLLIN", "POLLIN", "kqueue")
    take(signal, "SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2", "setitimer", "pthread_kill", "pthread_sigmask")
    take(socket, "AF_UNIX", "MSG_DONTWAIT", "SO_REUSEPORT", "TCP_USER_TIMEOUT", "socketpair", "sendmsg", "SCM_RIGHTS")
    for name in ("fcntl", "termios", "resource", "pwd", "grp",
                 "watchdog.observers.inotify", "watchdog.observers.inotify_c", "watchdog.observers.inotify_buffer"):
        sys.modules[name] = None
"""

CALLS = """
    import importlib, pkgutil, warnings
    from pathlib import Path

    warnings.simplefilter("error")
    import requests, urllib3
    import headrace

    for module in pkgutil.walk_packages(headrace.__path__, "headrace."):
        if not module.name.endswith(("__main__", ".django")):
            importlib.import_module(module.name)
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    logging.getLogger("headrace").setLevel(logging.INFO)

    file, urls = Path(sys.argv[1]), sys.argv[2:]
    with headrace.install(file) as hr:
        for url in urls:
            for _ in range(2):                      # the second over the pooled connection
                assert requests.get(url).headrace.upstream
                assert urllib3.PoolManager().request("GET", url).headrace.upstream
            assert requests.post(url, data=b"x" * (4 << 20)).status_code == 200
            try:
                requests.get(url + "/slow")
            except requests.Timeout as error:
                assert error.headrace.timed_out
            else:
                raise AssertionError("it was not cut")
        assert hr.status()["upstreams"]["plain"]["pool"]["acquires"].get("hit")

        before = hr.status()["digest"]
        file.write_text(file.read_text().replace("X-Rule: first", "X-Rule: second"))
        ends_at = time.monotonic() + 30
        while hr.status()["digest"] == before:
            assert time.monotonic() < ends_at, "the edit was not noticed"
            time.sleep(0.01)
        assert requests.get(urls[0]).headrace.upstream == "plain"
    print("done")
"""


@pytest.fixture
def servers(authority: trustme.CA) -> Iterator[tuple[FaultServer, FaultServer]]:
    with FaultServer() as plain, FaultServer(tls=server_context(authority)) as tls:
        for server in (plain, tls):
            server.at("/slow", Answer(delay_s=30.0))
        yield plain, tls


@pytest.mark.parametrize("multiprocess", [False, True], ids=["", "with metrics of several processes"])
def test_it_calls_cuts_and_reloads_without_what_only_unix_has(
    multiprocess: bool, servers: tuple[FaultServer, FaultServer], authority: trustme.CA, tmp_path: Path
) -> None:
    plain, tls = servers
    ca, counted = tmp_path / "ca.pem", tmp_path / "metrics"
    authority.cert_pem.write_to_path(str(ca))
    counted.mkdir()
    file = tmp_path / "upstreams.yaml"
    cut = "    retry: {max_attempts: 1}\n    timeouts: {attempt: 1s, connect: 1s, tls_handshake: 1s}\n"
    file.write_text(
        rules(
            plain.url,
            "    headers: {X-Rule: first}\n"
            + cut
            + f"  tls:\n    base_url: {tls.url}\n    tls: {{ca: {ca}}}\n"
            + cut,
            name="plain",
            more="install: {urllib3: true}\nreload: {poll: 1s}\n",
        )
    )
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("HEADRACE_", "PROMETHEUS_"))
    }
    if multiprocess:
        env["PROMETHEUS_MULTIPROC_DIR"] = str(counted)
    script = textwrap.dedent(TAKEN_AWAY) + textwrap.dedent(CALLS)

    done = subprocess.run(
        [sys.executable, "-c", script, str(file), plain.url, tls.url],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.endswith("done\n")
    assert "watching by polling" in done.stdout
    assert plain.requests[-1].header("X-Rule") == "second"
    assert bool(list(counted.iterdir())) is multiprocess
