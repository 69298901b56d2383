"""A file that is read with what it said before comes to what it comes to when it is read for the first time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.config.source import blocks
from headrace.config.source.blocks import Blocks
from headrace.config.source.document import DocumentError, read_document
from headrace.config.source.tree import Listing, Node, Scalar, Table

BLOCK = """\
  service_{n}:
    base_url: http://service-{n}.internal:8443/v2  # the second
    match: [http://a{n}.internal, "http://b{n}.internal"]
    timeouts: {{deadline: {n}s, attempt: 2s}}

    retry:
      retry_on: [network, 503]
      max_attempts: 3
"""
TEXT = "".join(
    [
        "# of the shop\nversion: 1\ndefaults: {mode: observe}\nupstreams:\n  # all of them\n",
        *(BLOCK.format(n=n) for n in range(60)),
        "\ninstall: {urllib3: true}\n# the end\n",
    ]
)
PICKED = BLOCK.format(n=30)


def told(node: Node) -> object:
    """All that *node* is."""
    if isinstance(node, Scalar):
        return (node.value, node.text, node.mark, node.plain, node.secret, node.as_text)
    if isinstance(node, Listing):
        return ([told(child) for child in node.items], node.mark)
    return ([(key, told(child)) for key, child in node.items()], list(node.key_marks.items()), node.mark)


def outcome(text: str, kept: dict[str, Blocks] | None) -> object:
    try:
        return told(read_document(text.encode(), "u.yaml", kept))
    except DocumentError as error:
        return (error.problems, error.tree and told(error.tree))


def with_text(picked: str) -> Callable[[str], str]:
    return lambda text: text.replace(PICKED, picked)


EDITS = {
    "a value": with_text(PICKED.replace("30s", "31s")),
    "a line more": with_text(PICKED + "    mode: off\n"),
    "a line less": with_text(PICKED.replace("      max_attempts: 3\n", "")),
    "a comment": with_text("  # this one\n" + PICKED),
    "a comment at the margin": with_text("# this one\n" + PICKED),
    "one less": with_text(""),
    "one more": with_text(PICKED + BLOCK.format(n=99)),
    "another name": with_text(PICKED.replace("service_30", "other")),
    "a line more at the top": lambda text: "# new\n" + text,
    "a key more at the end": lambda text: text + "service: {max_retries_per_request: 3}\n",
    "other defaults": lambda text: text.replace("observe", "off"),
    "another order": lambda text: text.replace(BLOCK.format(n=1), "").replace(
        PICKED, PICKED + BLOCK.format(n=1)
    ),
    "no line break at the end": lambda text: text.rstrip(),
    "all others": lambda text: text.replace("2s", "1s"),
    "nothing": lambda text: text,
    "the upstreams last": lambda text: text.partition("\ninstall")[0] + "\n",
    "a text over lines": with_text(PICKED + '    headers: {X: "one\n      two"}\n'),
    "a text over lines that looks like a block": with_text(
        PICKED + '    headers: {X: "one\n  other: {base_url: x}\n  "}\n'
    ),
    "a map over lines at the margin of the names": with_text(PICKED + "    headers: {X: a,\n  Y: b}\n"),
    "a map over lines that looks like a block": with_text(PICKED + "    headers: {x: a,\n  y: b}\n"),
    "a literal": with_text(PICKED + "    fallback:\n      body: |+\n        service_31:\n\n\n"),
    "an open bracket": with_text(PICKED.replace("503]", "503")),
    "an open quote": with_text(PICKED.replace('b30.internal"', "b30.internal")),
    "an anchor": with_text(PICKED.replace("timeouts: {", "timeouts: &t {")),
    "an anchor and an alias": lambda text: text.replace(
        "timeouts: {deadline: 30s", "timeouts: &t {deadline: 30s"
    ).replace("timeouts: {deadline: 31s, attempt: 2s}", "timeouts: *t"),
    "an alias without an anchor": with_text(PICKED.replace("2s}", "*t }")),
    "a tag": with_text(PICKED.replace("2s}", "!!str 2s}")),
    "a name twice": with_text(PICKED + BLOCK.format(n=2)),
    "a name twice, in a row": with_text(PICKED + PICKED),
    "a key twice": with_text(PICKED + "    match: []\n"),
    "no map": with_text("  service_30: off\n"),
    "nothing in it": with_text("  service_30:\n"),
    "a name that is none": with_text(PICKED.replace("service_30", "Service 30")),
    "a quoted name": with_text(PICKED.replace("service_30", '"service_30"')),
    "less indented": with_text(PICKED.replace("  service_30", " service_30")),
    "a dash": with_text(PICKED + "  - x\n"),
    "a tab": with_text(PICKED.replace("    retry", "\tretry")),
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "a line separator": with_text(PICKED.replace("# the", "# \u2028the")),
    "a line separator in a text": with_text(PICKED + '    headers: {X: "a\u2028b"}\n'),
    "the begin of the document": lambda text: "%YAML 1.2\n---\n" + text,
    "a list at the margin": lambda text: text.partition("\ninstall")[0] + "\n- x\n",
    "a second document": with_text("---\n" + PICKED),
    "the end of the document": with_text("...\n" + PICKED),
    "upstreams twice": lambda text: text + "upstreams:\n  more: {base_url: http://more}\n",
    "upstreams within a text": lambda text: text.replace("upstreams:", 'note: "\nupstreams:').replace(
        "install", '"\ninstall'
    ),
    "upstreams within a text, and empty": lambda text: text.replace(
        "upstreams:", "note: '\nupstreams:"
    ).replace("\ninstall", '\n\'\n"upstreams":\ninstall'),
    "upstreams within a text, and again": lambda text: text.replace(
        "upstreams:",
        "note: '\nupstreams:" + text.partition("upstreams:")[2].partition("install")[0] + '\'\n"upstreams":',
    ),
    "all of it below another key": lambda text: "".join(
        f"  {line}" if line.strip() else line for line in ("x:\n" + text).splitlines(keepends=True)
    ).replace("  x:", "x:", 1),
    "no upstreams": lambda text: text.replace("upstreams:\n", "upstreams: {}\n#"),
    "a merge key": with_text(PICKED + "    <<: {mode: off}\n"),
    "a byte that is no text": with_text(PICKED + "    headers: {X: \x07}\n"),
}


@pytest.mark.parametrize("edit", [pytest.param(edit, id=name) for name, edit in EDITS.items()])
def test_an_edited_file_is_read_as_if_for_the_first_time(edit: Callable[[str], str]) -> None:
    kept: dict[str, Blocks] = {}
    read_document(TEXT.encode(), "u.yaml", kept)
    edited = edit(TEXT)

    assert outcome(edited, kept) == outcome(edited, None)
    assert outcome(TEXT, kept) == outcome(TEXT, None)  # and back again


@pytest.mark.parametrize("edit", [pytest.param(edit, id=name) for name, edit in EDITS.items()])
def test_a_file_of_any_kind_is_read_anew_after_an_edit(edit: Callable[[str], str]) -> None:
    kept: dict[str, Blocks] = {}
    before = edit(TEXT)
    outcome(before, kept)
    edited = "# new\n" + before.replace("40s", "41s").replace("30s", "33s")

    assert outcome(edited, kept) == outcome(edited, None)


@pytest.mark.parametrize("name", ["an anchor", "an anchor and an alias"])
def test_a_file_with_an_anchor_keeps_nothing(name: str) -> None:
    kept: dict[str, Blocks] = {}
    read_document(TEXT.encode(), "u.yaml", kept)
    assert kept["u.yaml"]
    read_document(EDITS[name](TEXT).encode(), "u.yaml", kept)
    assert kept == {"u.yaml": {}}


LINES = TEXT.splitlines(keepends=True)
ODD_LINES = [
    "\n",
    "# x\n",
    "  other:\n",
    "    mode: off\n",
    '    "\n',
    "  }\n",
    "    [\n",
    "x: 1\n",
    " a:\n",
    "    - b\n",
]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, len(LINES) - 1), st.integers(0, 2), st.sampled_from(ODD_LINES)),
        min_size=1,
        max_size=4,
    )
)
def test_any_lines_may_come_and_go(steps: list[tuple[int, int, str]]) -> None:
    kept: dict[str, Blocks] = {}
    read_document(TEXT.encode(), "u.yaml", kept)
    lines = LINES.copy()
    for at, removed, added in steps:
        lines[at : at + removed] = [added]
        text = "".join(lines)
        assert outcome(text, kept) == outcome(text, None)


def _upstreams(text: str, kept: dict[str, Blocks]) -> Table:
    found = read_document(text.encode(), "u.yaml", kept)["upstreams"]
    assert isinstance(found, Table)
    return found


def test_what_says_the_same_at_the_same_lines_is_the_same_object() -> None:
    kept: dict[str, Blocks] = {}
    before = _upstreams(TEXT, kept)
    after = _upstreams(EDITS["a value"](TEXT), kept)

    assert [name for name in before if after[name] is not before[name]] == ["service_30"]


def test_what_has_moved_is_not_parsed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[str, Blocks] = {}
    _upstreams(TEXT, kept)
    edited, parsed = EDITS["a line more"](TEXT), list[str]()
    read_with = blocks.read_with

    def noted(*args: object, parse: Callable[[str, int, int], object], **more: object) -> object:
        def note(text: str, first_line: int, depth: int) -> object:
            parsed.append(text)
            return parse(text, first_line, depth)

        return read_with(*args, parse=note, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("headrace.config.source.document.read_with", noted)
    _upstreams(edited, kept)

    assert [text.strip().partition("\n")[0] for text in parsed[1:]] == ["service_30:"]
    assert sum(map(len, parsed)) < len(TEXT) / 10


def test_a_short_file_keeps_nothing() -> None:
    kept: dict[str, Blocks] = {}
    read_document(b"upstreams:\n  a: {base_url: http://a}\n", "u.yaml", kept)
    assert kept == {"u.yaml": {}}
