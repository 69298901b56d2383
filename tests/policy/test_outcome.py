from __future__ import annotations

import pytest

from headrace.policy.outcome import Fault, Outcome, condition


@pytest.mark.parametrize(
    ("outcome", "label"),
    [
        (Outcome(status=204), "2xx"),
        (Outcome(status=599), "5xx"),
        (Outcome(status=101), "1xx"),
        (Outcome(status=700), "other"),
        (Outcome(), "other"),
        (Outcome(fault=Fault.TLS_FAILURE), "tls_failure"),
        (Outcome(fault=Fault.TIMEOUT, status=200), "timeout"),  # a body that broke off
    ],
)
def test_the_label_of_an_outcome_is_its_fault_or_its_status_class(outcome: Outcome, label: str) -> None:
    assert outcome.label == label


@pytest.mark.parametrize("word", ["certificate", "6xx", 99, 600, True, ""])
def test_a_word_that_names_no_outcome_is_an_error(word: str | int) -> None:
    with pytest.raises(ValueError, match="unknown word"):
        condition(["network", word])
