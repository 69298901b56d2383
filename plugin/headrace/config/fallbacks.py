"""Cross-checks of `fallback`: an answer of our own or another upstream, never both, and never in a circle."""

from __future__ import annotations

from collections.abc import Iterator

from headrace.config.problems import Path, Problem, did_you_mean
from headrace.config.settings import Settings
from headrace.config.written import Written


def check_fallbacks(settings: Settings, written: Written) -> Iterator[Problem]:
    """What in the `fallback` of any upstream could not be done."""
    for name, upstream in settings.upstreams.items():
        fallback = upstream.fallback
        base: Path = ("upstreams", name, "fallback")
        if fallback is None or not written.is_usable(base):
            continue
        to = (*base, "upstream")
        answers = [key for key in ("status", "headers", "body") if written.is_given((*base, key))]
        if fallback.upstream is None:
            if not answers:
                yield written.problem(
                    base,
                    "says neither what to answer nor whom to ask",
                    'write: fallback: {status: 200, body: "[]"}, or fallback: {upstream: name}',
                )
        elif answers:
            yield written.problem(
                to,
                f"and {answers[0]} exclude each other: another upstream is asked, or this is answered",
                "keep one of them",
            )
        elif fallback.upstream not in settings.upstreams:
            near = did_you_mean(fallback.upstream, list(settings.upstreams))
            yield written.problem(
                to,
                f'names "{written.shown(to, fallback.upstream)}", which is no upstream',
                f"did you mean {near}?" if near else "name an upstream of this file",
            )
        else:
            yield from _chain(settings, written, name)


def _chain(settings: Settings, written: Written, name: str) -> Iterator[Problem]:
    """What is wrong with where the fallbacks of *name* lead in the end."""
    path: Path = ("upstreams", name, "fallback", "upstream")
    chain = [name]
    target: str | None = name
    while target is not None:
        fallback = settings.upstreams[target].fallback
        target = None if fallback is None else fallback.upstream
        if target is None or target not in settings.upstreams:
            break
        if target in chain:
            if target == name:  # said for each that is on the circle, not for those that lead to it
                circle = " -> ".join([*chain, target])
                yield written.problem(
                    path, f"runs in a circle: {circle}", "let one of them answer by itself, or fail"
                )
            return
        chain.append(target)
    other = settings.upstreams[chain[1]]
    if other.mode != "enforce" and settings.upstreams[name].mode == "enforce":
        yield written.problem(
            path,
            f'names "{chain[1]}", which has mode: {other.mode}: it would not be governed there',
            "give it mode: enforce",
        )
