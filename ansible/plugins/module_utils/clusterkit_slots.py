"""Services that are replaced by handing over: the new one runs beside the old one until it has proved itself.

Such a service runs in a *slot*: `worker-cpu`, `worker-cpu.b`, `worker-cpu.c` and so on are the same service.
What is installed carries a mark that outlives an interrupted run, so that the next one can go on or tidy up:
`active` is the one that serves, `new` has not proved itself yet, `retired` was asked to end and never comes
back.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ACTIVE, NEW, RETIRED = "active", "new", "retired"

# Stands for the slot in a service's command and environment.
PLACEHOLDER = "{slot}"

_SLOTS = ("", *(f".{letter}" for letter in string.ascii_lowercase[1:]))

# Seconds a new service that failed is given to end, so that nothing of it is left behind.
DISCARD_GRACE = 5.0


def base(name: str) -> str:
    """Return the service that `name` is a slot of: worker-cpu for worker-cpu.b."""
    return name.partition(".")[0]


def slot(name: str) -> str:
    """Return the slot of `name`: .b for worker-cpu.b, nothing for worker-cpu."""
    return name.removeprefix(base(name))


def in_slot(service: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return one of the module's `services` as it is described for a slot."""
    return {
        **service,
        "name": service["name"] + where,
        "command": service["command"].replace(PLACEHOLDER, where),
        "environment": {
            name: str(value).replace(PLACEHOLDER, where) for name, value in service["environment"].items()
        },
    }


@dataclass(frozen=True)
class Member:
    """What is installed in one slot of a service."""

    name: str
    mark: str
    # It serves, or is about to: not one that is ending.
    runs: bool
    # Some process of it is still there.
    there: bool
    # It is just what is wanted.
    current: bool


@dataclass(frozen=True)
class Plan:
    """What to do with a service: where it is to run, and what becomes of its other slots."""

    name: str
    # The one that it takes over from; empty when nothing has to be handed over.
    replaces: str = ""
    # To be asked to end, now.
    retire: tuple[str, ...] = ()
    # Have ended: nothing but their files is left.
    sweep: tuple[str, ...] = ()


def decide(service: str, members: Iterable[Member]) -> Plan:
    """Return the plan for `service`, whatever state an earlier run was interrupted in."""
    members = list(members)
    leaving = [member for member in members if member.mark == RETIRED]
    sweep = tuple(member.name for member in leaving if not member.there)
    # Asked again: the run that retired it may have ended before it said so.
    retire = [member.name for member in leaving if member.runs]
    serving = [member for member in members if member.mark == ACTIVE]
    fresh = [member for member in members if member.mark == NEW]
    # Two when a hand-over was interrupted between the two marks.
    active = max(
        serving or fresh, key=lambda member: (member.current and member.runs, member.runs), default=None
    )
    others = [member for member in (*serving, *fresh) if member is not active]
    if active is None:
        return Plan(_free(service, members), "", tuple(retire), sweep)
    if not active.runs or active.current:
        return Plan(active.name, "", (*retire, *(member.name for member in others)), sweep)
    proved = next((member for member in others if member.current and member.runs), None)
    retire += [member.name for member in others if member is not proved]
    name = proved.name if proved else _free(service, members)
    return Plan(name, active.name, tuple(retire), sweep)


def _free(service: str, members: Iterable[Member]) -> str:
    # One that has ended is free, too: it is swept before.
    taken = {member.name for member in members if member.there or member.mark != RETIRED}
    for where in _SLOTS:
        if service + where not in taken:
            return service + where
    raise ValueError(f"all slots of the service {service} are taken: wait until one of them has ended")


def named(wanted: Iterable[str], marks: Mapping[str, str], *, exact: bool = False) -> list[str]:
    """Return the installed services that `wanted` names; worker-cpu is whatever slot of it serves.

    With `exact` it is the slot of just that name: the first one is called as the service is. `marks` has the
    mark of each installed service, empty for one without slots. All of them but the retired when nothing is
    wanted.

    Raises:
        ValueError: a name that does not exist, with those that do.
    """
    known = {name: base(name) for name, mark in marks.items() if mark != RETIRED}
    found = []
    for name in wanted:
        matches = [one for one, of in known.items() if name in ({one} if exact else {one, of})]
        if not matches:
            there = ", ".join(sorted(set(known.values()))) or "none"
            raise ValueError(f"there is no service {name}; there are: {there}")
        found += matches
    return list(dict.fromkeys(found)) or list(known)
