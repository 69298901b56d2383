"""How punctually calls end when their server does whatever it likes.

    python tests/bench/deadlines.py [--calls 200] [--threads 8] [--seed 1]

Every call has a deadline of 1 s. The server is another process: it drips, stalls, resets,
truncates and never ends (support.hostility has the list), over plain HTTP and TLS. Printed: the
share of calls that ended by deadline + 50 ms (95 % is the bar), the worst, and by what.
Name look-up is left out: the address is a number. Asserts nothing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import trustme
from interleaved import percentile
from prometheus_client import CollectorRegistry

import headrace

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.faultserver import FaultServer, server_context
from support.hostility import prepare, suffer

DEADLINE_S = 1.0
PUNCTUAL_S = 0.05
RULES = """
version: 1
install: {{urllib3: true}}
upstreams:
  billing:
    base_url: {url}
    timeouts: {{deadline: 1s, attempt: 400ms}}
    retry: {{max_attempts: 4, backoff: {{base: 10ms, throttled: 1ms}}}}
    circuit_breaker: {{mode: disabled}}
    {trust}
"""


def serve(pipe: Connection, secure: bool, folder: str) -> None:
    """Run the server until the other end of *pipe* says so."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(f"{folder}/ca.pem")
    with FaultServer(tls=server_context(authority) if secure else None) as server:
        prepare(server)
        pipe.send(server.url)
        pipe.recv()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    for secure in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = spawn.Pipe()
            server = spawn.Process(target=serve, args=(theirs, secure, folder))
            server.start()
            url = ours.recv()
            file = Path(folder, "upstreams.yaml")
            file.write_text(RULES.format(url=url, trust=f"tls: {{ca: '{folder}/ca.pem'}}" if secure else ""))
            with headrace.Headrace(file, registry=CollectorRegistry()) as hr:
                ended = suffer(hr, url, calls=options.calls, threads=options.threads, seed=options.seed)
            ours.send("end")
            server.join()
        over_s = sorted(one.took_s - DEADLINE_S for one in ended)
        punctual = sum(one <= PUNCTUAL_S for one in over_s) / len(over_s)
        by_deadline = sum(one >= -PUNCTUAL_S for one in over_s)
        worst = max(ended, key=lambda one: one.took_s)
        print(
            f"{'tls' if secure else 'plain':6}{len(ended)} calls, {by_deadline} of them ended by the deadline; "
            f"{punctual:.1%} by deadline + 50 ms; p99 {percentile(over_s, 0.99) * 1000:+.0f} ms, worst "
            f"{(worst.took_s - DEADLINE_S) * 1000:+.0f} ms ({worst.surface} {worst.path})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
