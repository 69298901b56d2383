"""Soak: 50 threads, 1 % faults, an edited file and `hr.reload()` every 200 ms; the books must balance.

    python tests/bench/soak.py [--seconds 60] [--threads 50]

Prints what it measured and exits 1 where the books do not balance.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import requests
from servers import upstream

import headrace
from headrace.policy.decision import EndReason

REASONS = frozenset(reason.value for reason in EndReason)


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


def edit(file: Path, text: str) -> None:
    """Replace *file* as an editor or a deployment does: at no instant is it torn."""
    draft = file.with_suffix(".new")
    draft.write_text(text)
    os.replace(draft, file)


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
        edit(file, rules(steady, flaky, 0))
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
                    except Exception as error:  # not of requests' family: no caller would catch it
                        mine_errors[name, f"{error!r}"] += 1
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
            edit(file, rules(steady, flaky, turn))
            applied += hr.reload() == "applied"
        ended.set()
        for worker in workers:
            worker.join(30)
        took = time.monotonic() - began
        if hung := sum(worker.is_alive() for worker in workers):
            problems.append(f"{hung} threads hang")

        counted = {
            name: requests.get(f"http://127.0.0.1:{port}/count", headers={"Connection": "close"})
            for name, port in (("steady", steady), ("flaky", flaky))
        }
        reloads, status = hr.status()["reloads"], hr.status()["upstreams"]
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
            resent = status[name]["retry"]["resent"]  # unseen repetitions on a fresh connection
            said = sum(n for (who, _), n in (answered + errors).items() if who == name)
            print(
                f"{name:7} issued {issued[name]}, outcomes {outcomes - 1}, answered or raised {said}; "
                f"attempts {attempts} + resent {resent}, first lines at the server {lines}; "
                f"retries {status[name]['retry']['retries']}"
            )
            if not issued[name] == outcomes - 1 == said:
                problems.append(f"{name}: calls issued and outcomes differ")
            if attempts + resent != lines:
                problems.append(f"{name}: attempts, resends and first lines do not add up")
        for (name, reason), count in sorted(errors.items()):
            print(f"{name:7} error reason {reason}: {count}")
            if reason not in REASONS:
                problems.append(f"{name}: an error without a reason of the list: {reason}")
            if name == "steady":
                problems.append("an error on the upstream without faults")
        threads_after, descriptors_after = threading.active_count(), descriptors()
        print(f"{sum(issued.values()) / took:.0f} calls/s over {took:.1f} s")
        print(f"{turn - 1} edits, {applied} of them applied by hr.reload(); reloads {reloads}")
        if reloads.get("rejected"):
            problems.append("a reload was rejected")
        if reloads["applied"] != turn - 1:
            problems.append("not every edit took force")
        print(
            f"threads {threads_before} -> {threads_after}; descriptors {descriptors_before} -> {descriptors_after}"
        )
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
