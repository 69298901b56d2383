"""No key is accepted and ignored: its values make different plans, and every part of a plan is read.

The keys and the values that are tried are those of `support.keys`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from itertools import combinations
from pathlib import Path

import pytest

import headrace
from headrace.config import Inspection
from headrace.policy import plan as plans
from headrace.policy.plan import Configuration
from support.configs import InspectText
from support.keys import BESIDE, LEAVES, beside, file_saying, known, values_to_try

SAYS_NOTHING: Mapping[str, str] = {
    "version": "there is only one",
    "defaults.tls.require_client_certificate": "it says what the file must have: cert",
    "defaults.tls.insecure_skip_verify": "it confirms verify: false, and is refused without that",
}
"""Keys that make no difference to the plan, with the reason."""

NOT_READ: Mapping[str, str] = {
    "KeepalivePlan.idle_s": "read by getattr, from a table of socket options",
    "UrlPrefix.is_rooted": "config.compile makes UpstreamPlan.rooted of it",
}
"""Parts of a plan that no attribute access outside of `config` reads, with the reason."""


@pytest.mark.parametrize("name", [name for name in LEAVES if name not in SAYS_NOTHING])
def test_every_value_that_a_key_may_have_makes_a_plan_of_its_own(
    name: str, inspect_text: InspectText, tmp_path: Path
) -> None:
    for file in ("one.pem", "two.pem"):
        (tmp_path / file).write_text(file)
    path = LEAVES[name]
    texts = values_to_try(known(path))
    found = {text: inspect_text(file_saying({**beside(name, text), path: text})) for text in texts}
    taken: dict[str, Inspection] = {}
    for text, inspection in found.items():
        if inspection.configuration and all(inspection.settings != one.settings for one in taken.values()):
            taken[text] = inspection

    assert len(taken) >= 2, "\n".join(
        [f"{name}: no two of {texts} can be tried; give it an example, or it or its type a row above"]
        + [str(problem) for inspection in found.values() for problem in inspection.problems]
    )
    for (one, first), (other, second) in combinations(taken.items(), 2):
        assert _plans(first) != _plans(second), f"{name}: {one} and {other} make the same plan: it is ignored"


def _plans(found: Inspection) -> Configuration:
    assert found.configuration is not None
    return replace(found.configuration, digest="", watched=(), warnings=())


def test_every_exception_names_a_key() -> None:
    assert {name.partition(": ")[0] for name in (*BESIDE, *SAYS_NOTHING)} - LEAVES.keys() == set()


def _parts() -> Iterator[str]:
    """`TimeoutPlan.deadline_s` and so on: every field of every plan."""
    for name, kind in vars(plans).items():
        if is_dataclass(kind):
            yield from (f"{name}.{field.name}" for field in fields(kind))


def _read_names() -> set[str]:
    """Names of all attributes that the package reads, `config` left out: copying a value is not acting on it."""
    package = Path(headrace.__file__).parent
    files = [file for file in package.rglob("*.py") if file.relative_to(package).parts[0] != "config"]
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text("utf-8"))))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


def test_every_part_of_a_plan_is_read_by_something_that_acts_on_it() -> None:
    """By name only: a part that is called like another one may still be forgotten."""
    read = _read_names()
    assert {part for part in _parts() if part.partition(".")[2] not in read} == NOT_READ.keys()
