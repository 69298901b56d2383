"""Soak: 50 threads, 1 % faults, an edited file and `hr.reload()` every 200 ms; the books must balance.

    python tests/bench/soak.py [--seconds 60] [--threads 50]

Prints what it measured and exits 1 where a claim of issue 2 does not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import requests

import headrace
from headrace.policy.exchange import EndReason

SERVER = Path(__file__).with_name("soak_server.py")
REASONS = frozenset(reason.value for reason in EndReason)


@contextlib.contextmanager
def upstream(faults_per_thousand: int) -> Iterator[int]:
    """The port of a server in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, str(SERVER), str(faults_per_thousand)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


def rules(steady: int, flaky: int, turn: int) -> str:
    """The file; each turn changes a limit of one of the two, so that its pool is really replaced."""
    return f"""\
version: 1
reload: {{drain: 3s}}
upstreams:
  steady:
    base_url: http://127.0.0.1:{steady}
    timeouts: {{attempt: {4 + turn % 2}s}}
    pool: {{max_connections: 20}}
  flaky:
    base_url: http://127.0.0.1:{flaky}
    timeouts: {{attempt: {4 + turn // 2 % 2}s}}
    pool: {{max_connections: 20}}
    circuit_breaker: {{half_open: {{max_probes: 3}}, open_for: {{base: 100ms}}}}
"""


def rss_kib() -> int:
    """Resident memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


def descriptors() -> int:
    """Open descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def main() -> int:
    """Run, print, judge."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=50)
    options = parser.parse_args()

    with (
        upstream(0) as steady,
        upstream(10) as flaky,
        tempfile.TemporaryDirectory() as folder,
    ):
        file = Path(folder, "upstreams.yaml")
        file.write_text(rules(steady, flaky, 0))
        requests.get(f"http://127.0.0.1:{steady}/count")  # whatever requests loads lazily
        threads_before, descriptors_before = threading.active_count(), descriptors()
        problems: list[str] = []
        hr = headrace.Headrace(file)
        hr.start()
        issued: Counter[str] = Counter()
        answered: Counter[tuple[str, str]] = Counter()
        errors: Counter[tuple[str, str]] = Counter()
        ended = threading.Event()
        books = threading.Lock()

        def client(number: int) -> None:
            mine_issued: Counter[str] = Counter()
            mine_answered: Counter[tuple[str, str]] = Counter()
            mine_errors: Counter[tuple[str, str]] = Counter()
            urls = itertools.cycle(
                [("steady", f"http://127.0.0.1:{steady}/a"), ("flaky", f"http://127.0.0.1:{flaky}/a")]
            )
            with requests.Session() as session:
                while not ended.is_set():
                    name, url = next(urls)
                    mine_issued[name] += 1
                    try:
                        response = session.get(url)
                    except requests.RequestException as error:
                        record = getattr(error, "headrace", None)
                        mine_errors[name, record.reason.value if record else f"no record: {error!r}"] += 1
                    else:
                        mine_answered[name, f"{response.status_code}"] += 1
            with books:
                issued.update(mine_issued)
                answered.update(mine_answered)
                errors.update(mine_errors)

        workers = [threading.Thread(target=client, args=(n,)) for n in range(options.threads)]
        began = time.monotonic()
        for worker in workers:
            worker.start()
        rss_third = rss_end = 0
        applied = 0
        for turn in itertools.count(1):
            time.sleep(0.2)
            elapsed = time.monotonic() - began
            if not rss_third and elapsed >= options.seconds / 3:
                rss_third = rss_kib()
            if elapsed >= options.seconds:
                rss_end = rss_kib()
                break
            file.write_text(rules(steady, flaky, turn))
            applied += hr.reload() == "applied"
        ended.set()
        for worker in workers:
            worker.join(30)
        took = time.monotonic() - began

        counted = {
            name: requests.get(f"http://127.0.0.1:{port}/count", headers={"Connection": "close"})
            for name, port in (("steady", steady), ("flaky", flaky))
        }
        status = hr.status()["upstreams"]
        hr.close()
        del hr
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and (
            threading.active_count() > threads_before or descriptors() > descriptors_before
        ):
            time.sleep(0.05)

        for name in ("steady", "flaky"):
            outcomes = sum(status[name]["requests"].values())
            # The count itself was one governed call, asked of the server before it had answered.
            attempts, lines = sum(status[name]["attempts"].values()) - 1, int(counted[name].text)
            said = sum(n for (who, _), n in (answered + errors).items() if who == name)
            print(
                f"{name:7} issued {issued[name]}, outcomes {outcomes - 1}, answered or raised {said}; "
                f"attempts {attempts}, first lines at the server {lines}; retries {status[name]['retry']['retries']}"
            )
            if not issued[name] == outcomes - 1 == said:
                problems.append(f"{name}: calls issued and outcomes differ")
            if attempts != lines:
                problems.append(f"{name}: attempts and first lines differ")
        for (name, reason), count in sorted(errors.items()):
            print(f"{name:7} error reason {reason}: {count}")
            if reason not in REASONS:
                problems.append(f"{name}: an error without a reason of the list: {reason}")
            if name == "steady":
                problems.append("an error on the upstream without faults")
        threads_after, descriptors_after = threading.active_count(), descriptors()
        print(f"{sum(issued.values()) / took:.0f} calls/s over {took:.1f} s; {applied} reloads applied")
        print(f"threads {threads_before} -> {threads_after}; descriptors {descriptors_before} -> {descriptors_after}")
        print(f"RSS at one third {rss_third / 1024:.1f} MiB, at the end {rss_end / 1024:.1f} MiB")
        if threads_after != threads_before or descriptors_after != descriptors_before:
            problems.append("threads or descriptors are left over")
        if rss_end - rss_third > 8 * 1024:
            problems.append("memory grew by more than 8 MiB")
    for problem in problems:
        print(f"FAILED: {problem}")
    print("books balance" if not problems else f"{len(problems)} problems")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
