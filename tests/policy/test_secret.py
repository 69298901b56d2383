from __future__ import annotations

import pickle

from headrace.policy.secret import Secret


def test_a_secret_is_itself_where_it_is_sent_and_three_stars_where_it_is_shown() -> None:
    """failures.md 52."""
    secret = Secret("hunter2")

    assert f"{[secret]} { ({'a': secret}) }" == "['***'] {'a': '***'}"
    assert (str(secret), f"{secret}", secret.encode()) == ("hunter2", "hunter2", b"hunter2")
    assert secret == "hunter2"
    assert pickle.loads(pickle.dumps(secret)) == "hunter2"
