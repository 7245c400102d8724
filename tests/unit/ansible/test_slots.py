"""What becomes of the slots of a service, whatever an interrupted run left behind."""

from __future__ import annotations

import pytest
from ansible.module_utils.clusterkit_slots import (
    ACTIVE,
    NEW,
    RETIRED,
    Member,
    Plan,
    base,
    decide,
    named,
    slot,
)


def member(
    name: str, mark: str = ACTIVE, *, runs: bool = True, there: bool = True, current: bool = True
) -> Member:
    return Member(name, mark, runs=runs, there=there, current=current)


def old(name: str, mark: str = ACTIVE) -> Member:
    return member(name, mark, current=False)


def ending(name: str) -> Member:
    return member(name, RETIRED, runs=False, current=False)


def ended(name: str, mark: str = RETIRED) -> Member:
    return member(name, mark, runs=False, there=False)


@pytest.mark.parametrize(
    ("members", "plan"),
    [
        pytest.param([], Plan("w"), id="the first one runs in the first slot"),
        pytest.param([member("w")], Plan("w"), id="what is as wanted stays"),
        pytest.param([old("w")], Plan("w.b", "w"), id="what changed is handed over"),
        pytest.param([old("w.b")], Plan("w", "w.b"), id="and back to the first slot"),
        pytest.param([old("w.b"), ending("w")], Plan("w.c", "w.b"), id="but not while that still ends"),
        pytest.param([member("w.b"), ending("w")], Plan("w.b"), id="who ends is left alone"),
        pytest.param([member("w.b"), ended("w")], Plan("w.b", sweep=("w",)), id="who has ended is swept"),
        pytest.param(
            [old("w.b"), ended("w")], Plan("w", "w.b", sweep=("w",)), id="and its slot is free at once"
        ),
        pytest.param([ended("w.b", ACTIVE)], Plan("w.b"), id="what was stopped starts where it was"),
        pytest.param(
            [old("w"), member("w.b", NEW)], Plan("w.b", "w"), id="interrupted before it took over, it goes on"
        ),
        pytest.param(
            [old("w"), old("w.b", NEW)],
            Plan("w.c", "w", ("w.b",)),
            id="but not if something else is wanted by now",
        ),
        pytest.param(
            [member("w"), member("w.b", NEW)],
            Plan("w", retire=("w.b",)),
            id="nor if nothing is to change any more",
        ),
        pytest.param(
            [old("w"), member("w.b")], Plan("w.b", retire=("w",)), id="interrupted between the two marks"
        ),
        pytest.param(
            [member("w", RETIRED), member("w.b")],
            Plan("w.b", retire=("w",)),
            id="retired, but never asked to end",
        ),
    ],
)
def test_what_becomes_of_the_slots(members: list[Member], plan: Plan) -> None:
    assert decide("w", members) == plan


def test_a_service_may_be_named_without_its_slot() -> None:
    marks = {"worker-cpu": RETIRED, "worker-cpu.b": ACTIVE, "flower": ""}
    assert named(["worker-cpu"], marks) == ["worker-cpu.b"]
    assert named(["worker-cpu.b", "worker-cpu"], marks) == ["worker-cpu.b"]
    assert named([], marks) == ["worker-cpu.b", "flower"]
    with pytest.raises(ValueError, match="there is no service worker-io; there are: flower, worker-cpu"):
        named(["worker-io"], marks)


def test_the_slot_is_what_follows_the_name() -> None:
    assert (base("worker-cpu.b"), slot("worker-cpu.b")) == ("worker-cpu", ".b")
    assert (base("worker-cpu"), slot("worker-cpu")) == ("worker-cpu", "")
