"""Chains by `extends` and `fallback`: as long as may be, one longer, and as long as the file."""

from __future__ import annotations

import time

import pytest
import requests
from prometheus_client import CollectorRegistry

import headrace
from headrace.config.source.chains import MAX_LINKS, arrows, links_of
from support.configs import InspectText, LoadText
from support.governed import running

KINDS = [
    pytest.param("extends: {}", "extends", id="extends"),
    pytest.param("fallback: {{upstream: {}}}", "fallback.upstream", id="fallback"),
]


def chained(key: str, links: int, *, in_a_circle: bool = False, reverse: bool = False) -> str:
    """`u0` to `u<links>`, each naming the next; in a circle the last one names the first."""
    lines = [f"  u{n}: {{base_url: 'http://u{n}', {key.format(f'u{n + 1}')}}}\n" for n in range(links)]
    last = key.format("u0") if in_a_circle else "pool: {max_waiting: 7}"
    lines.append(f"  u{links}: {{base_url: 'http://u{links}', {last}}}\n")
    return "upstreams:\n" + "".join(reversed(lines) if reverse else lines)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("key", "path"), KINDS)
def test_as_many_links_as_may_be_are_good_and_one_more_is_refused_where_it_becomes_too_long(
    key: str, path: str, reverse: bool, load_text: LoadText, inspect_text: InspectText
) -> None:
    """failures.md 63."""
    upstreams = load_text(chained(key, MAX_LINKS, reverse=reverse)).upstreams
    if path == "extends":
        assert upstreams["u0"].pool.max_waiting == 7

    (problem,) = inspect_text(chained(key, MAX_LINKS + 1, reverse=reverse)).problems
    assert str(problem.path).endswith(f"upstreams.u0.{path}")
    assert "more than 8" in problem.message
    assert "u0 -> u1 -> u2 -> u3 -> u4 -> u5 -> u6 -> u7 -> u8 -> u9" in problem.message
    assert problem.fix


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("in_a_circle", [False, True], ids=["chain", "circle"])
@pytest.mark.parametrize(("key", "path"), KINDS)
def test_a_thousand_links_are_one_problem_found_at_once(
    key: str, path: str, in_a_circle: bool, reverse: bool, inspect_text: InspectText
) -> None:
    """failures.md 63."""
    plain = chained("mode: enforce", 1000)
    text = chained(key, 1000, in_a_circle=in_a_circle, reverse=reverse)
    inspect_text("upstreams: {}")
    began = time.process_time()
    inspect_text(plain)
    plain_s = time.process_time() - began
    began = time.process_time()
    (problem,) = inspect_text(text).problems
    took_s = time.process_time() - began

    assert len(problem.message) < 200
    if in_a_circle:
        assert "runs in a circle: " in problem.message
        assert problem.message.endswith(", 1001 links")
    else:
        assert str(problem.path).endswith(f"upstreams.u{1000 - MAX_LINKS - 1}.{path}")
    assert took_s < 10 * plain_s  # it was 8 s more for a circle of fallbacks


def test_each_chain_that_is_too_long_is_said_and_those_that_share_its_end_are_not(
    inspect_text: InspectText,
) -> None:
    text = chained("fallback: {{upstream: {}}}", MAX_LINKS + 1)
    text += "  other: {base_url: 'http://other', fallback: {upstream: u1}}\n"
    text += "  leads_to_it: {base_url: 'http://leads', fallback: {upstream: other}}\n"
    text += "  short: {base_url: 'http://short', fallback: {upstream: u2}}\n"
    said = [problem.message for problem in inspect_text(text).problems]
    assert [line.split(": ")[1].split(" -> ")[0] for line in said] == ["u0", "other"]


def test_a_circle_is_no_chain_that_is_too_long_and_neither_is_what_leads_to_it() -> None:
    named = {"a": "b", "b": "c", "c": "b", "d": "a", "e": "f", "g": "e"}
    links, circles = links_of(named)
    assert circles == [["b", "c"]]
    assert links == {"e": 1, "f": 0, "g": 2}
    assert links_of({}) == ({}, [])
    assert links_of({"a": "a"}) == ({}, [["a"]])


def test_many_names_are_told_by_the_first_ones_and_the_last() -> None:
    assert arrows(["a", "b", "a"]) == "a -> b -> a"
    assert arrows([f"u{n}" for n in range(50)]) == "u0 -> u1 -> u2 -> … -> u49, 49 links"


def test_a_call_goes_down_a_chain_of_open_circuits_to_its_end(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """failures.md 63."""
    last = MAX_LINKS
    lines = [
        f"  u{n}: {{base_url: 'http://u{n}.invalid', circuit_breaker: {{mode: forced_open}},"
        f" fallback: {{upstream: u{n + 1}}}}}\n"
        for n in range(last)
    ]
    lines.append(
        f"  u{last}: {{base_url: 'http://u{last}.invalid', circuit_breaker: {{mode: forced_open}},"
        f" fallback: {{status: 203, body: the end}}}}\n"
    )
    with running(tmp_path, "upstreams:\n" + "".join(lines)):
        answer = requests.get("http://u0.invalid/")
        assert (answer.status_code, answer.text) == (203, "the end")
        assert answer.headrace.fallback_for == "u0"  # type: ignore[attr-defined]


def test_the_constructor_refuses_a_chain_of_a_thousand_as_any_mistake(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """failures.md 63: it ended in RecursionError."""
    file = tmp_path / "upstreams.yaml"
    file.write_text(chained("fallback: {{upstream: {}}}", 1000))
    with pytest.raises(headrace.ConfigError, match="more than 8 fallbacks in a row"):
        headrace.Headrace(file, registry=CollectorRegistry())
