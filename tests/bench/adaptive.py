"""A day of calls through the sizing rule, in virtual time. Draws and prints; asserts nothing.

Run: python tests/bench/adaptive.py [--hours H] [--compress N] [--peak-rps R] [--seed S] [--set KEY=VALUE] [--png FILE]

The load is that of a service with office hours: little at night, a steep morning,
two humps, and bursts that come and go within minutes. Calls arrive at random (Poisson)
around that curve and hold a connection for a random time (lognormal). The very same
calls go through three pools: an adaptive one, driven by `policy.sizing` with the events that
the real pool gives it, and fixed ones of 10 and 200. A day is 24 virtual hours; `--compress 24`
plays it in one, with the same calls per second, so its slopes are 24 times as steep.

Pictures go to a PNG if matplotlib is there, and to the terminal in any case.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import statistics
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace

from headrace.policy.plan import AdaptivePlan
from headrace.policy.sizing import PoolLoad, Resize, Sizing

DAY_H = 24.0
LARGEST = 200
ACQUIRE_S = 0.5
LOOK_EVERY_S = 0.5
N_COLUMNS = 96
DEFAULTS = AdaptivePlan(
    min=10,
    grow_when_waiting=0.3,
    grow_when_rate=1.5,
    shrink_when_rate=0.7,
    shrink_after_s=30.0,
    rate_window_s=60.0,
    connections_per_rps=0.1,
)
_BURSTS = (
    (3.5, 0.20, 0.55),
    (10.2, 0.10, 0.9),
    (15.0, 0.25, 0.7),
    (20.5, 0.15, 0.6),
)  # hour, width h, height
_BARS = "▁▂▃▄▅▆▇█"


def load_at(hour: float) -> float:
    """Share of the peak rate at *hour* of the day, 0.06 to about 1.3 (a burst on a hump)."""
    morning = 1 / (1 + math.exp(-(hour - 8.0) * 2.2))
    evening = 1 / (1 + math.exp((hour - 18.5) * 1.3))
    lunch = 0.25 * math.exp(-(((hour - 12.7) / 0.8) ** 2))
    bursts = sum(height if abs(hour - at_h) <= width_h / 2 else 0.0 for at_h, width_h, height in _BURSTS)
    return 0.06 + max(morning * evening - lunch, 0.0) * 0.64 + 0.5 * bursts


@dataclass(slots=True)
class Call:
    """One call: when it comes and how long it keeps a connection, seconds."""

    at: float
    hold_s: float


def day(*, peak_rps: float, hold_s: float, compress: float, hours: float, seed: int) -> Iterator[Call]:
    """The calls of a day, oldest first: a Poisson process thinned to the curve."""
    rng = random.Random(seed)
    spread = 0.6
    mu = math.log(hold_s) - spread**2 / 2
    end_s = hours * 3600 / compress
    highest_rps = peak_rps * 1.4
    at = 0.0
    while True:
        at += rng.expovariate(highest_rps)
        if at >= end_s:
            return
        if rng.random() * 1.4 < load_at(at * compress / 3600 % DAY_H):
            yield Call(at, rng.lognormvariate(mu, spread))


@dataclass
class Story:
    """What became of the calls in one pool; `columns` are equal spans of time."""

    name: str
    waits_s: list[float] = field(default_factory=list)
    timeouts: int = 0
    resizes: list[tuple[float, Resize]] = field(default_factory=list)
    sizes: list[list[float]] = field(default_factory=lambda: [[] for _ in range(N_COLUMNS)])
    inuse: list[list[float]] = field(default_factory=lambda: [[] for _ in range(N_COLUMNS)])
    waiting: list[list[float]] = field(default_factory=lambda: [[] for _ in range(N_COLUMNS)])
    waited: list[list[float]] = field(default_factory=lambda: [[] for _ in range(N_COLUMNS)])


class Pool:
    """A pool in virtual time: slots, a queue in order, `acquire` as the limit of patience.

    Only the instants are simulated: which connection a call gets makes no difference to who waits.
    """

    def __init__(self, story: Story, size: int, sizing: Sizing | None, span_s: float) -> None:
        self.story, self.size, self.sizing, self.span_s = story, size, sizing, span_s
        self.now = 0.0
        self.inuse = self.peak_inuse = self.arrivals = 0
        self.ends: list[float] = []
        self.queue: deque[Call] = deque()

    def run(self, calls: Iterator[Call]) -> Story:
        """All of *calls*, to the end."""
        look_at = 0.0
        for call in calls:
            while look_at <= call.at:
                self.advance(look_at)
                self.look()
                look_at += LOOK_EVERY_S
            self.advance(call.at)
            self.arrive(call)
        self.advance(self.span_s)
        return self.story

    def advance(self, to: float) -> None:
        """End every call that ends before *to*, and let the impatient go."""
        while self.ends and self.ends[0] <= to:
            self.now = heapq.heappop(self.ends)
            self.inuse -= 1
            self.serve()
        self.now = to
        self.give_up()

    def arrive(self, call: Call) -> None:
        """*call* gets a slot, or into the queue."""
        self.arrivals += 1
        if self.inuse < self.size and not self.queue:
            self.lease(call)
            return
        self.queue.append(call)
        if self.sizing is not None:
            self.resize(self.sizing.enqueued(self.now, self.load()))

    def look(self) -> None:
        """Housekeeping, and a dot in the picture."""
        if self.sizing is not None:
            self.resize(self.sizing.looked(self.now, self.load()))
        column = self.column()
        self.story.sizes[column].append(self.size)
        self.story.inuse[column].append(self.inuse)
        self.story.waiting[column].append(len(self.queue))

    def load(self) -> PoolLoad:
        peak, self.peak_inuse = self.peak_inuse, self.inuse
        return PoolLoad(waiting=len(self.queue), inuse=peak, size=self.size, arrivals=self.arrivals)

    def resize(self, answer: Resize | None) -> None:
        if answer is not None:
            self.story.resizes.append((self.now, answer))
            self.size = answer.to_size
            self.serve()

    def serve(self) -> None:
        self.give_up()
        while self.queue and self.inuse < self.size:
            self.lease(self.queue.popleft())

    def give_up(self) -> None:
        while self.queue and self.now - self.queue[0].at >= ACQUIRE_S:
            self.queue.popleft()
            self.story.timeouts += 1
            self.wait(ACQUIRE_S)

    def lease(self, call: Call) -> None:
        self.wait(self.now - call.at)
        self.inuse += 1
        self.peak_inuse = max(self.peak_inuse, self.inuse)
        heapq.heappush(self.ends, self.now + call.hold_s)

    def wait(self, waited_s: float) -> None:
        self.story.waits_s.append(waited_s)
        self.story.waited[self.column()].append(waited_s)

    def column(self) -> int:
        return min(int(self.now / self.span_s * N_COLUMNS), N_COLUMNS - 1)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that *share* of *ordered* do not exceed; 0 for none."""
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


def means(columns: list[list[float]]) -> list[float]:
    return [statistics.fmean(column) if column else 0.0 for column in columns]


def line(values: list[float], top: float) -> str:
    """*values* as a row of bars, *top* the highest."""
    return "".join(
        " " if value <= 0 else _BARS[min(int(value / top * len(_BARS)), len(_BARS) - 1)] for value in values
    )


def summary(stories: list[Story]) -> str:
    """A row per pool: waits in milliseconds, sizes in connections."""
    head = (("pool", -10), ("calls", 9), ("waited", 9), ("p50 ms", 9), ("p95 ms", 9), ("p99 ms", 9))
    head += (("timeouts", 10), ("mean size", 11), ("max", 6), ("grown", 7), ("shrunk", 7))
    rows = ["".join(f"{word:<{-width}}" if width < 0 else f"{word:>{width}}" for word, width in head)]
    for story in stories:
        waits = sorted(story.waits_s)
        sizes = [size for column in story.sizes for size in column]
        grown = sum(one.to_size > one.from_size for _, one in story.resizes)
        rows.append(
            f"{story.name:<10}{len(waits):>9}{sum(wait > 0 for wait in waits) / len(waits):>9.2%}"
            + "".join(f"{percentile(waits, share) * 1000:>9.1f}" for share in (0.5, 0.95, 0.99))
            + f"{story.timeouts / len(waits):>10.2%}{statistics.fmean(sizes):>11.1f}{max(sizes):>6.0f}"
            f"{grown:>7}{len(story.resizes) - grown:>7}"
        )
    return "\n".join(rows)


def sparklines(stories: list[Story]) -> str:
    """In use, size, waiting and wait time over the day; a column is a quarter of an hour of a whole day."""
    rows = []
    busiest = max(stories, key=lambda story: max(means(story.inuse)))
    inuse = means(busiest.inuse)
    rows.append(
        f"{'in use':<10}{'(' + busiest.name + ')':<12}|{line(inuse, max(inuse))}| to {max(inuse):.0f}"
    )
    for what, columns_of, unit in (
        ("size", lambda story: means(story.sizes), ""),
        ("waiting", lambda story: means(story.waiting), ""),
        ("wait p99", lambda story: [percentile(sorted(c), 0.99) * 1000 for c in story.waited], " ms"),
    ):
        all_values = [columns_of(story) for story in stories]
        highest = max(max(values) for values in all_values) or 1.0
        for story, values in zip(stories, all_values, strict=True):
            top = max(values) if what == "size" else highest  # a size of 30 would be flat beside one of 200
            rows.append(f"{what:<10}{story.name:<12}|{line(values, top)}| to {max(values):.0f}{unit}")
    return "\n".join(rows)


def draw(stories: list[Story], file: str, hours: float) -> str:
    """The same as a PNG; says what became of it."""
    try:
        from matplotlib import pyplot
    except ImportError:
        return "no matplotlib: no PNG"
    figure, axes = pyplot.subplots(3, 1, figsize=(11, 9), sharex=True)
    at_h = [(column + 0.5) * hours / N_COLUMNS for column in range(N_COLUMNS)]
    for story in stories:
        axes[0].plot(at_h, means(story.sizes), label=story.name)
        axes[1].plot(at_h, means(story.waiting), label=story.name)
        axes[2].plot(at_h, [percentile(sorted(c), 0.99) * 1000 for c in story.waited], label=story.name)
    axes[0].plot(at_h, means(stories[-1].inuse), "k:", label="in use, never waiting")
    for axis, title in zip(axes, ("connections", "waiting", "wait, p99 [ms]"), strict=True):
        axis.set_ylabel(title)
        axis.legend()
    axes[2].set_xlabel("hour of the day")
    figure.savefig(file, dpi=110)
    return f"drawn to {file}"


def plan_with(settings: list[str]) -> AdaptivePlan:
    """The defaults with KEY=VALUE *settings*; durations in seconds."""
    kinds = {one.name: int if one.name == "min" else float for one in fields(AdaptivePlan)}
    changes = dict(setting.split("=", 1) for setting in settings)
    return replace(DEFAULTS, **{key: kinds[key](value) for key, value in changes.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--hours", type=float, default=DAY_H, help="of the day to play")
    parser.add_argument("--compress", type=float, default=24.0, help="hours of the day per virtual hour")
    parser.add_argument("--peak-rps", type=float, default=240.0, help="rate that the curve calls 1")
    parser.add_argument("--hold", type=float, default=0.2, help="mean time a connection is kept, seconds")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of pool.adaptive")
    parser.add_argument("--png", default=None, metavar="FILE")
    parser.add_argument("--log", action="store_true", help="print each resize")
    given = parser.parse_args()
    plan = plan_with(given.set)
    span_s = given.hours * 3600 / given.compress
    pools: tuple[tuple[str, int, Sizing | None], ...] = (
        ("adaptive", plan.min, Sizing(plan, max_connections=LARGEST)),
        ("fixed 10", 10, None),
        (f"fixed {LARGEST}", LARGEST, None),
    )
    stories = []
    for name, size, sizing in pools:
        calls = day(
            peak_rps=given.peak_rps,
            hold_s=given.hold,
            compress=given.compress,
            hours=given.hours,
            seed=given.seed,
        )
        stories.append(Pool(Story(name), size, sizing, span_s).run(calls))
    print(f"{given.hours:g} h of a day in {span_s / 3600:g} virtual hours, {plan}\n")
    print(sparklines(stories))
    print()
    print(summary(stories))
    if given.log:
        for at, one in stories[0].resizes:
            print(
                f"{at * given.compress / 3600:7.3f} h {one.reason:<8} {one.from_size:>4} -> {one.to_size:<4}"
                f" waiting {one.waiting}, peak {one.peak_inuse}, {one.rate_rps:.1f} rps,"
                f" usual {'-' if one.baseline_rps is None else f'{one.baseline_rps:.1f}'}"
            )
    if given.png is not None:
        print(draw(stories, given.png, given.hours))


if __name__ == "__main__":
    main()
