"""What `check` proposes for a refused value: it loads, it means what was written, and it is never a guess."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.config import Inspection, Problem, inspect
from headrace.config.check.foreign import FOREIGN, Here
from headrace.config.check.problems import Path as KeyPath
from headrace.config.explain.keys import Key, key_at, root_key

BASE = ("upstreams", "a")


def inspected(folder: Path, path: str, value: str) -> Inspection:
    """A file with *value*, as YAML, at *path* (below the upstream, or from the top with a leading dot)."""
    top = path.startswith(".")
    parts = path.lstrip(".").split(".")
    nested = value
    for part in reversed(parts):
        nested = f"{{{part}: {nested}}}"
    if top:
        text = f"{parts[0]}: {nested[len(parts[0]) + 3 : -1]}\nupstreams: {{a: {{base_url: http://a}}}}\n"
    else:
        text = f"defaults: {nested}\nupstreams: {{a: {{base_url: http://a}}}}\n"
    (folder / "p.yaml").write_text(text, "utf-8")
    return inspect("p.yaml", env={}, cwd=folder)


def value_at(inspection: Inspection, path: str) -> Any:
    found: Any = inspection.settings
    for part in [*BASE, *path.split(".")] if not path.startswith(".") else path[1:].split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    return found


def proposed(problem: Problem) -> list[str]:
    """The values of *problem*'s fix, if it says what to write."""
    if not problem.fix.startswith("write: "):
        return []
    either = problem.fix.removeprefix("write: ").removesuffix(", whichever is meant").split(" or ")
    return [one.partition(": ")[2] for one in either]


DEADLINE, RATE, SIZE = "timeouts.deadline", "circuit_breaker.failure_rate_threshold", "pool.max_response_body"


@pytest.mark.parametrize(
    ("path", "written", "means"),
    [
        (DEADLINE, "15", {"15s": 15.0}),
        (DEADLINE, "2.5", {"2.5s": 2.5}),
        (DEADLINE, '"15"', {"15s": 15.0}),
        (DEADLINE, "5000", {"5000ms": 5.0, "5000s": 5000.0}),
        ("retry.backoff.throttled", "1", {"1s": 1.0}),
        ("retry.backoff.base", "1", {"1ms": 0.001, "1s": 1.0}),
        (".reload.debounce", "1", {"1ms": 0.001, "1s": 1.0}),
        ("timeouts.acquire", "0", {"0s": 0.0}),
        (DEADLINE, "1m30s", {"90s": 90.0}),
        (DEADLINE, "1h 30m", {"90m": 5400.0}),
        (DEADLINE, "1 h and 5 min", {"65m": 3900.0}),
        (DEADLINE, "1d", {"24h": 86400.0}),
        (DEADLINE, "30 days", {"720h": 30 * 86400.0}),
        (DEADLINE, "2w", {"336h": 14 * 86400.0}),
        (DEADLINE, "PT2S", {"2s": 2.0}),
        (DEADLINE, "pt1m30.5s", {"90.5s": 90.5}),
        (DEADLINE, "P1DT12H", {"36h": 36 * 3600.0}),
        (DEADLINE, ".01s", {"10ms": 0.01}),
        (DEADLINE, "5.s", {"5s": 5.0}),
        (DEADLINE, '"1,5s"', {"1.5s": 1.5}),
        (DEADLINE, "5S", {"5s": 5.0}),
        (DEADLINE, "5 Minutes", {"5m": 300.0}),
        (DEADLINE, "1500us", {"0.0015s": 0.0015}),
        (DEADLINE, "1_500ms", {"1.5s": 1.5}),
        (DEADLINE, "2e3 msec", {"2s": 2.0}),
        (DEADLINE, "00:01:30", {"90s": 90.0}),
        (DEADLINE, "none", {"null": None}),
        (DEADLINE, "false", {"null": None}),
        (DEADLINE, "unlimited", {"null": None}),
        (DEADLINE, ".inf", {"null": None}),
        ("circuit_breaker.window.size", "1m30s", {"90s": 90.0}),
        (RATE, "80", {"0.8": 0.8}),
        (RATE, "5%", {"0.05": 0.05}),
        (RATE, '"12.5 %"', {"0.125": 0.125}),
        (RATE, "100", {"1": 1.0}),
        (RATE, '"0.5"', {"0.5": 0.5}),
        (RATE, '"0,5"', {"0.5": 0.5}),
        ("circuit_breaker.open_for.jitter", "10%", {"0.1": 0.1}),
        ("retry.budget.ratio", "20", {"0.2": 0.2}),
        ("retry.backoff.multiplier", "150%", {"1.5": 1.5}),
        ("retry.max_attempts", "three", {"3": 3}),
        ("retry.max_attempts", '"3"', {"3": 3}),
        ("retry.max_attempts", "3.0", {"3": 3}),
        ("pool.max_connections", "1_000", {"1000": 1000}),
        ("pool.max_connections", '"1,000"', {"1000": 1000}),
        ("pool.max_connections", "1e3", {"1000": 1000}),
        ("circuit_breaker.consecutive_failures", "off", {"null": None}),
        ("pool.max_requests_per_connection", "unlimited", {"null": None}),
        ("mode", "false", {"off": "off"}),
        ("mode", "disabled", {"off": "off"}),
        ("mode", "Observe", {"observe": "observe"}),
        ("circuit_breaker.mode", "off", {"disabled": "disabled"}),
        ("circuit_breaker.mode", "Forced Open", {"forced_open": "forced_open"}),
        ("retry.backoff.jitter", "false", {"none": "none"}),
        (".telemetry.tracing", "none", {"off": "off"}),
        ("tls.min_version", "1.3", {'"1.3"': "1.3"}),
        ("tls.min_version", "TLSv1.3", {'"1.3"': "1.3"}),
        (".version", '"1"', {"1": 1}),
        (".install.urllib3", "yes", {"true": True}),
        (".install.urllib3", '"true"', {"true": True}),
        (".install.urllib3", "1", {"true": True}),
        (".install.requests", "off", {"false": False}),
        (".install.requests", "disabled", {"false": False}),
        (SIZE, "65536", {"64KiB": 65536}),
        (SIZE, "64 kB", {"64000B": 64000}),
        (SIZE, "10mib", {"10MiB": 10 << 20}),
        (SIZE, "64Ki", {"64KiB": 65536}),
        (SIZE, "1.5MiB", {"1536KiB": 1536 << 10}),
        (SIZE, "off", {"null": None}),
        ("retry.retry_on", "5xx", {"[5xx]": ["5xx"]}),
        ("retry.retry_on", '"5xx, 503"', {"[5xx, 503]": ["5xx", 503]}),
        ("retry.retry_on", "503", {"[503]": [503]}),
        ("retry.methods", "get", {"[GET]": ["GET"]}),
        ("retry.methods", '"GET,POST"', {"[GET, POST]": ["GET", "POST"]}),
        ("tls.server_name", "10", {'"10"': "10"}),
        ("fallback.body", "007", {'"007"': "007"}),
        ("pool.heartbeat", "false", {"null": None}),
        ("fallback", "none", {"null": None}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_proposal_loads_and_means_what_was_written(
    path: str, written: str, means: dict[str, object], tmp_path: Path
) -> None:
    (problem,) = inspected(tmp_path, path, written).problems

    assert proposed(problem) == list(means)
    for proposal, meant in means.items():
        again = inspected(tmp_path, path, proposal)
        assert [one for one in again.problems if one.path == problem.path and "must be" in one.message] == []
        if again.settings is not None:
            assert value_at(again, path) == meant


@pytest.mark.parametrize(
    ("section", "proposal", "path", "meant"),
    [
        ("circuit_breaker", "{mode: disabled}", "circuit_breaker.mode", "disabled"),
        ("retry", "{max_attempts: 1}", "retry.max_attempts", 1),
    ],
)
def test_a_section_that_is_off_is_said_in_its_own_words(
    section: str, proposal: str, path: str, meant: object, tmp_path: Path
) -> None:
    (problem,) = inspected(tmp_path, section, "false").problems

    assert problem.fix == f"write: {section}: {proposal}"
    assert value_at(inspected(tmp_path, section, proposal), path) == meant


@pytest.mark.parametrize(
    ("path", "written"),
    [
        (DEADLINE, "1:30"),  # minutes or hours
        (DEADLINE, "P1M"),  # 28 to 31 days
        (DEADLINE, '"1,500ms"'),  # 1.5 or 1500
        (DEADLINE, "30s 1m"),
        (DEADLINE, "soon"),
        (DEADLINE, "-5s"),
        (DEADLINE, "0"),
        (DEADLINE, "31d"),
        (DEADLINE, "true"),
        ("timeouts.attempt", "none"),  # has no null
        ("circuit_breaker.half_open.probe_timeout", "off"),  # its null stands for another value
        ("circuit_breaker.window.size", '"100"'),  # seconds or calls
        (RATE, "1.5"),
        (RATE, "half"),
        (RATE, "150%"),
        ("retry.max_attempts", "0"),
        ("retry.max_attempts", "3.5"),
        ("retry", "3"),  # retries or attempts
        ("retry", "true"),
        ("tls", "false"),
        ("tls.ca", "false"),
        ("timeouts", "5s"),
        ("mode", "true"),
        ("mode", "on"),
        ("mode", "monitor"),
        ("circuit_breaker.mode", "open"),
        ("circuit_breaker.mode", "half_open"),
        ("circuit_breaker.mode", "enabled"),  # one letter from disabled, and its opposite
        ("retry.backoff.jitter", "unequal"),
        ("tls.min_version", "1.1"),
        (".version", "2"),
        (SIZE, "10M"),  # a million, or MiB as nginx reads it
        (SIZE, "0"),
        ("retry.retry_on", "4xx"),
        (".install.urllib3", "2"),
        (".install.urllib3", "none"),
    ],
)
def test_a_guess_is_not_offered(path: str, written: str, tmp_path: Path) -> None:
    (problem,) = inspected(tmp_path, path, written).problems

    assert not problem.fix.startswith(("write", "did you mean"))


@pytest.mark.parametrize(
    ("path", "written", "asked"),
    [
        ("mode", "observed", "did you mean mode: observe?"),
        ("retry.backoff.jitter", "decorelated", "did you mean jitter: decorrelated?"),
        ("retry.retry_on", "[netwrok]", "did you mean network?"),
    ],
)
def test_what_looks_like_a_slip_is_asked_about(path: str, written: str, asked: str, tmp_path: Path) -> None:
    (problem,) = inspected(tmp_path, path, written).problems

    assert problem.fix == asked


INPUTS = [
    *(
        "3",
        "0",
        "1",
        "-1",
        "1.5",
        "80",
        "1e3",
        '"3"',
        "true",
        "false",
        "yes",
        "off",
        "none",
        "never",
        "1d",
        "1m30s",
    ),
    *(
        "PT2S",
        ".01s",
        "5%",
        "three",
        "1_000",
        "64Ki",
        "10 MiB",
        "5xx",
        "get",
        "'GET, POST'",
        "http://a",
        "TLSv1.2",
    ),
    *(
        "unlimited",
        "007",
        ".inf",
        "X-Id",
        "/x",
        "a:b",
        "'a, b'",
        "observe",
        "2s",
        "0s",
        "30 days",
        "[]",
        "{}",
        "on",
    ),
]


def leaves(key: Key, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Every key that holds a value, the first upstream's standing for all."""
    for name, child in key.children.items():
        if name in ("extends", "version", "defaults"):
            continue
        if name == "upstreams":
            assert child.item is not None
            yield from leaves(child.item, BASE)
        elif child.children:
            yield from leaves(child, (*path, name))
        else:
            yield (*path, name)


def nested(values: dict[KeyPath, str]) -> str:
    """*values* as one flow map."""
    heads: dict[str, dict[KeyPath, str]] = {}
    for path, value in values.items():
        heads.setdefault(str(path[0]), {})[path[1:]] = value
    inner = (f"{name}: {below[()] if () in below else nested(below)}" for name, below in heads.items())
    return "{" + ", ".join(inner) + "}"


@pytest.mark.parametrize("written", INPUTS)
def test_whatever_is_proposed_for_whichever_key_is_taken(written: str, tmp_path: Path) -> None:
    values = dict.fromkeys(leaves(root_key()), written)
    values[(*BASE, "base_url")] = "http://a"
    (tmp_path / "all.yaml").write_text(nested(values))
    problems = {one.path: one for one in inspect("all.yaml", env={}, cwd=tmp_path).problems}
    assert problems
    wanted: set[str] = set()
    for path in list(values):
        dotted_path = ".".join(map(str, path))
        if (problem := problems.get(dotted_path)) is not None:
            del values[path]
            if offered := proposed(problem):
                values[path] = offered[-1]
                wanted.add(dotted_path)
        elif any(re.match(re.escape(dotted_path) + r"[.\[]", one) for one in problems):
            del values[path]  # an item of it, or a key below it

    again = (
        inspect("all.yaml", env={}, cwd=tmp_path)
        if (tmp_path / "all.yaml").write_text(nested(values))
        else None
    )

    assert again is not None
    assert [str(one) for one in again.problems if one.path in wanted and "must be" in one.message] == []


NULLABLE = {
    "none": "off",
    "never": "off",
    "off": "off",
    "no limit": "off",
    "no deadline": "off",
    "not bounded": "off",
    "none is": "off",
    "none is made": "off",
    "all at once": "off",
    "whatever its age": "off",
    "closed when it comes back": "off",
    "always max_connections": "off",
    "CircuitOpenError": "off",
}
"""What a description says that null means, for the keys at which `off` and `none` are taken for it."""


def test_only_where_null_means_off_is_off_taken_for_it(tmp_path: Path) -> None:
    told: dict[str, str] = {}

    def look(key: Key, path: KeyPath) -> None:
        for name, child in key.children.items():
            if child.is_nullable and not child.is_text:
                told[".".join(map(str, (*path, name)))] = child.description.partition("null: ")[2].rstrip(".")
            look(child, (*path, name))

    upstream = key_at(BASE)
    assert upstream is not None
    look(upstream, ())
    assert len(told) > 10
    for path, meaning in told.items():
        (problem, *_) = inspected(tmp_path, path, "off").problems
        assert (proposed(problem) == ["null"]) == (meaning in NULLABLE), (path, meaning, problem.fix)


@pytest.mark.parametrize(("place", "here"), FOREIGN.items(), ids=lambda value: ".".join(value))
def test_what_others_call_a_key_is_led_to_a_key_that_exists(
    place: tuple[str, str], here: Here, tmp_path: Path
) -> None:
    section, word = place
    key = key_at((*BASE, *here.key.split(".")))
    assert key is not None
    parent = key_at((*BASE, *filter(None, section.split("."))))
    assert parent is not None
    assert word not in parent.children  # that would be a key of this format, which is no stranger
    (problem, *_) = inspected(tmp_path, f"{section}.{word}".strip("."), "3").problems
    assert problem.message == "is not a known key"
    assert problem.fix.startswith(f"here that is {here.key}")


def test_a_word_that_may_mean_anything_is_not_led_anywhere(tmp_path: Path) -> None:
    (problem,) = inspected(tmp_path, "circuit_breaker.interval", "3").problems
    assert problem.fix.startswith("known here: ")


def test_an_upstream_beside_upstreams_is_told_where_it_belongs(tmp_path: Path) -> None:
    (problem,) = inspected(tmp_path, ".billing", "{base_url: 'http://b'}").problems
    assert problem.fix == "if it is an upstream, write it below upstreams:, indented"


@pytest.mark.parametrize(
    ("names", "fix"),
    [
        (["Billing-API"], "write: billing_api:"),
        (["billingApi"], "write: billing_api:"),
        (["Billing", "billing"], ""),  # the name is taken
        (["z\u00fcrich"], ""),  # z_rich is nobody's name
        (["9lives"], ""),
    ],
)
def test_a_name_is_proposed_only_if_it_is_the_same_and_free(
    names: list[str], fix: str, tmp_path: Path
) -> None:
    upstreams = ", ".join(f"{name}: {{base_url: 'http://u{index}'}}" for index, name in enumerate(names))
    (tmp_path / "p.yaml").write_text(f"upstreams: {{{upstreams}}}", "utf-8")
    (problem,) = inspect("p.yaml", env={}, cwd=tmp_path).problems
    assert problem.fix == fix


def test_a_key_in_the_wrong_place_is_told_where_it_stands(tmp_path: Path) -> None:
    for path, fix in (
        ("max_attempts", "it stands under retry"),
        ("timeouts.jitterr", "known here: "),
        ("failure_rate_threshold", "it stands under circuit_breaker"),
    ):
        (problem,) = inspected(tmp_path, path, "3").problems
        assert problem.fix.startswith(fix)


def test_a_word_that_is_given_already_is_not_what_was_meant(tmp_path: Path) -> None:
    (problem,) = inspected(tmp_path, "retry", "{max_attempts: 2, max_attempt: 3}").problems

    assert problem.fix.startswith("known here: ")


def test_a_number_among_headers_is_to_be_quoted_and_stays_unsaid(tmp_path: Path) -> None:
    (problem,) = inspected(tmp_path, "headers", "{X-Number: 1234567}").problems

    assert problem.fix == "put it in quotes"
    assert "1234567" not in json.dumps([problem.message, problem.fix])
