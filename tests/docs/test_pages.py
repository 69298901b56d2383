"""The pages as a whole: each block is run or has a reason why not, each link leads somewhere, each table is in step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import headrace
from headrace.config.source.sources import KNOWN_VARIABLES
from support import tables as generated
from support.pages import (
    FILE,
    README,
    ROOT,
    blocks,
    outline,
    pages,
    rule_files,
    section,
    sessions,
    shown,
    tables,
    text,
    text_of,
)

NOT_RUN = {
    "README: headrace/2": "installing needs a package index; `.ci/run` does it. Its second line is README: headrace/5",
}
"""Blocks that cannot run, each with its reason."""

LINES, LINES_OF_README = 200, 250
LONGER = {
    "failures": "a ledger with an entry per failure and the tests that claim it, to be searched, not read",
    "speed": "tables that tests/bench/run writes, to look a row up in",
}
"""Pages that may be longer, each with its reason."""

BESIDE = sorted((ROOT / ".github").glob("*.md"))
"""What is read in the repository alone."""

_LINK = re.compile(r"\]\(([^)\s]+)\)")


def parts(page: str) -> list[tuple[str, str]]:
    """Each heading of *page* with what is below it."""
    return [(title, section(page, title)) for _, title in outline(text(page)) if title is not None]


def anchors(file: Path) -> set[str]:
    titles = (title for _, title in outline(file.read_text("utf-8")) if title is not None)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


# --- Every page -----------------------------------------------------------------------------------------


def test_every_block_is_shown_by_a_test_or_has_a_reason_why_not() -> None:
    tested = {*shown(), *rule_files(), *sessions()}
    assert tested & NOT_RUN.keys() == set()
    assert sorted(blocks()) == sorted(tested | NOT_RUN.keys())


@pytest.mark.parametrize("page", pages())
def test_what_is_generated_or_taken_over_is_up_to_date(page: str) -> None:
    assert generated.renewed(text(page)) == text(page), "renew it with: python tests/support/tables.py"


def test_every_generated_table_is_on_a_page() -> None:
    marked = [name for page in pages() for name in re.findall(r"<!-- (\w+):begin -->", text(page))]
    assert sorted(marked) == sorted(generated.TABLES)


@pytest.mark.parametrize("page", pages())
def test_a_page_is_short(page: str) -> None:
    most = LINES_OF_README if page == "README" else LINES
    assert len(text(page).splitlines()) <= most or page in LONGER


@pytest.mark.parametrize("page", pages())
def test_a_page_has_one_title_and_names_no_heading_twice(page: str) -> None:
    titles = [(line, title) for line, title in outline(text(page)) if title is not None]
    assert [line for line, _ in titles if line.startswith("# ")] == [titles[0][0]]
    assert len({title for _, title in titles}) == len(titles)


@pytest.mark.parametrize("page", [*pages(), *(file.name for file in BESIDE)])
def test_links_lead_somewhere(page: str) -> None:
    here = pages().get(page) or ROOT / ".github" / page
    for target in _LINK.findall(here.read_text("utf-8")):
        if "://" not in target:
            name, _, anchor = target.partition("#")
            file = here.parent / name if name else here
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), target


def test_the_pages_point_to_none_that_is_not_packaged() -> None:
    """In a wheel they are alone: what else is in a checkout is named there, not linked."""
    assert [
        (page, target)
        for page in pages()
        if page != "README"
        for target in _LINK.findall(text(page))
        if target.startswith("..")
    ] == []


def test_the_contents_list_every_page_once_by_its_title() -> None:
    listed = dict(re.findall(r"^- \[(.*?)\]\((\S+)\.md\)", text("index"), re.MULTILINE))
    titled = {
        next(title for _, title in outline(text(page)) if title is not None): page
        for page in pages()
        if page not in {"README", "index"}
    }
    assert listed == titled


def test_the_site_has_the_pages_in_the_order_of_the_contents() -> None:
    site = yaml.safe_load((ROOT / ".ci/mkdocs.yml").read_text("utf-8"))
    groups = {
        name: files for group in site["nav"] if isinstance(group, dict) for name, files in group.items()
    }
    contents = {
        heading: re.findall(r"^- \[.*?\]\((\S+)\)", part, re.MULTILINE) for heading, part in parts("index")
    }
    assert groups == {heading: files for heading, files in contents.items() if heading != "headrace"}
    assert site["nav"][:2] == ["index.md", *contents["headrace"]]


def test_every_variable_and_every_public_name_is_mentioned() -> None:
    everything = "".join(map(text, pages()))
    public = set(headrace.__all__) - {"HeadraceError", "UpstreamError", "Headrace"}
    assert [name for name in (*KNOWN_VARIABLES, *sorted(public)) if name not in everything] == []


# --- README ---------------------------------------------------------------------------------------------


def test_first_screen_is_eight_lines_of_yaml_beginning_with_observe_and_four_to_install() -> None:
    assert len(text_of(FILE).splitlines()) == 8
    assert "mode: observe" in text_of(FILE)
    assert len((text_of("README: headrace/2") + text_of("README: headrace/3")).splitlines()) == 4


def test_the_kill_switch_comes_before_everything_else() -> None:
    headings = re.findall(r"^## (.*)", text("README"), flags=re.MULTILINE)
    assert headings[0] == "At three in the morning"
    assert "HEADRACE_MODE=off" in tables("README", headings[0])[0][1]


@pytest.mark.parametrize("file", [README, ROOT / ".github/CONTRIBUTING.md"], ids=lambda file: file.name)
def test_scripts_that_are_named_exist(file: Path) -> None:
    named = re.findall(r"\.?/?(?:tests|sample_app|\.ci)/[\w/.-]*\w", file.read_text("utf-8"))
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
