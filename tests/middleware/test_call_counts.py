"""What of ours a request enters, counted in both middlewares: a Python-level call is up to a microsecond in situ."""

from __future__ import annotations

from pathlib import Path

from bench.middleware import ours_in, requests_of


def test_a_request_enters_no_more_of_ours(tmp_path: Path) -> None:
    """A bound that a change may lower, and must not raise unseen."""
    with requests_of(tmp_path / "upstreams.yaml") as requests:
        found = {title: ours_in(ours) for title, (_, ours) in requests.items()}

    # __call__, admit; send twice and the end of the last, or start_response; and the id, where one is made
    assert {title: len(names) for title, names in found.items()} == {
        "ASGI, no id": 6,
        "ASGI, with an id": 5,
        "WSGI, no id": 4,
        "WSGI, with an id": 3,
    }, found


def test_every_sixty_fourth_request_adds_up_what_was_served(tmp_path: Path) -> None:
    """The lock and the sums are left to it: they cost more than to note one request."""
    with requests_of(tmp_path / "upstreams.yaml") as requests:
        for _, ours in requests.values():
            counts = [len(ours_in(ours)) for _ in range(32)]  # two requests each
            most = max(counts)
            assert counts.count(most) == 1, counts
            assert len(set(counts)) == 2, counts
