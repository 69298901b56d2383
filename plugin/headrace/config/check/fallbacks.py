"""Cross-checks of `fallback`: an answer of our own or another upstream, never both, and no chain without end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from headrace.config.check.problems import Path, Problem, did_you_mean
from headrace.config.settings import Settings
from headrace.config.source.chains import MAX_LINKS, arrows, in_a_row, links_of
from headrace.config.source.written import Written


def check_fallbacks(settings: Settings, written: Written) -> Iterator[Problem]:
    """What in the `fallback` of any upstream could not be done."""
    named: dict[str, str] = {}
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
                    'for example: fallback: {status: 200, body: "[]"}, or fallback: {upstream: name}',
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
            named[name] = fallback.upstream
    yield from _chains(settings, written, named)


def _chains(settings: Settings, written: Written, named: Mapping[str, str]) -> Iterator[Problem]:
    """What is wrong with where fallbacks lead: in a circle, through too many, or to one that is not governed."""
    links, circles = links_of(named)
    for circle in circles:
        # A short circle is reported for each upstream on it, a long one once: as many lines as links help nobody.
        for place in range(len(circle) if len(circle) <= MAX_LINKS else 1):
            names = [*circle[place:], *circle[:place], circle[place]]
            yield written.problem(
                _path(circle[place]),
                f"runs in a circle: {arrows(names)}",
                "let one of them answer by itself, or fail",
            )
    for name, following in links.items():
        if following == 0:
            continue
        if following == MAX_LINKS + 1:  # reported where it becomes too long, not at the links that lead there
            yield written.problem(
                _path(name),
                f"is the first of more than {MAX_LINKS} fallbacks in a row: {arrows(in_a_row(name, named))}",
                "let one of them answer by itself, or fail",
            )
        other = settings.upstreams[named[name]]
        if other.mode != "enforce" and settings.upstreams[name].mode == "enforce":
            yield written.problem(
                _path(name),
                f'names "{named[name]}", which has mode: {other.mode}: it would not be governed there',
                "give it mode: enforce",
            )


def _path(name: str) -> Path:
    return ("upstreams", name, "fallback", "upstream")
