"""`defaults` and `extends`."""

from __future__ import annotations

from hypothesis import given

from headrace.config.source.tree import Node, Table, merge, plain
from support.configs import InspectText, LoadText
from support.trees import NODES, table


def test_defaults_lie_under_every_upstream(load_text: LoadText) -> None:
    upstreams = load_text(
        "defaults:\n  mode: observe\n  retry: {max_attempts: 2, methods: [GET]}\n  headers: {X-A: a}\n"
        "upstreams:\n  a: {base_url: http://a, retry: {methods: [PUT]}, headers: {X-B: b}}\n"
        "  b: {base_url: http://b, mode: enforce}\n"
    ).upstreams
    assert (upstreams["a"].mode, upstreams["b"].mode) == ("observe", "enforce")
    assert (upstreams["a"].retry.max_attempts, upstreams["a"].retry.methods) == (2, frozenset({"PUT"}))
    assert upstreams["b"].retry.methods == frozenset({"GET"})
    assert dict(upstreams["a"].headers) == {"X-A": "a", "X-B": "b"}


def test_extends_copies_all_but_base_url_match_and_headers(load_text: LoadText) -> None:
    upstreams = load_text(
        "upstreams:\n"
        "  a: {base_url: https://a, match: [https://aa], mode: observe, headers: {X: a},"
        " timeouts: {attempt: 3s}, tls: {min_version: '1.3'}}\n"
        "  b: {base_url: https://b, extends: a, timeouts: {connect: 1s}}\n"
    ).upstreams
    b = upstreams["b"]
    assert (b.mode, b.timeouts.attempt_s, b.timeouts.connect_s) == ("observe", 3.0, 1.0)
    assert b.tls is not None
    assert b.tls.min_version == "1.3"
    assert (b.match, b.headers) == ((), ())


def test_extends_makes_chains_in_any_order(load_text: LoadText) -> None:
    upstreams = load_text(
        "defaults: {pool: {max_connections: 1, max_waiting: 1}}\nupstreams:\n"
        "  c: {base_url: http://c, extends: b}\n"
        "  b: {base_url: http://b, extends: a, pool: {max_waiting: 2}}\n"
        "  a: {base_url: http://a, pool: {max_connections: 3}, retry: {methods: [PUT]}}\n"
    ).upstreams
    c = upstreams["c"]
    assert (c.pool.max_connections, c.pool.max_waiting, c.retry.methods) == (3, 2, frozenset({"PUT"}))


def test_null_replaces_what_is_inherited(load_text: LoadText) -> None:
    text = "defaults: {timeouts: {deadline: 9s}}\nupstreams: {a: {base_url: http://a, timeouts: {deadline: null}}}"
    assert load_text(text).upstreams["a"].timeouts.deadline_s is None


def test_inherited_mistake_is_reported_once_where_it_was_made(inspect_text: InspectText) -> None:
    inspection = inspect_text(
        "upstreams:\n  a: {base_url: http://a, timeouts: {attempt: 30s}, pool: {max_waiting: x}}\n"
        "  b: {base_url: http://b, extends: a}\n  c: {base_url: http://c, extends: b}\n"
    )
    assert [problem.path for problem in inspection.problems] == [
        "upstreams.a.timeouts.attempt",
        "upstreams.a.pool.max_waiting",
    ]


@given(NODES, NODES, NODES)
def test_merging_is_associative_where_maps_meet_maps_and_changes_nothing(
    one: Node, two: Node, three: Node
) -> None:
    one, two, three = (table({"r": node}) for node in (one, two, three))
    before = [plain(node) for node in (one, two, three)]
    left = plain(merge(merge(one, two), three))
    assert [plain(node) for node in (one, two, three)] == before
    if all(isinstance(node["r"], Table) for node in (one, two, three)):
        assert set(left["r"]) >= set(plain(three)["r"])  # type: ignore[arg-type,index,call-overload]
    assert plain(merge(one, one)) == plain(one)
