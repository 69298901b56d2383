"""YAML text to marked tree: what YAML 1.2 says, positions, limits; with the C loader and with the Python one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from headrace.config.source import document
from headrace.config.source.document import (
    MAX_DOCUMENT_BYTES,
    DocumentError,
    read_document,
    read_flow,
    resolve,
)
from headrace.config.source.tree import Mark, Table, leaves, node_at, plain


@pytest.fixture(params=[pytest.param("C", id="c-loader"), pytest.param("Python", id="python-loader")])
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The same semantics with whichever loader PyYAML was built with."""
    if request.param == "Python":
        monkeypatch.setattr(document, "LOADER", yaml.SafeLoader)
    elif not hasattr(yaml, "CSafeLoader"):
        pytest.skip("PyYAML without libyaml")
    return request.param


def read(text: str) -> Table:
    return read_document(text.encode(), "u.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("no", "no"),
        ("yes", "yes"),
        ("off", "off"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("tRue", "tRue"),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("0b11", "0b11"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("+12", 12),
        ("-0", 0),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1.", 1.0),
        ("1e3", 1000.0),
        (".inf", float("inf")),
        ("-.INF", float("-inf")),
        ("null", None),
        ("~", None),
        ("", None),
        ("nil", "nil"),
        ("2026-11-23", "2026-11-23"),
        ("2026-11-23T12:00:00Z", "2026-11-23T12:00:00Z"),
        ("=", "="),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_plain_scalar_is_read_the_yaml_1_2_way(text: str, value: object) -> None:
    """failures.md 51."""
    found = resolve(text)
    assert found == value
    assert type(found) is type(value)


def test_key_on_is_the_text_on(loader: str) -> None:
    """failures.md 51: YAML 1.1 reads `on:` as True."""
    assert plain(read("on: 1\nno: 2\n")) == {"on": 1, "no": 2}


def test_quoted_and_block_scalars_are_text(loader: str) -> None:
    assert plain(read("a: '1'\nb: \"true\"\nc: |\n  2\nd: >-\n  null\n")) == {
        "a": "1",
        "b": "true",
        "c": "2\n",
        "d": "null",
    }


def test_duplicate_keys_are_refused_not_last_wins(loader: str) -> None:
    """failures.md 51."""
    with pytest.raises(DocumentError) as caught:
        read("a: {b: 1, b: 2}\na: 3\n")
    assert [(p.line, p.column, p.path) for p in caught.value.problems] == [(1, 11, "a.b"), (2, 1, "a")]


def test_billion_laughs_end_at_the_alias_budget(loader: str) -> None:
    """failures.md 51."""
    lines = ["a0: &a0 [" + ", ".join(["lol"] * 10) + "]"]
    lines += [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 10) + "]" for n in range(1, 10)]
    with pytest.raises(DocumentError, match="aliases expand to more than 20000 values"):
        read("\n".join(lines))


def test_a_few_aliases_are_welcome(loader: str) -> None:
    tree = read("a: &common {x: 1}\nb: *common\n")
    assert plain(tree) == {"a": {"x": 1}, "b": {"x": 1}}
    assert node_at(tree, ("b", "x")).mark == Mark("u.yaml", 1, 16)  # type: ignore[union-attr]
    assert tree.key_marks["b"] == Mark("u.yaml", 2, 1)


@pytest.mark.parametrize("opening", ["[", "{a: ", "{", "- ", "? ", "[{a: ", "&x ["])
@pytest.mark.parametrize(
    "closing",
    ["", "]" * 20_000, "@", "\nb: 1"],
    ids=["torn", "closed", "garbage-behind-it", "more-behind-it"],
)
def test_deep_nesting_is_refused_before_it_can_hurt(loader: str, opening: str, closing: str) -> None:
    """The C composer recurses in C: this many brackets end the process there.

    failures.md 74: libyaml 0.2.6 (PyYAML 6.0.4) refuses a thousand brackets itself, in words of its own, and as it
    looks ahead for a key's colon it does so before it has told of the first. Garbage behind the brackets comes as
    early.
    """
    with pytest.raises(DocumentError) as caught:
        read("a:\n " + opening * 20_000 + closing)
    (problem,) = caught.value.problems
    assert problem.message == "is nested more than 32 levels deep; no key is"
    assert problem.fix == "remove the brackets, braces or dashes too many from here on"
    assert problem.path.startswith("a")
    assert (problem.file, problem.line) == ("u.yaml", 2)
    levels_before = (problem.column - 2) // len(opening) * sum(map(opening.count, "[{-?"))
    assert 30 <= levels_before <= 32, "the place is that of the first bracket too many"


def test_nesting_as_deep_as_allowed_is_read(loader: str) -> None:
    assert read("a: " + "[" * 31 + "]" * 31)
    with pytest.raises(DocumentError, match="nested more than 32 levels"):
        read("a: " + "[" * 32 + "]" * 32)


def test_brackets_of_a_text_are_no_nesting(loader: str) -> None:
    brackets = "[" * 2000
    assert plain(read(f"a: '{brackets}'\nb: x{brackets}\n# {brackets}\n")) == {
        "a": brackets,
        "b": "x" + brackets,
    }


def test_what_is_wrong_before_the_deep_part_is_told_too(loader: str) -> None:
    with pytest.raises(DocumentError) as caught:
        read("a: 1\na: 2\nb: " + "[" * 20_000)
    assert [(p.line, p.path) for p in caught.value.problems[:1]] == [(2, "a")]
    assert [p.line for p in caught.value.problems] == [2, 3]


@pytest.mark.parametrize(
    "line", ["- - - -\n", "- [a, b, c]\n", "a{}: b\n", "- {a: b}\n"], ids=["dashes", "lists", "keys", "maps"]
)
def test_a_file_of_too_many_keys_and_values_is_refused(
    loader: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3 MB of dashes under the limit of 4 MiB took the reloading thread eight seconds."""
    monkeypatch.setattr(document, "MAX_NODES", 200)
    with pytest.raises(DocumentError) as caught:
        read("".join(line.replace("{}", str(number)) for number in range(1000)))
    (problem,) = caught.value.problems
    assert "after 600,000 keys and values" in problem.message
    assert problem.fix == "check that this is the file you mean, or split it"
    assert 40 <= problem.line <= 101


def test_dashes_as_long_as_a_file_may_be_end_at_the_limit_of_values() -> None:
    with pytest.raises(DocumentError, match="where reading stopped, after 600,000 keys and values"):
        read("- - - -\n" * (MAX_DOCUMENT_BYTES // 8))


def test_what_an_environment_variable_holds_is_told_by_its_limit(loader: str) -> None:
    with pytest.raises(DocumentError, match="nested more than 32 levels deep") as caught:
        read_flow("[" * 2000, "u.yaml")
    assert caught.value.problems[0].line == 0
    with pytest.raises(DocumentError, match="begins like a YAML list or map but is not one"):
        read_flow("[secret: }", "u.yaml")


def test_every_key_and_value_knows_where_it_is_written(loader: str) -> None:
    tree = read("a:\n  b:   three\n  c: [1, é, {d: x}]\n")
    assert tree.key_marks["a"] == Mark("u.yaml", 1, 1)
    table = tree["a"]
    assert isinstance(table, Table)
    assert table.key_marks["b"] == Mark("u.yaml", 2, 3)
    assert [(path, (leaf.mark.line, leaf.mark.column)) for path, leaf in leaves(tree)] == [
        (("a", "b"), (2, 8)),
        (("a", "c", 0), (3, 7)),
        (("a", "c", 1), (3, 10)),
        (("a", "c", 2, "d"), (3, 17)),
    ]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a: [1, 2", id="torn-list"),
        pytest.param("a: {b: 1", id="torn-map"),
        pytest.param('a: "b', id="torn-quote"),
        pytest.param("a: b: c", id="two-colons"),
        pytest.param("a: @b", id="reserved"),
        pytest.param("%FOO bar\n---\na: 1\n...\n%", id="directive"),
        pytest.param("a: 1\n--- \nb: 2", id="two-documents"),
        pytest.param("a: !!python/name:os.system x", id="python-tag"),
        pytest.param("a: *b", id="unknown-alias"),
        pytest.param("&a a: *a", id="alias-of-a-key-is-fine-but-map-value-text"),
    ],
)
def test_what_yaml_or_we_refuse_has_a_position(loader: str, text: str) -> None:
    try:
        read(text)
    except DocumentError as error:
        for problem in error.problems:
            assert problem.line >= 1
            assert problem.column >= 1
    else:
        assert text.startswith("&a")


_KEYS = st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=5)
_TREES = st.dictionaries(
    _KEYS,
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=20),
        lambda below: st.lists(below, max_size=3) | st.dictionaries(_KEYS, below, max_size=3),
        max_leaves=12,
    ),
    min_size=1,
    max_size=5,
)


@given(_TREES)
@settings(max_examples=60, deadline=None)
def test_what_yaml_writes_is_read_back(tree: dict[str, object]) -> None:
    # Quoted throughout: PyYAML writes for readers of YAML 1.1, and `0o7` it would leave bare.
    text = yaml.dump(tree, default_style='"', allow_unicode=False)
    untagged = (
        text.replace("!!int ", "").replace("!!bool ", "").replace("!!null ", "").replace("!!float ", "")
    )

    def as_text(node: object) -> object:
        if isinstance(node, dict):
            return {key: as_text(value) for key, value in node.items()}
        if isinstance(node, list):
            return [as_text(item) for item in node]
        if isinstance(node, bool):
            return str(node).lower()
        return "null" if node is None else str(node)

    assert plain(read_document(untagged.encode(), "u.yaml")) == as_text(tree)


@given(
    st.binary(max_size=200)
    | st.text(alphabet="ab:-[]{}&*!|>'\"%@`#?,\n \t~01.$", max_size=200).map(str.encode)
)
@example(b"\xff\xfea\x00")
@example(b"a: \xc3")
@example(b"? [a]\n: b")
@example(b"<<: {a: 1}")
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_bytes_do_anything_but_read_or_refuse(content: bytes) -> None:
    with contextlib.suppress(DocumentError):
        assert isinstance(read_document(content, "u.yaml"), Table)
