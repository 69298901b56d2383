"""What a path holds and what it depends on, on real files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from headrace.runtime.watch.fingerprint import MAX_SYMLINKS, fingerprint, lookups


def test_a_same_size_edit_with_the_same_mtime_is_seen(tmp_path: Path) -> None:
    """failures.md 37."""
    file = tmp_path / "f"
    file.write_text("attempts: 3")
    os.utime(file, (1, 1))
    before = fingerprint(str(file))
    file.write_text("attempts: 4")
    os.utime(file, (1, 1))
    assert fingerprint(str(file)) != before


def test_a_touch_is_not_a_change(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("x")
    before = fingerprint(str(file))
    os.utime(file, (1, 1))
    assert fingerprint(str(file)) == before


def test_missing_empty_directory_and_fifo_are_all_different_and_none_blocks(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to("nowhere")
    names = ("missing", "empty", "directory", "fifo")
    prints = [fingerprint(str(tmp_path / name)) for name in names]
    assert len(set(prints)) == len(names)
    assert fingerprint(str(tmp_path / "dangling")) == fingerprint(str(tmp_path / "missing"))


def test_a_directory_in_the_way_that_becomes_a_file_is_a_change(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_text("x")
    before = fingerprint(str(tmp_path / "d" / "f"))
    shutil.rmtree(tmp_path / "d")
    missing = fingerprint(str(tmp_path / "d" / "f"))
    (tmp_path / "d").touch()
    assert len({before, missing, fingerprint(str(tmp_path / "d" / "f"))}) == 3


def test_a_directory_changes_with_its_entries(tmp_path: Path) -> None:
    before = fingerprint(str(tmp_path))
    (tmp_path / "secret").write_text("x")
    after = fingerprint(str(tmp_path))
    assert after != before
    (tmp_path / "dangling").symlink_to("nowhere")
    assert fingerprint(str(tmp_path)) != after


def test_a_plain_file_depends_on_its_name_only(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.touch()
    assert lookups(str(file)) == {(str(tmp_path.resolve()), "f")}


def test_every_directory_of_the_symlink_chain_is_found(tmp_path: Path) -> None:
    """failures.md 37."""
    root = tmp_path.resolve()
    (root / "etc").mkdir()
    (root / "etc" / "..2026").mkdir()
    (root / "etc" / "..2026" / "upstreams.yaml").touch()
    (root / "etc" / "..data").symlink_to("..2026")
    (root / "etc" / "upstreams.yaml").symlink_to("..data/upstreams.yaml")
    (root / "app").symlink_to("etc/../etc/.")
    assert lookups(str(root / "app" / "upstreams.yaml")) == {
        (str(root), "app"),
        (str(root / "etc"), "upstreams.yaml"),
        (str(root / "etc"), "..data"),
        (str(root / "etc" / "..2026"), "upstreams.yaml"),
    }


def test_an_absolute_link_starts_over_at_the_root(tmp_path: Path) -> None:
    root = tmp_path.resolve()
    (root / "a").mkdir()
    (root / "b").mkdir()
    (root / "b" / "f").touch()
    (root / "a" / "f").symlink_to(root / "b" / "f")
    assert lookups(str(root / "a" / "f")) == {(str(root / "a"), "f"), (str(root / "b"), "f")}


def test_a_missing_directory_is_awaited_where_it_will_appear(tmp_path: Path) -> None:
    root = tmp_path.resolve()
    assert lookups(str(root / "conf" / "d" / "f")) == {(str(root), "conf")}


def test_a_watched_directory_depends_on_every_name_in_it(tmp_path: Path) -> None:
    root = tmp_path.resolve()
    (root / "secrets").mkdir()
    assert lookups(str(root / "secrets")) == {(str(root), "secrets"), (str(root / "secrets"), "")}


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    (tmp_path / "f").symlink_to("g")
    (tmp_path / "g").symlink_to("f")
    assert len(lookups(str(tmp_path / "f"))) <= MAX_SYMLINKS
    assert fingerprint(str(tmp_path / "f")).startswith(b"no content")
