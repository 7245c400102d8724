"""What all tests have in common: which may run at the same time, and the figures they measured.

A whole run (`make test`) has two processes. Tests that share servers or ports are one group, and a group runs
in one process, in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from labcluster import FIGURES

GROUPS = {
    "unit": "unit",
    "integration": "this machine",
    "cluster": "containers",
    "compose": "containers",
    "pytest_celery": "containers",
}
_HERE = Path(__file__).parent
_KEY = "clusterkit_figures"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test the group of its folder."""
    for item in items:
        folder = item.path.relative_to(_HERE).parts[0]
        item.add_marker(pytest.mark.xdist_group(GROUPS[folder]))


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Hand the figures of one of several processes to the one that prints."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[_KEY] = FIGURES
    yield


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    """Take them over."""
    FIGURES.extend(getattr(node, "workeroutput", {}).get(_KEY, ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was measured."""
    if FIGURES:
        terminalreporter.section("measured")
        for line in FIGURES:
            terminalreporter.line(line)
