"""The table of what an edited key needs is complete, and says what a reload does: every key is edited for real."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from itertools import permutations
from pathlib import Path

import pytest
import trustme

from headrace.clock import monotonic
from headrace.config import inspect
from headrace.config.check.problems import dotted
from headrace.policy import plan as plans
from headrace.policy.breaker.circuit import Permit, Verdict
from headrace.policy.plan import Configuration
from headrace.runtime.migrate import ROWS, Change
from headrace.runtime.reload import Reloader
from headrace.runtime.upstream import Upstream
from support.keys import LEAVES, beside, file_saying, known, values_to_try

NAMES = {
    name: dotted(path[1:] if path[0] == "defaults" else path[2:])
    for name, path in LEAVES.items()
    if (path[0] == "defaults" or path[:2] == ("upstreams", "it")) and 0 not in path
}
"""Keys of an upstream, where they are tried, by their name in the table; an item of a list is a part of it."""

FORGETTING: Mapping[str, frozenset[tuple[str, str]] | None] = {
    "base_url": None,
    "mode": frozenset({("observe", "enforce")}),
}
"""Keys that circuit and budget start over for: at which of their edits, or None: at each."""

CONFIRMING = {"tls.insecure_skip_verify", "tls.require_client_certificate"}
"""Keys of which one value is refused, whatever stands beside them: they cannot be edited alone."""

NOT_EDITED = {
    "UpstreamPlan.name": "no key, but a name",
    "UpstreamPlan.file_headers": "which files a header follows: test_secrets edits that",
    "UpstreamPlan.secret_files": "which files its secrets come from: test_ages edits that",
    "UpstreamPlan.rooted": "a final dot of base_url: test_dialling edits that",
    "UrlPrefix.is_rooted": "likewise",
    "TimeoutPlan.asked": "what a call asks for itself",
    "TimeoutPlan.deadline_is_written": "the files that are tried here write every key",
    "TimeoutPlan.resolve_is_written": "likewise",
    "Origin.scheme": "http has no TLS to try the keys of; it is a part of the origin, which is compared whole",
}
"""Parts of an upstream's plan that no edit here changes, with the reason."""


@dataclass(frozen=True)
class Held:
    """What an upstream holds at one instant."""

    size: int
    calls: int
    retries: float


@dataclass
class Edit:
    """One edit of a key, taken into force."""

    before: Upstream
    after: Upstream
    held_before: Held
    held_after: Held
    keeps_pool: bool
    keeps_learned: bool


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `one.pem` and `two.pem` are: an authority, a certificate and its key in one, another authority in two."""
    made = tmp_path_factory.mktemp("migrate")
    ca = trustme.CA()
    one = ca.issue_cert("one.example").private_key_and_cert_chain_pem.bytes() + ca.cert_pem.bytes()
    (made / "one.pem").write_bytes(one)
    (made / "two.pem").write_bytes(one + trustme.CA().cert_pem.bytes())
    return made


def _configurations(name: str, folder: Path) -> dict[str, Configuration]:
    """What comes of each value that the key *name* may have, by the value; those refused are left out."""
    path = LEAVES[name]
    texts = {text: file_saying({**beside(name, text), path: text}) for text in values_to_try(known(path))}
    found = {text: _configuration(folder, file) for text, file in texts.items()}
    return {text: configuration for text, configuration in found.items() if configuration is not None}


def _configuration(folder: Path, text: str) -> Configuration | None:
    (folder / "upstreams.yaml").write_text(text)
    return inspect("upstreams.yaml", env={}, cwd=folder).configuration


def _edit(before: Configuration, after: Configuration) -> Edit:
    """What comes of a reload that finds *after* where *before* is in force, and calls have been made."""
    now, found = monotonic(), before
    reloader = Reloader(
        load=lambda: found,
        override=None,
        files=("upstreams.yaml",),
        publish=lambda _: None,
        clock=lambda: now,
    )
    old = reloader.snapshot.upstream("it")
    _teach(old, now)
    pool, circuit, budget, held = old.endpoint.pool, old.learned.circuit, old.learned.budget, _held(old, now)
    found = after
    assert reloader.reload() == "applied"
    new = reloader.snapshot.upstream("it")
    keeps = {new.learned.circuit is circuit, new.learned.budget is budget}
    assert len(keeps) == 1, "circuit and budget stay, or go, together"
    edit = Edit(old, new, held, _held(new, now), new.endpoint.pool is pool, keeps.pop())
    assert pool.leases.retired is not edit.keeps_pool
    reloader.close()
    return edit


def _teach(upstream: Upstream, now: float) -> None:
    """Have it know more calls than a small window holds, half of them three seconds old."""
    for age_s in (3.0, 0.0):
        for _ in range(60):
            permit = upstream.learned.circuit.acquire(now - age_s)
            if isinstance(permit, Permit):
                upstream.learned.circuit.record(permit, Verdict.SUCCESS, now - age_s)
            upstream.learned.budget.deposit(now - age_s)


def _held(upstream: Upstream, now: float) -> Held:
    return Held(
        size=upstream.endpoint.pool.leases.view().max_connections,
        calls=upstream.learned.circuit.view(now).calls,
        retries=round(upstream.learned.budget.balance(now), 6),
    )


@pytest.mark.parametrize("name", NAMES)
def test_an_edit_of_a_key_does_to_an_upstream_what_its_row_says(name: str, folder: Path) -> None:
    """failures.md 40."""
    row, forgetting = ROWS[NAMES[name]], FORGETTING.get(NAMES[name], frozenset())
    cut = []
    configurations = _configurations(name, folder)
    for (one, before), (other, after) in permutations(configurations.items(), 2):
        edit = _edit(before, after)
        is_other = edit.after.plan != edit.before.plan
        forgets = is_other and (forgetting is None or (one, other) in forgetting)
        assert edit.keeps_pool is not (is_other and row.change is Change.REBUILD), f"{one} -> {other}"
        assert edit.keeps_learned is not forgets, f"{one} -> {other}"
        cut += (
            [edit] if edit.keeps_pool and edit.keeps_learned and edit.held_before != edit.held_after else []
        )

    assert len(configurations) > 1 or NAMES[name] in CONFIRMING, f"no two values of {name} can be tried"
    assert bool(cut) is (row.change is Change.RESIZE), "what is held is cut or grown, or stays as it is"


@pytest.mark.parametrize(
    ("path", "before", "after", "is_kept"),
    [
        pytest.param("base_url", "https://one.example", "https://one.example/v2", True, id="another path"),
        pytest.param("base_url", "https://one.example", "https://one.example:444", False, id="another port"),
        pytest.param("pool", "{max_connections: 201}", "{max_connections: 202}", True, id="a fixed size"),
        pytest.param(
            "pool",
            "{max_connections: 201, adaptive: {min: 1}}",
            "{max_connections: 202, adaptive: {min: 1}}",
            False,
            id="a size that follows the load",
        ),
    ],
)
def test_connections_are_kept_where_an_edit_does_not_touch_what_they_are_built_with(
    path: str, before: str, after: str, is_kept: bool, folder: Path
) -> None:
    first, second = (
        _configuration(folder, file_saying({("upstreams", "it", path): text})) for text in (before, after)
    )

    assert first is not None
    assert second is not None
    assert _edit(first, second).keeps_pool is is_kept


def test_every_key_of_an_upstream_has_one_row_and_every_row_is_a_key() -> None:
    assert sorted(NAMES.values()) == sorted(ROWS)


def test_a_row_that_rebuilds_says_what_connections_are_built_with() -> None:
    assert [name for name, row in ROWS.items() if row.change is Change.REBUILD and row.built is None] == []
    assert {name for name, row in ROWS.items() if row.learned is not None} <= FORGETTING.keys()


def _parts_of(plan: object) -> Iterator[tuple[str, object]]:
    """`PoolPlan.min_idle` and so on, with its value: every part of *plan*, those of its parts included."""
    if is_dataclass(plan) and not isinstance(plan, type):
        for field in fields(plan):
            value = getattr(plan, field.name)
            yield f"{type(plan).__name__}.{field.name}", value
            yield from _parts_of(value)
    elif isinstance(plan, tuple):
        for one in plan:
            yield from _parts_of(one)


def test_every_part_of_an_upstreams_plan_is_said_by_a_key_that_has_a_row(folder: Path) -> None:
    said: set[str] = set()
    for name in NAMES:
        found = [one.upstreams["it"] for one in _configurations(name, folder).values()]
        for before, after in permutations([dict(_parts_of(plan)) for plan in found], 2):
            said |= {part for part in before.keys() | after.keys() if before.get(part) != after.get(part)}
    reached = {part.partition(".")[0] for part in said}
    parts = {
        f"{kind.__name__}.{field.name}"
        for kind in vars(plans).values()
        if is_dataclass(kind) and kind.__name__ in reached
        for field in fields(kind)
    }

    assert parts - said == NOT_EDITED.keys()
