"""The codec beside stock urllib3 and h11: the same of the same answer, or a difference of `support/compared.py`.

Two thousand answers; `python tests/bench/compare_h1.py` takes twenty thousand.
"""

from __future__ import annotations

import pytest

from support.answers import Sent, generated, ours
from support.compared import DIFFERENCES, OTHERS, Difference, Seen, compared, differ


@pytest.mark.parametrize("row", [pytest.param(one, id=f"{one.who}: {one.why[:40]}") for one in DIFFERENCES])
def test_a_difference_is_there_and_is_the_one_that_is_named(row: Difference) -> None:
    """A row whose example no longer shows it has gone out of date: with the codec, or with the library."""
    sent = Sent((row.example,), row.method)
    seen = Seen(sent, ours(sent), OTHERS[row.who](sent))
    assert differ(seen.ours, seen.theirs)
    assert next(one for one in DIFFERENCES if one.covers(row.who, seen)) is row


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.filterwarnings("ignore")  # urllib3's, about headers that it could not read
def test_of_a_thousand_answers_each_is_read_as_by_stock_and_h11_or_as_the_table_says(seed: int) -> None:
    """failures.md 53, failures.md 64."""
    met, unlisted = compared(generated(seed=seed, count=1000))
    assert unlisted == []
    assert met.total() == 2000
    assert met[None] > 1200  # they are alike in most
    assert len(met) > len(DIFFERENCES) / 2
