"""The operator's errors: one tree, an exit code per kind."""

from __future__ import annotations

import clusterkit.runtime.errors as runtime
from clusterkit.ops import errors as ops
from clusterkit.runtime.errors import ClusterkitError


def kinds() -> list[type[ClusterkitError]]:
    return [
        kind
        for module in (runtime, ops)
        for kind in vars(module).values()
        if isinstance(kind, type)
        and issubclass(kind, ClusterkitError)
        and kind.__module__ == module.__name__
        and not kind.__name__.startswith("_")
    ]


def test_every_kind_of_failure_has_its_own_exit_code() -> None:
    codes = [kind.exit_code for kind in kinds()]
    assert len(set(codes)) == len(codes)
    assert 0 not in codes


def test_the_operator_s_codes() -> None:
    assert {
        ops.InventoryError: 3,
        ops.PreflightError: 4,
        ops.DeployError: 5,
        ops.ClusterUnhealthyError: 7,
        ops.ReleaseError: 8,
        ops.ComparisonError: 15,
    } == {kind: kind.exit_code for kind in kinds() if kind.__module__ == ops.__name__}


def test_problems_are_told_below_the_summary() -> None:
    error = ops.PreflightError(
        "two ports are taken:", ["24672 (amqp)", "24555 (flower)"], next_step="set port_base"
    )
    assert str(error) == "two ports are taken:\n  24672 (amqp)\n  24555 (flower)"
    assert error.summary == "two ports are taken:"
    assert error.problems == ("24672 (amqp)", "24555 (flower)")
    assert error.next_step == "set port_base"
    assert str(ops.PreflightError("no sudo")) == "no sudo"
