"""Where something is written, as one number."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from headrace.config import Sections, load
from headrace.config.source.document import read_document
from headrace.config.source.tree import Mark, Table, mark_at


@pytest.mark.parametrize("file", ["upstreams.yaml", "environment HEADRACE_X", "", "é/ü.yaml"])
@pytest.mark.parametrize("line", [0, 1, 255, 4 << 20])
@pytest.mark.parametrize("column", [0, 1, 255, 4 << 20])
def test_a_mark_says_what_it_was_made_of(file: str, line: int, column: int) -> None:
    mark = Mark(file, line, column)
    assert (mark.file, mark.line, mark.column) == (file, line, column)
    assert mark == Mark(file, line, column) == mark_at(int(mark))
    assert hash(mark) == hash(Mark(file, line, column))
    assert mark != Mark(f"{file}.", line, column)
    assert mark != Mark(file, line + 1, column)
    assert mark != Mark(file, line, column + 1)
    assert repr(mark) == f"Mark({file!r}, {line}, {column})"


def test_marks_of_one_file_stand_in_its_order() -> None:
    places = [(line, column) for line in (10, 2, 1) for column in (300, 2, 1)]
    assert sorted(Mark("a", *one) for one in places) == [Mark("a", *one) for one in reversed(places)]


def test_a_tree_has_no_object_for_a_place() -> None:
    """What the garbage collector looks at decides what a long file costs: ten thousand upstreams, all over again."""
    lines = "".join(
        f"  service_{at}: {{base_url: http://a.example/{at}, mode: observe}}\n" for at in range(200)
    )
    content = f"upstreams:\n{lines}".encode()
    gc.collect()
    before = len(gc.get_objects())
    tree = read_document(content, "upstreams.yaml")
    gc.collect()
    assert isinstance(tree["upstreams"], Table)
    assert len(gc.get_objects()) - before <= 200 * 3 + 20  # its table and two values each


def test_a_section_that_is_where_it_was_is_known_by_its_node(tmp_path: Path) -> None:
    file = tmp_path / "upstreams.yaml"
    sections = Sections()
    blocks = [f"  service_{at}:\n    base_url: http://a.example/{at}\n" for at in range(60)]
    file.write_text("upstreams:\n" + "".join(blocks))
    load([file], sections=sections)
    before, _ = sections.kept
    blocks[30] = "  service_30:\n    base_url: http://b.example/30\n"
    file.write_text("upstreams:\n" + "".join(blocks))
    loaded = load([file], sections=sections)
    after, _ = sections.kept
    assert loaded.upstreams["service_30"].base.origin.host == "b.example"
    assert [name for name in after if after[name][1] is not before[name][1]] == ["service_30"]
    assert all(after[name][2] is not None for name in after)
    assert all(after[name][2] is before[name][2] for name in after if name != "service_30")


def test_a_section_with_defaults_is_compared_by_what_it_says(tmp_path: Path) -> None:
    file = tmp_path / "upstreams.yaml"
    sections = Sections()
    blocks = "".join(f"  service_{at}:\n    base_url: http://a.example/{at}\n" for at in range(60))
    file.write_text("defaults: {retry: {max_attempts: 2}}\nupstreams:\n" + blocks)
    load([file], sections=sections)
    before, _ = sections.kept
    load([file], sections=sections)
    after, _ = sections.kept
    assert all(after[name][1] is before[name][1] for name in after)
    assert {node for _, _, node in after.values()} == {
        None
    }  # it is nobody's else, and would only take memory
    file.write_text("defaults: {retry: {max_attempts: 3}}\nupstreams:\n" + blocks)
    assert {one.retry.max_attempts for one in load([file], sections=sections).upstreams.values()} == {3}
