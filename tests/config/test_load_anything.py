"""Whatever a file holds: it is loaded, or refused with problems that have a position. Never anything else."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.config import inspect
from headrace.config.explain.keys import Key, root_key


def _names(key: Key) -> set[str]:
    names = set(key.children)
    for child in [*key.children.values(), *([key.item] if key.item else [])]:
        names |= _names(child)
    return names


_NAMES = st.sampled_from([*sorted(_names(root_key())), "billing", "X-A", "a b", "", "_env_file", "self"])
_VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(0, 2)
    | st.sampled_from(
        [
            "4s",
            "250ms",
            "http://a",
            "https://a/b",
            "network",
            "GET",
            "${env:A}",
            "${env:N}",
            "enforce",
            "off",
            "x",
        ]
    )
)
_TREES = st.recursive(
    _VALUES,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(_NAMES, below, max_size=4),
    max_leaves=15,
)


def _sensible(key: Key) -> st.SearchStrategy[object]:
    """Something like what *key* wants, with something else here and there."""
    if key.is_map and key.children:
        wanted: st.SearchStrategy[object] = st.fixed_dictionaries(
            {},
            optional={
                name: st.deferred(lambda child=child: _sensible(child))
                for name, child in key.children.items()
            },
        )
    elif key.is_map and key.item is not None:
        wanted = st.dictionaries(
            st.sampled_from(["billing", "inventory", "X-A", "x-a"]),
            st.deferred(lambda: _sensible(key.item)),
            max_size=3,
        )
    else:
        wanted = _VALUES | st.lists(_VALUES, max_size=2)
    return st.one_of(wanted, wanted, wanted, _TREES)


@given(_sensible(root_key()) | _TREES)
@settings(
    max_examples=250,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_tree_is_loaded_or_refused_with_positions(tmp_path: Path, tree: object) -> None:
    (tmp_path / "u.yaml").write_text(json.dumps(tree))  # JSON is YAML
    inspection = inspect("u.yaml", env={"A": "1s"}, cwd=tmp_path)
    assert (inspection.configuration is None) == bool(inspection.problems)
    for problem in [*inspection.problems, *inspection.findings]:
        assert problem.file == "u.yaml"
        assert problem.line == 1
        assert problem.column >= 1
        assert problem.message
