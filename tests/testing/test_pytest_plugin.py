"""The pytest plugin, in runs of pytest of their own: what a project sees of it, marked and unmarked."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "plugin"
RULES = """\
version: 1
upstreams:
  billing:
    base_url: ${env:BILLING_URL:-https://billing.internal}
    retry: {max_attempts: 1}
    circuit_breaker: {consecutive_failures: 2}
"""

Pytest = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_pytest(tmp_path: Path) -> Pytest:
    """Runs pytest over one test file in a project that has `upstreams.yaml`; warnings are errors there, too."""

    def run(tests: str, *options: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "upstreams.yaml").write_text(RULES)
        (tmp_path / "test_it.py").write_text(textwrap.dedent(tests))
        (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\nfilterwarnings = error\n")
        plugin = [
            "-p",
            "pytest_headrace",
        ]  # loaded by its entry point where headrace is installed; no harm twice
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin, *options],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(SOURCES), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def assert_passed(done: subprocess.CompletedProcess[str], count: int) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} passed" in done.stdout


def test_a_project_without_the_mark_gets_no_import_and_no_fixture(run_pytest: Pytest) -> None:
    """So coverage, too, sees every module of the package being imported."""
    done = run_pytest(
        """
        import sys

        def test_it(request):
            assert request.fixturenames == ["request"]
            ours = [name for name in sys.modules if name.split(".")[0] == "headrace"]
            assert ours == []
            assert not {"requests", "urllib3", "prometheus_client", "structlog"} & set(sys.modules)
        """
    )
    assert_passed(done, 1)


def test_the_marker_is_known_and_listed(run_pytest: Pytest) -> None:
    done = run_pytest("", "--markers")
    assert "@pytest.mark.headrace(file=None" in done.stdout


def test_marked_tests_leave_nothing_to_each_other_and_to_unmarked_ones(run_pytest: Pytest) -> None:
    done = run_pytest(
        """
        import pytest, headrace, requests
        from requests.adapters import HTTPAdapter

        stock = HTTPAdapter.send

        @pytest.mark.headrace
        @pytest.mark.parametrize("time", [1, 2])
        def test_marked(time):
            hr = headrace.install("upstreams.yaml")
            assert headrace.current() is hr
            assert HTTPAdapter.send is not stock

        def test_unmarked():
            assert HTTPAdapter.send is stock
            with pytest.raises(LookupError):
                headrace.current()
        """
    )
    assert_passed(done, 3)


def test_an_instance_of_a_wider_fixture_lives_on_and_forgets(run_pytest: Pytest) -> None:
    done = run_pytest(
        """
        import pytest, headrace, requests, responses

        pytestmark = pytest.mark.headrace
        URL = "https://billing.internal/x"

        @pytest.fixture(scope="module")
        def hr():
            with headrace.install("upstreams.yaml") as instance:
                yield instance

        @pytest.fixture(params=["before", "after"])
        def order(request):
            return request.param

        @pytest.mark.parametrize("time", [1, 2])
        def test_opens(hr, time, order):
            assert headrace.current() is hr
            with responses.RequestsMock() as mocked:
                mocked.get(URL, status=503)
                mocked.get(URL, status=503)
                billing = hr.upstream("billing")
                assert [billing.get("/x").status_code for _ in range(2)] == [503, 503]
                with pytest.raises(headrace.CircuitOpenError):
                    billing.get("/x")
        """
    )
    assert_passed(done, 4)


def test_a_file_in_the_marker_is_in_force_for_the_test(run_pytest: Pytest) -> None:
    done = run_pytest(
        """
        import os
        import pytest, headrace, requests, responses
        from requests_mock import Mocker

        @pytest.mark.headrace("upstreams.yaml", env={"BILLING_URL": "https://other.internal"})
        def test_governed(headrace_instance):
            assert headrace.current() is headrace_instance
            base = headrace_instance.snapshot.upstream("billing").plan.base
            assert base.origin.host == "other.internal"

        def test_the_environment_is_back():
            assert "BILLING_URL" not in os.environ

        @pytest.mark.headrace("upstreams.yaml")
        @responses.activate
        def test_with_responses():
            responses.get("https://billing.internal/x", status=404)
            assert headrace.current().upstream("billing").get("/x").headrace.reason == "success"

        @pytest.mark.headrace(file="upstreams.yaml")
        def test_with_requests_mock():
            with Mocker() as mocked:
                mocked.get("https://billing.internal/x", text="mocked")
                assert requests.get("https://billing.internal/x").text == "mocked"
        """
    )
    assert_passed(done, 4)


def test_classes_of_unittest_may_be_marked(run_pytest: Pytest) -> None:
    done = run_pytest(
        """
        import unittest
        import pytest, headrace

        @pytest.mark.headrace
        class TestMarked(unittest.TestCase):
            def setUp(self):
                headrace.install("upstreams.yaml")

            def test_one(self):
                headrace.current()

            def test_two(self):
                headrace.current()

        def test_unmarked():
            with pytest.raises(LookupError):
                headrace.current()
        """
    )
    assert_passed(done, 3)


@pytest.mark.parametrize(
    ("mark", "says"),
    [
        pytest.param('fle="upstreams.yaml"', "takes a file and env", id="unknown argument"),
        pytest.param('"upstreams.yaml", env=3', "takes a file and env", id="no environment"),
        pytest.param('env={"BILLING_URL": "x"}', "env= is for a file", id="environment of no file"),
        pytest.param('"missing.yaml"', "missing.yaml", id="no such file"),
        pytest.param(
            "", 'headrace_instance needs a file: @pytest.mark.headrace("upstreams.yaml")', id="no file"
        ),
    ],
)
def test_a_marker_that_says_nothing_usable_fails_its_test_in_words(
    mark: str, says: str, run_pytest: Pytest
) -> None:
    done = run_pytest(
        f"""
        import pytest

        @pytest.mark.headrace({mark})
        def test_it(headrace_instance):
            pass
        """
    )
    assert done.returncode == 1
    assert "1 error" in done.stdout
    assert says in done.stdout


def test_timelines_that_differ_are_shown_line_by_line(run_pytest: Pytest) -> None:
    done = run_pytest(
        """
        from headrace.testing import Simulation

        def test_it():
            billing = Simulation("upstreams.yaml").upstream("billing")
            billing.answers(503)
            billing.call()
            assert billing.timeline == [(0.0, "attempt 1: 200")]
        """
    )
    assert done.returncode == 1
    assert "timelines differ (- expected, + happened)" in done.stdout
    assert "-     0.000000 s  attempt 1: 200" in done.stdout
    assert "+     0.000000 s  attempt 1: 503" in done.stdout


def test_it_can_be_left_out(run_pytest: Pytest) -> None:
    done = run_pytest("def test_it(): pass", "-p", "no:pytest_headrace")
    assert_passed(done, 1)
    assert "headrace" not in run_pytest("", "--markers", "-p", "no:pytest_headrace").stdout
