"""Mutated answers through the codec, in slices of CPU time: none may crash it, hang it or be read past its end.

    python tests/bench/fuzz_h1.py [--inputs 10_000_000] [--slice-s 60] [--slices 1] [--seed 0] [--state FILE]

A slice is SLICE-S seconds of CPU, then the number of the next input is written to FILE; started again with that file it
goes on from there, to INPUTS. An input is made from its number and the seed alone: `--only NUMBER` shows one.

Of each input holds, or it is printed and the exit status is 1:

- nothing is raised but Malformed and Truncated, and each feed ends within a second of CPU
- whole, cut at random and (of every tenth) byte by byte it is the same: result, body, what is behind it, error
- llhttp's quick way and the table agree (the whole piece, and the same with the quick way shut)
- `started` is true if and only if a byte was fed; nothing is reusable that is not done, or has anything behind it
- of a complete answer, head, body and what is behind are no more than was fed; by a length they are just that
- what is read past the reader (`rest`, `passed`) ends where reading through it ends
- what `whole` answers in one call, on a reader that is new or has read an answer before, begin and feed say as well,
  and where it answers nothing, the reader reads on as if it had not been asked
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).parents[1]))

from headrace.transport.wire.h1 import AnswerReader, Limits, Malformed, Truncated
from support.answers import mutated, one

LIMITS = (
    Limits(),
    Limits(),
    Limits(head_bytes=120, headers=6, line_bytes=24, informational=2, body_bytes=64),
)
LONGEST_FEED_S = 1.0


@dataclass(frozen=True)
class Said:
    """All that a reader says of what it was fed, and how that ended."""

    error: str | None
    status: int
    version: int
    reason: str
    headers: tuple[tuple[bytes, bytes], ...]
    chunked: bool
    length: int | None
    body: bytes
    trailers: tuple[tuple[bytes, bytes], ...]
    informational: tuple[int, ...]
    done: bool
    reusable: bool
    behind: bytes
    head: bytes


@dataclass(frozen=True)
class Input:
    """What is fed, cut at *at* and perhaps *singly*, in answer to *method*; then the stream *ends*, or not."""

    data: bytes
    method: str
    limits: Limits
    at: tuple[int, ...]
    ends: bool
    singly: bool


def made(seed: int, number: int) -> Input:
    """The input of that number."""
    rng = random.Random(f"{seed}:{number}")
    sent = one(rng)
    data = sent.data
    if rng.random() < 0.5:
        data = mutated(rng, data)
    if rng.random() < 0.1:
        data += one(rng).data
    at = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice([1, 1, 2, 3, 8])))
    # It takes as long as all the others: of every tenth.
    singly = len(data) < 1000 and rng.random() < 0.1
    return Input(data, sent.method, rng.choice(LIMITS), tuple(at), ends=rng.random() < 0.7, singly=singly)


def told(reader: AnswerReader, pieces: list[bytes], *, ends: bool, past: bool = False) -> Said:
    """What *reader* says in the end of *pieces*; *past*: bodies by a length are read past it."""
    error: str | None = None
    body = b""
    try:
        for fed in pieces:
            piece = fed
            while past and piece and (rest := reader.rest()):
                body += reader.take() + piece[:rest]
                reader.passed(len(piece[:rest]))
                piece = piece[rest:]
            was_started = reader.started
            done = reader.feed(piece)
            check(done is reader.done, "feed() does not say what done says")
            check(reader.started is (was_started or bool(piece)), "started is not whether a byte was fed")
        if ends:
            reader.end()
    except (Malformed, Truncated) as caught:
        error = type(caught).__name__
    return Said(
        error=error,
        status=reader.status,
        version=reader.version,
        reason=reader.reason,
        headers=tuple(reader.raw_headers),
        chunked=reader.chunked,
        length=reader.length,
        body=body + reader.take(),
        trailers=tuple(reader.trailers),
        informational=tuple(reader.informational),
        done=reader.done,
        reusable=reader.reusable,
        behind=reader.behind,
        head=reader.head,
    )


class Broken(Exception):
    """An invariant does not hold."""


def check(holds: bool, what: str) -> None:
    """Raise if it does not."""
    if not holds:
        raise Broken(what)


def new(given: Input) -> AnswerReader:
    reader = AnswerReader(given.limits)
    reader.begin(given.method)
    return reader


_BEFORE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Before: yes\r\n\r\nno"


def check_at_once(given: Input, *, used: bool) -> None:
    """Check what a reader says in one call, by what it says in several."""
    reader = AnswerReader(given.limits)
    if used and reader.whole("GET", _BEFORE) is None:
        reader.begin("GET")
        reader.feed(_BEFORE)
        reader.take()
    at_once = reader.whole(given.method, given.data) if given.data else None
    by_steps = told(new(given), [given.data], ends=False)
    if at_once is not None:
        status, head, lowered, body, chunked, reusable = at_once
        check(by_steps.done and by_steps.error is None, "whole in one call, and not by steps")
        check(
            not (by_steps.behind or by_steps.trailers or by_steps.informational), "more came than one answer"
        )
        check(by_steps.version == 11, "another version")
        check(
            (status, head, lowered, body, chunked, reusable)
            == (
                by_steps.status,
                by_steps.head,
                by_steps.head.lower(),
                by_steps.body,
                by_steps.chunked,
                by_steps.reusable,
            ),
            "in one call it is another",
        )
    elif given.data:
        reader.begin(given.method)
        check(told(reader, [given.data], ends=False) == by_steps, "read on, it is another")


def examine(given: Input, used: AnswerReader | None) -> AnswerReader | None:
    """Check all of it. Gives back the reader if another answer may follow on it; *used* is such a one, or None."""
    data, ends = given.data, given.ends
    reader = new(given) if used is None else used
    if used is not None:
        used.begin(given.method)
    whole = told(reader, [data], ends=ends)
    check_at_once(given, used=used is not None)
    by_table = new(given)
    by_table._at_once_bytes = -1
    check(told(by_table, [data], ends=ends) == whole, "the quick way and the table differ")
    edges = [0, *given.at, len(data)]
    pieces = [data[start:end] for start, end in pairwise(edges)]
    check(told(new(given), pieces, ends=ends) == whole, f"cut at {given.at} it is another")
    check(
        told(new(given), pieces, ends=ends, past=True) == whole,
        f"read past the reader, {given.at}, it is another",
    )
    if given.singly:
        singly = [data[i : i + 1] for i in range(len(data))]
        check(told(new(given), singly, ends=ends) == whole, "byte by byte it is another")
    check(reader.started is bool(data), "started")
    check(not (whole.reusable and (not whole.done or whole.behind or ends or whole.error)), "reusable")
    check(not (whole.done and whole.error), "complete, and an error")
    if whole.done:
        read = len(whole.head) + len(whole.body) + len(whole.behind)
        check(read <= len(data), "more than was fed")
        check(data.endswith(whole.behind), "what is behind it was not fed behind it")
        if not whole.chunked and not whole.informational:
            check(
                data == whole.head + whole.body + whole.behind,
                "head, body and what is behind are not what was fed",
            )
    if whole.length is not None:
        check(len(whole.body) <= whole.length, "more body than its length")
    return reader if whole.reusable else None


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=10_000_000)
    parser.add_argument("--slice-s", type=float, default=60)
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path)
    parser.add_argument("--only", type=int)
    options = parser.parse_args()
    if options.only is not None:
        given = made(options.seed, options.only)
        print(given)
        examine(given, None)
        return 0
    number = int(options.state.read_text()) if options.state is not None and options.state.exists() else 0
    signal.signal(signal.SIGVTALRM, _hangs)
    n_broken = 0
    used: dict[
        Limits, AnswerReader | None
    ] = {}  # the reader that the last answer has left behind, if it may be used
    for _ in range(options.slices):
        started_at, first = time.process_time(), number
        while number < options.inputs and time.process_time() - started_at < options.slice_s:
            given = made(options.seed, number)
            signal.setitimer(signal.ITIMER_VIRTUAL, LONGEST_FEED_S * 6)
            try:
                used[given.limits] = examine(given, used.pop(given.limits, None))
            except Exception as error:
                n_broken += 1
                print(
                    f"--seed {options.seed} --only {number}: {type(error).__name__}: {error}\n  {given!r:.2000}"
                )
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            number += 1
        took_s = time.process_time() - started_at
        print(f"inputs {first} to {number}: {took_s:.0f} s of CPU, {n_broken} broken", flush=True)
        if options.state is not None:
            options.state.write_text(str(number))
        if number >= options.inputs:
            break
    return bool(n_broken)


def _hangs(signum: int, frame: FrameType | None) -> NoReturn:
    raise Broken(f"{LONGEST_FEED_S * 6} s of CPU, and no end")


if __name__ == "__main__":
    sys.exit(main())
