"""What all tests have in common: which may run at the same time, and the figures they measured.

A whole run (`make test`) has two processes. Tests that share servers or ports are one group, and a group runs
in one process, in order.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from labcluster import FIGURES
from xdist.scheduler import LoadScopeScheduling

GROUPS = {
    "unit": "unit",
    "integration": "this machine",
    "cluster": "containers",
    "compose": "containers",
    "pytest_celery": "containers",
}
_KEY = "clusterkit_figures"


class Groups(LoadScopeScheduling):
    """Gives a process a whole group at a time."""

    def _split_scope(self, nodeid: str) -> str:
        return GROUPS[nodeid.split("/")[1]]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Groups:
    """Hand out tests by group. The marks of pytest-xdist 3.8 for that have no effect with pytest 9.2."""
    return Groups(config, log)


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
