"""Restarts and upgrades the brokers one after the other, so that clients always have the others.

The gate before each, and the wait after it, are role rabbitmq's (tasks/restart.yml); `cluster restart` and
`cluster up` take the same way.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from clusterkit.ops import addresses, brokerversions, playbook
from clusterkit.ops import bundle as bundles
from clusterkit.ops.brokerversions import Offer
from clusterkit.ops.deployment import broker_variables
from clusterkit.ops.errors import PreflightError
from clusterkit.ops.lock import alone
from clusterkit.ops.progress import Progress
from clusterkit.ops.tables import new_table
from clusterkit.runtime.errors import BadInputError, InterruptedByUserError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from clusterkit.ops.model import Cluster

#: Seconds to wait, before each node, until the cluster can do without it.
GATE_TIMEOUT: Final = 120
_RESTART, _VERSIONS = "broker_restart", "broker_versions"


@dataclass(frozen=True)
class Turn:
    """What happened to one broker; ``before`` and ``after`` are versions, ``seconds`` it took no clients."""

    host: str
    before: str
    after: str
    seconds: float


@dataclass(frozen=True)
class Done:
    """The brokers in the order of their turns, what was mended of flags and queues, and seconds in all."""

    turns: tuple[Turn, ...]
    mended: tuple[str, ...]
    seconds: float
    kept: dict[str, str] = field(default_factory=dict)
    """Brokers that had the version already, with it."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-safe values."""
        return asdict(self)


def restart(cluster: Cluster, host: str, console: Console, *, gate_timeout: int = GATE_TIMEOUT) -> Done:
    """Restart the broker on ``host``, or with "" all of them one after the other.

    Raises:
        BadInputError: the host has no broker.
        DeployError: the cluster cannot do without a node, or one did not come back; those after it are left.
    """
    cluster = addresses.resolved(cluster)
    hosts = _chosen(cluster, host)
    with alone(cluster), _progress(cluster, "restart brokers", [_RESTART], console) as progress:
        _warn_of_one(cluster, "restarted", console)
        outcome = _run(cluster, _variables(cluster, hosts, gate_timeout), progress)
        return _done(hosts, outcome, progress.seconds)


def upgrade(
    cluster: Cluster, bundle: Path | None, console: Console, *, gate_timeout: int = GATE_TIMEOUT
) -> Done:
    """Bring the RabbitMQ of the package sources, or of ``bundle``, to one broker after the other.

    Raises:
        PreflightError: that version may not follow the one that runs; nothing was changed.
        DeployError: the cluster cannot do without a node, or one did not come back; those after it are left.
    """
    if bundle:
        bundles.read(bundle)
    cluster = addresses.resolved(cluster)
    with alone(cluster), _progress(cluster, "upgrade brokers", [_VERSIONS, _RESTART], console) as progress:
        variables = _variables(cluster, (), gate_timeout)
        variables["broker_bundle"] = str(bundle.resolve()) if bundle else ""
        offers = _offers(playbook.run(cluster, _VERSIONS, variables, progress))
        wrong = brokerversions.refusals(offers)
        if wrong:
            raise PreflightError(
                "nothing was changed; the brokers may not be upgraded so:",
                wrong,
                next_step="docs/howto/brokers.md has the ways from version to version",
            )
        waiting = {offer.host: offer for offer in offers if offer.due}
        kept = {offer.host: offer.installed for offer in offers if not offer.due}
        if not waiting:
            return Done((), (), progress.seconds, kept)
        _warn_of_one(cluster, "upgraded", console)
        variables["broker_hosts"] = list(waiting)
        variables["broker_version"] = next(iter(waiting.values())).candidate
        done = _done(tuple(waiting), _run(cluster, variables, progress), progress.seconds)
        packages = tuple(
            Turn(turn.host, _before(waiting[turn.host]), waiting[turn.host].candidate, turn.seconds)
            for turn in done.turns
        )
        return Done(packages, done.mended, progress.seconds, kept)


def _chosen(cluster: Cluster, host: str) -> tuple[str, ...]:
    hosts = cluster.group("brokers")
    if not host:
        return hosts
    if host not in hosts:
        raise BadInputError(
            f"{host!r} has no broker of cluster {cluster.name!r}; these have: {', '.join(hosts)}"
        )
    return (host,)


def _progress(cluster: Cluster, what: str, playbooks: list[str], console: Console) -> Progress:
    phases = [phase for name in playbooks for phase in playbook.phases(cluster, name)]
    return Progress(f"cluster {cluster.name}: {what}", phases, console)


def _warn_of_one(cluster: Cluster, what: str, console: Console) -> None:
    if len(cluster.group("brokers")) == 1:
        console.print(
            f"[yellow]the only broker of cluster {cluster.name} is {what}: clients and workers wait"
            " meanwhile[/]",
            highlight=False,
            soft_wrap=True,
        )


def _variables(cluster: Cluster, hosts: tuple[str, ...], gate_timeout: int) -> dict[str, Any]:
    return {
        **broker_variables(cluster),
        "broker_hosts": list(hosts),
        "broker_version": "",
        "broker_bundle": "",
        "broker_gate_timeout": gate_timeout,
    }


def _run(cluster: Cluster, variables: dict[str, Any], progress: Progress) -> playbook.Outcome:
    try:
        return playbook.run(cluster, _RESTART, variables, progress)
    except InterruptedByUserError as error:
        raise InterruptedByUserError(
            str(error),
            next_step=f"make cluster-up CLUSTER={cluster.name} has a node serve again that was drained or"
            " stopped just then; after that run it again, for the nodes that are left",
        ) from error


def _offers(outcome: playbook.Outcome) -> list[Offer]:
    packages = outcome.of("Look for another version of the package")
    return [
        Offer.of(host, node, packages[host]) for host, node in outcome.of("Ask the node what it runs").items()
    ]


def _before(offer: Offer) -> str:
    """Return the package's version, or what runs when the package was there without a restart."""
    return offer.installed if offer.order == "newer" else offer.running


def _done(hosts: tuple[str, ...], outcome: playbook.Outcome, seconds: float) -> Done:
    kept = outcome.of("Keep how the restart went")
    facts = {host: result["ansible_facts"]["rabbitmq_restarted"] for host, result in kept.items()}
    turns = tuple(
        Turn(host, fact["before"], fact["after"], round(float(fact["seconds"]), 1))
        for host in hosts
        if (fact := facts.get(host))
    )
    settled = outcome.of("Enable feature flags, and give each queue a member on every node")
    mended = tuple(change for result in settled.values() for change in result.get("changes", ()))
    return Done(turns, mended, seconds)


def show(cluster: Cluster, done: Done, console: Console) -> None:
    """Print each broker's turn, and what was mended."""
    if done.turns:
        table = new_table(
            f"Brokers of cluster {cluster.name}",
            "host",
            "before",
            "after",
            "took no clients for",
            right=("took no clients for",),
        )
        for turn in done.turns:
            table.add_row(turn.host, turn.before, turn.after, f"{turn.seconds:.0f} s")
        console.print(table)
    for line in done.mended:
        console.print(f"[bold]mended[/]    {line}", highlight=False, soft_wrap=True)
    if done.turns:
        console.print(
            f"[green]done[/]      {len(done.turns)} of {len(cluster.group('brokers'))} brokers,"
            f" {done.seconds:.0f} s",
            highlight=False,
            soft_wrap=True,
        )
    else:
        versions = ", ".join(sorted(set(done.kept.values())))
        console.print(
            f"[green]nothing to do[/] every broker has {versions} already", highlight=False, soft_wrap=True
        )
