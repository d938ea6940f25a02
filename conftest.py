"""What all tests share: the built site, and the rule that CI skips nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent
IN_CI = os.environ.get("CI", "").lower() == "true"
_skipped: list[str] = []

# In CI a property test draws the same examples every time: what is not changed cannot begin to fail. Elsewhere they are drawn anew.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("dev", deadline=None)
settings.load_profile("ci" if IN_CI else "dev")


@pytest.fixture(scope="session")
def site() -> Path:
    """The folder of the built book, built first if it isn't up to date."""
    build = subprocess.run([sys.executable, str(ROOT / "tools" / "build_site.py")], capture_output=True, text=True)
    assert build.returncode == 0, f"the book does not build:\n{build.stdout[-2000:]}{build.stderr[-4000:]}"
    return ROOT / "_build" / "html"


@pytest.fixture(scope="session")
def site_url(site: Path) -> Iterator[str]:
    """The address of a server of the built book."""
    import threading

    from tools.serve import make_server

    server = make_server(site, 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember what was skipped (expected failures count too: both hide something)."""
    if report.skipped:
        _skipped.append(report.nodeid)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """With CI=true a skipped test is a failure."""
    is_worker = hasattr(session.config, "workerinput")
    if IN_CI and _skipped and not is_worker and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say why CI failed when it failed for a skipped test."""
    if IN_CI and _skipped:
        terminalreporter.section("skipped in CI, which counts as failed")
        for nodeid in _skipped:
            terminalreporter.line(nodeid)
