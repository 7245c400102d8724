"""Which version of RabbitMQ may follow which, while the others of the cluster go on running.

From RabbitMQ's documentation, as of version 4.2: https://www.rabbitmq.com/docs/upgrade ("version
upgradability", "feature flags"), https://www.rabbitmq.com/docs/which-erlang. In a rolling upgrade both
versions run side by side, so what may follow each other may also be mixed, and nothing else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Literal, Self

Series = tuple[int, int]


@dataclass(frozen=True)
class Step:
    """What a step from one series to the next asks for."""

    least: tuple[int, int, int] = (0, 0, 0)
    """The oldest version of the earlier series that will do."""
    flags: bool = True
    """Whether every stable feature flag has to be enabled before: the next series takes them for granted."""


#: 4.3 is not among them: it has no Mnesia any more, which this kit's brokers keep their cluster in.
STEPS: Final[dict[tuple[Series, Series], Step]] = {
    ((3, 8), (3, 9)): Step(flags=False),
    ((3, 9), (3, 10)): Step(flags=False),
    ((3, 10), (3, 11)): Step(),
    ((3, 11), (3, 12)): Step(least=(3, 11, 18)),
    ((3, 12), (3, 13)): Step(),
    ((3, 13), (4, 0)): Step(),
    ((3, 13), (4, 1)): Step(),
    ((3, 13), (4, 2)): Step(),
    ((4, 0), (4, 1)): Step(),
    ((4, 0), (4, 2)): Step(),
    ((4, 1), (4, 2)): Step(),
}
#: From each version on, the newest first: the least Erlang, and the first that is too new (None: unknown).
ERLANG: Final[tuple[tuple[tuple[int, int, int], tuple[int, int], int | None], ...]] = (
    ((4, 2, 9), (27, 0), 29),
    ((4, 2, 0), (26, 2), 29),
    ((4, 0, 4), (26, 2), 28),
    ((4, 0, 0), (26, 2), 27),
    ((3, 13, 0), (26, 0), 27),
    ((3, 12, 0), (25, 0), 27),
    ((3, 11, 0), (25, 0), 26),
    ((3, 10, 0), (23, 2), 26),
    ((3, 9, 0), (23, 2), 26),
)
_HOW = "https://www.rabbitmq.com/docs/upgrade"
_VERSION = re.compile(r"(?:\d+:)?(\d+)\.(\d+)(?:\.(\d+))?")


@dataclass(frozen=True)
class Offer:
    """What one broker runs, and what its package sources have for it."""

    host: str
    running: str
    """RabbitMQ's version, as the node says."""
    installed: str
    """The package's version."""
    candidate: str
    """The package's version in the sources."""
    order: Literal["newer", "same", "older"]
    """What the candidate is to the one installed."""
    erlang: str
    """The version of Erlang's package after the upgrade."""
    flags: tuple[str, ...] = ()
    """Feature flags that are not enabled."""

    @classmethod
    def of(cls, host: str, node: dict[str, Any], package: dict[str, Any]) -> Self:
        """Take what modules rabbitmq_cluster (described) and distribution_packages (inspected) found."""
        after = {**package["versions"], **package["changes"]}
        erlang = next((version for name, version in after.items() if name.startswith("erlang-base")), "")
        return cls(
            host=host,
            running=node["version"],
            installed=package["version"],
            candidate=package["candidate"],
            order=package["order"],
            erlang=erlang or node["erlang"],
            flags=tuple(node["flags"]),
        )

    @property
    def due(self) -> bool:
        """Whether the node is to get the candidate: as a package, or by a restart into what is installed."""
        return self.order == "newer" or (
            self.order == "same" and parts(self.running) != parts(self.installed)
        )


def parts(version: str) -> tuple[int, int, int]:
    """Return the numbers of a version of RabbitMQ, or of its package (`4.0.5-6+deb13u2`).

    Raises:
        ValueError: it begins with none.
    """
    match = _VERSION.match(version)
    if not match:
        raise ValueError(f"{version!r} is no version")
    major, minor, patch = match.groups(default="0")
    return int(major), int(minor), int(patch)


def refusals(offers: list[Offer]) -> list[str]:
    """Return, a line each, why these brokers may not be upgraded to their candidates; empty when they may."""
    found = [line for offer in offers for line in _of_one(offer)]
    targets = {offer.candidate for offer in offers}
    if len(targets) > 1:
        each = ", ".join(f"{offer.host} {offer.candidate}" for offer in offers)
        found.append(
            f"the hosts would not get the same version: {each}. Give all the same package sources, or BUNDLE="
        )
    return found + _mixed(offers)


def _of_one(offer: Offer) -> list[str]:
    if offer.order == "same" and not offer.due:
        return []
    if offer.order == "older":
        older = f"{offer.candidate} is older than {offer.installed}, which is installed"
        return [f"{offer.host}: {older}: RabbitMQ does not support downgrades"]
    return [f"{offer.host}: {line}" for line in _path(offer) or _erlang(offer)]


def _path(offer: Offer) -> list[str]:
    # What runs counts, not what is installed: they differ when a package was upgraded without a restart.
    before, after = parts(offer.running), parts(offer.candidate)
    if before[:2] == after[:2]:
        return []
    step = STEPS.get((before[:2], after[:2]))
    if step is None:
        may = _next_after(before[:2])
        return [f"{_name(after)} may not follow {_name(before)} while the cluster runs; {may} ({_HOW})"]
    found = []
    if before < step.least:
        found.append(
            f"{_name(after)} may only follow {_name(step.least)} or later, {_name(before)} runs ({_HOW})"
        )
    if step.flags and offer.flags:
        found.append(
            f"{_name(after)} needs every feature flag enabled before, and these are not:"
            f" {', '.join(offer.flags)}. make broker-restart enables them"
        )
    return found


def _next_after(series: Series) -> str:
    names = [f"{after[0]}.{after[1]}" for before, after in STEPS if before == series]
    return f"next to it are: {', '.join(names)}" if names else "this kit knows none that may"


def _erlang(offer: Offer) -> list[str]:
    target, (major, minor, _) = parts(offer.candidate), parts(offer.erlang)
    for version, least, too_new in ERLANG:
        if target >= version:
            if (major, minor) < least:
                return [f"{_name(target)} needs Erlang {least[0]}.{least[1]}, and would get {offer.erlang}"]
            if too_new and major >= too_new:
                return [f"{_name(target)} does not run on Erlang {too_new}, and would get {offer.erlang}"]
            break
    return []


def _mixed(offers: list[Offer]) -> list[str]:
    """Return which versions run now that may not run together; an upgrade that was given up leaves two."""
    running = sorted({parts(offer.running)[:2] for offer in offers})
    return [
        f"RabbitMQ {a[0]}.{a[1]} and {b[0]}.{b[1]} run in one cluster, and may not ({_HOW})"
        for a, b in pairwise(running)
        if (a, b) not in STEPS
    ]


def _name(version: tuple[int, int, int]) -> str:
    return "RabbitMQ " + ".".join(map(str, version))
