"""What the shipped breaker costs where none is needed, and how soon it opens where one is. Prints; asserts nothing.

Run: python tests/bench/breaker_harm.py [--calls N] [--seconds S] [--rates R …] [--only harm|notice]

Partial trouble: each attempt fails with probability p, independently or in bursts of a
second (the whole second fails, or none of it). The very same trouble meets the shipped rules and
`mode: disabled`; "lost" is what failed after its retries, or was refused. By
`headrace.testing.Simulation`: the file, exchange, circuit and budget are the real ones, the time is virtual,
calls come at a fixed rate and overlap. Five seeds; the worst is printed.

The bar: independent failures cost at most 2 points more than no breaker (p <= 0.4); one-second bursts at
most 10 (p <= 0.2); a dead upstream is noticed within 5 calls, within 0.2 s at 100 calls/s; p >= 0.8 within 10 s.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace.testing import SimulatedUpstream, Simulation

SEEDS = (1, 2, 3, 4, 5)
RATES = (0.2, 1.0, 2.0, 5.0, 10.0, 30.0, 100.0, 1000.0)
INDEPENDENT = (0.05, 0.1, 0.2, 0.3, 0.4)
BURSTS = (0.05, 0.1, 0.2)
WORST_INDEPENDENT, WORST_BURSTS = 0.02, 0.10

Trouble = Callable[[float], int]
"""The status of an attempt that begins at an instant, seconds."""


@dataclass(frozen=True, slots=True)
class Harm:
    """One load under the shipped rules and without a breaker; shares in [0, 1]."""

    lost: float
    lost_without: float
    openings: int

    @property
    def more(self) -> float:
        """What the breaker costs beyond no breaker."""
        return self.lost - self.lost_without


def independent(p: float, seed: int, *, status: int = 500) -> Trouble:
    """Each attempt fails by itself."""
    chance = random.Random(f"{seed} {p}").random
    return lambda at_s: status if chance() < p else 200


def in_bursts(p: float, seed: int, *, status: int = 500) -> Trouble:
    """A whole second fails, or none of it."""
    return lambda at_s: status if random.Random(f"{seed} {p} {int(at_s)}").random() < p else 200


def harm(trouble: Callable[[], Trouble], *, rate: float, calls: int, seed: int, body: str = "") -> Harm:
    """The same *trouble* with and without the breaker, at *rate* calls a second.

    Args:
        body: Further keys of the upstream, for both.
    """
    with_it, upstream = _play(trouble(), body, rate=rate, calls=calls, seed=seed)
    without, _ = _play(
        trouble(), body + "    circuit_breaker: {mode: disabled}\n", rate=rate, calls=calls, seed=seed
    )
    return Harm(with_it, without, sum(moment.what == "open" for moment in upstream.transitions))


def noticed_after(p: float, *, rate: float, calls: int, seed: int) -> tuple[float, int] | None:
    """Seconds until the circuit opens on an upstream that fails with *p* from the start, and calls begun by then.

    None: it did not within *calls*.
    """
    _, upstream = _play(independent(p, seed), "", rate=rate, calls=calls, seed=seed)
    opened = [moment.at_s for moment in upstream.transitions if moment.what == "open"]
    return (opened[0], 1 + int(opened[0] * rate)) if opened else None


def worst(loads: Sequence[Harm]) -> Harm:
    """That in which the breaker cost most."""
    return max(loads, key=lambda one: one.more)


def calls_at(rate: float, *, calls: int, seconds: float) -> int:
    """As many as that, or as come in so long."""
    return max(calls, round(rate * seconds))


def _play(
    trouble: Trouble, body: str, *, rate: float, calls: int, seed: int
) -> tuple[float, SimulatedUpstream]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "upstreams.yaml")
        file.write_text(f"upstreams:\n  one:\n    base_url: https://one.internal\n{body}")
        upstream = Simulation(file, seed=seed).upstream("one")
    upstream.always(trouble)
    return upstream.traffic(every=f"{1000 / rate:g}ms", times=calls).lost, upstream


def _harm_lines(rates: Sequence[float], *, calls: int, seconds: float) -> Iterator[str]:
    kinds = (
        ("independent", independent, INDEPENDENT, WORST_INDEPENDENT),
        ("bursts of 1 s", in_bursts, BURSTS, WORST_BURSTS),
    )
    for name, kind, shares, bar in kinds:
        for p in shares:
            for rate in rates:
                n = calls_at(rate, calls=calls, seconds=seconds)
                found = [
                    harm(lambda k=kind, p=p, s=seed: k(p, s), rate=rate, calls=n, seed=seed) for seed in SEEDS
                ]
                one = worst(found)
                said = "" if one.more <= bar else f"   above the bar of {bar:.0%}"
                yield (
                    f"{name:13}  p {p:<4g} {rate:6g}/s  lost {one.lost:6.1%}, without {one.lost_without:6.1%}, "
                    f"more {one.more:+6.1%}, {one.openings} openings{said}"
                )


def _notice_lines(rates: Sequence[float]) -> Iterator[str]:
    for p in (1.0, 0.9, 0.8):
        for rate in rates:
            n = max(50, round(rate * 60))
            found = [noticed_after(p, rate=rate, calls=n, seed=seed) for seed in SEEDS]
            known = [one for one in found if one is not None]
            if len(known) < len(found):
                yield f"p {p:g} {rate:6g}/s  noticed with {len(known)} of {len(found)} seeds in {n / rate:g} s"
            else:
                after_s, begun = max(known)
                yield f"p {p:g} {rate:6g}/s  noticed after {after_s:.2f} s, {begun} calls begun"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=3000, help="at least so many calls per load")
    parser.add_argument("--seconds", type=float, default=300.0, help="and for so long, virtual seconds")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="calls a second")
    parser.add_argument("--only", choices=["harm", "notice"])
    options = parser.parse_args()
    if options.only != "harm":
        for line in _notice_lines(options.rates):
            print(line, flush=True)
    if options.only != "notice":
        for line in _harm_lines(options.rates, calls=options.calls, seconds=options.seconds):
            print(line, flush=True)


if __name__ == "__main__":
    main()
