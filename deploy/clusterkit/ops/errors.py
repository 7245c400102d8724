"""The operator's errors: branches of the kit's one tree, each with its exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusterkit.runtime.errors import ClusterkitError

if TYPE_CHECKING:
    from collections.abc import Iterable


class _ProblemsError(ClusterkitError):
    """A check that found any number of problems, all told at once."""

    def __init__(self, summary: str, problems: Iterable[object] = (), *, next_step: str = "") -> None:
        self.summary = summary
        self.problems = tuple(problems)
        super().__init__("\n  ".join([summary, *map(str, self.problems)]), next_step=next_step)


class InventoryError(_ProblemsError):
    """The description of the cluster is wrong; ``problems`` has each with its file and line.

    Nothing was changed anywhere: the inventory is read before everything else.
    """

    exit_code = 3


class PreflightError(_ProblemsError):
    """The machine, a host or a secrets file is not fit for the cluster; nothing was changed."""

    exit_code = 4


class DeployError(ClusterkitError):
    """A playbook failed on its way; what was done so far stays, and running it again goes on from there."""

    exit_code = 5


class ClusterUnhealthyError(ClusterkitError):
    """The cluster answers, but not all of it is as the inventory says."""

    exit_code = 7


class ReleaseError(ClusterkitError):
    """The user's app could not be built, installed or imported."""

    exit_code = 8


class ComparisonError(ClusterkitError):
    """A system that was compared could not run, or its results differ from the plain loop's."""

    exit_code = 15
