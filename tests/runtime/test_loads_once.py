"""A file is loaded once for each of its contents: by the constructor, by `reload()`, or for the watcher."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

import headrace
from support.waiting import wait_until

TEXT = """\
version: 1
reload: {poll: 50ms, debounce: 10ms}
upstreams: {billing: {base_url: "http://127.0.0.1:9", headers: {X-Turn: "0"}}}
"""


def turned(turn: int) -> str:
    return TEXT.replace('"0"', f'"{turn}"')


@pytest.fixture
def hr(tmp_path: Path) -> Iterator[headrace.Headrace]:
    file = tmp_path / "upstreams.yaml"
    file.write_text(TEXT)
    instance = headrace.Headrace(file, registry=CollectorRegistry())
    yield instance
    instance.close()


def wait_for_looks(hr: headrace.Headrace, n: int = 3) -> None:
    """Until the watcher has looked *n* times from now on."""
    watcher = hr._watcher
    assert watcher is not None
    for _ in range(n):
        last = watcher._looked_at
        wait_until(lambda last=last: watcher._looked_at != last)  # type: ignore[misc]


def reloads(hr: headrace.Headrace) -> dict[str, int]:
    return dict(hr.status()["reloads"])


def test_the_first_look_after_the_start_loads_nothing_again(hr: headrace.Headrace) -> None:
    hr.start()
    wait_for_looks(hr)
    assert reloads(hr) == {}


def test_an_edit_before_the_start_is_heard_of(hr: headrace.Headrace) -> None:
    Path(hr.files[0]).write_text(turned(1))
    hr.start()
    wait_until(lambda: reloads(hr) == {"applied": 1})


def test_an_edit_that_a_reload_has_taken_in_is_not_loaded_again(hr: headrace.Headrace) -> None:
    hr.start()
    Path(hr.files[0]).write_text(turned(1))
    first = hr.reload()  # or the watcher was faster
    wait_for_looks(hr)
    counted = reloads(hr)
    assert counted["applied"] == 1
    if first == "applied":  # at most one look was under way
        assert counted.get("unchanged", 0) <= 1
    wait_for_looks(hr)
    assert reloads(hr) == counted


def test_an_edit_after_a_reload_is_heard_of(hr: headrace.Headrace) -> None:
    def turn_in_force() -> str:
        return hr.snapshot.upstreams["billing"].plan.headers[0][1]

    hr.start()
    for turn in ("1", "2", "3"):
        Path(hr.files[0]).write_text(TEXT.replace('"0"', f'"{turn}"'))
        hr.reload()
        Path(hr.files[0]).write_text(TEXT.replace('"0"', f'"{turn} again"'))
        wait_until(lambda turn=turn: turn_in_force() == f"{turn} again")  # type: ignore[misc]


def test_a_refused_file_is_loaded_once_and_a_reload_of_the_good_one_is_no_cause_to_look_again(
    hr: headrace.Headrace,
) -> None:
    hr.start()
    Path(hr.files[0]).write_text(turned(1).replace("base_url", "base_urll"))
    wait_until(lambda: reloads(hr) == {"rejected": 1})
    wait_for_looks(hr)
    assert reloads(hr) == {"rejected": 1}
    with pytest.raises(headrace.ConfigError):
        hr.reload()
    wait_for_looks(hr)
    assert reloads(hr) == {"rejected": 2}
    Path(hr.files[0]).write_text(turned(2))
    hr.reload()
    wait_for_looks(hr)
    assert reloads(hr)["applied"] == 1
