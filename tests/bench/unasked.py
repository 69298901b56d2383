"""A storm of calls to a server that sends an answer nobody asked for after every tenth: how many callers get one.

    python tests/bench/unasked.py [--threads 50] [--rounds 200]

Plain and TLS, governed and (mode: off) as stock has it. Exit status 1 if a governed call got a foreign answer.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import trustme

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.faultserver import server_context
from support.unasked import storm


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    foreign = 0
    print(f"{'':20}{'calls':>8}{'unasked':>9}{'foreign':>9}{'s':>6}  closed")
    with tempfile.TemporaryDirectory() as folder:
        ca = trustme.CA()
        ca.cert_pem.write_to_path(f"{folder}/ca.pem")
        for name, tls, keys in (
            ("governed", None, ""),
            ("governed, TLS", server_context(ca, "127.0.0.1"), f", tls: {{ca: '{folder}/ca.pem'}}"),
            ("mode: off", None, ", mode: off"),
        ):
            started = time.monotonic()
            told = storm(Path(folder), threads=options.threads, rounds=options.rounds, tls=tls, keys=keys)
            took_s = time.monotonic() - started
            print(
                f"{name:20}{told.calls:8}{told.unasked:9}{told.foreign:9}{took_s:6.0f}  {told.closed or ''}"
            )
            foreign += told.foreign if "off" not in name else 0
    return bool(foreign)


if __name__ == "__main__":
    sys.exit(main())
