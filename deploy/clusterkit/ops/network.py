"""Which ports hosts listen on, who may connect to them, and by which names hosts know each other.

Preflight, the firewall of each host, its block in /etc/hosts and the ports' reference are made from this.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from clusterkit.ops.model import GROUPS, PORT_OFFSETS, STANDARD_PORTS, Group

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clusterkit.ops.model import Cluster, Host

#: Where connections come from: a group's hosts, the setting `client_networks`, the machine that runs `make`.
Source = Group | Literal["clients", "control"]


@dataclass(frozen=True)
class Port:
    """What is at a port, on which group's hosts, and who besides the host itself may connect to it."""

    group: Group
    service: str
    sources: tuple[Source, ...]
    needs: Literal["", "sentinel", "proxy"] = ""
    """What the cluster must have for it: a replicated result store, or a proxy in front of Flower."""


_TASK_RESULTS: Final[tuple[Source, ...]] = (
    "results",
    "workers",
    "schedulers",
    "monitors",
    "clients",
    "control",
)
#: Every port of a cluster, by its key in `ports`. Flower asks the result store too: what a task returned.
PORTS: Final[dict[str, Port]] = {
    "epmd": Port("brokers", "Erlang's port mapper", ("brokers",)),
    "distribution": Port("brokers", "RabbitMQ between nodes", ("brokers",)),
    "amqp": Port("brokers", "RabbitMQ (AMQP)", ("workers", "schedulers", "monitors", "clients", "control")),
    "management": Port("brokers", "RabbitMQ's HTTP API", ("monitors", "control")),
    "results": Port("results", "the result store", _TASK_RESULTS),
    "sentinel": Port("results", "Sentinel", _TASK_RESULTS, "sentinel"),
    "flower": Port("monitors", "Flower", ("clients", "control")),
    "flower_viewer": Port("monitors", "Flower for viewers", (), "proxy"),
    "flower_admin": Port("monitors", "Flower for administrators", (), "proxy"),
}
#: Groups whose hosts others connect to; only these are in every host's /etc/hosts.
NAMED_GROUPS: Final[tuple[Group, ...]] = ("brokers", "results", "monitors")
_LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True)
class Listener:
    """A port that a host of the cluster listens on; ``name`` is its key in `ports`."""

    name: str
    address: str
    service: str


def listeners(cluster: Cluster, host: Host) -> Iterator[Listener]:
    """Yield what ``host`` listens on."""
    has = {"": True, "sentinel": cluster.sentinel, "proxy": cluster.tls}
    for name, port in PORTS.items():
        if port.group in host.groups and has[port.needs]:
            # What is behind a proxy is for the proxy alone.
            address = _LOOPBACK if port.needs == "proxy" else cluster.listen_address(host.name)
            yield Listener(name, address, port.service)
    if cluster.tls and "monitors" in host.groups:
        yield Listener("flower", _LOOPBACK, "Flower's way to the brokers")


@dataclass(frozen=True)
class Opening:
    """A port of one host that the network may reach, and from where."""

    name: str
    """Its key in `ports`."""
    port: int
    sources: tuple[str, ...]
    """Addresses and address ranges that may connect."""
    control: bool
    """Whether the control machine may, too; where it is, each host knows for itself."""

    def to_ansible(self) -> dict[str, Any]:
        """Return what role `host` takes."""
        return {
            "name": self.name,
            "port": self.port,
            "sources": list(self.sources),
            "control": self.control,
        }


def openings(cluster: Cluster, host: Host) -> Iterator[Opening]:
    """Yield the ports at which ``host`` listens on the network, with whom it lets in."""
    numbers = cluster.ports.model_dump()
    for listener in listeners(cluster, host):
        if not ipaddress.ip_address(listener.address).is_loopback:
            sources = PORTS[listener.name].sources
            yield Opening(
                name=listener.name,
                port=numbers[listener.name],
                sources=_addresses(cluster, host, sources),
                control="control" in sources,
            )


def _addresses(cluster: Cluster, host: Host, sources: tuple[Source, ...]) -> tuple[str, ...]:
    """Return where the hosts and networks of ``sources`` are; a host reaches itself over loopback."""
    groups = [group for group in GROUPS if group in sources]
    allowed = {name for group in groups for name in cluster.group(group)} - {host.name}
    return (
        *(other.address for name, other in cluster.hosts.items() if name in allowed),
        *(cluster.client_networks if "clients" in sources else ()),
    )


def firewall(cluster: Cluster) -> dict[str, list[dict[str, Any]]]:
    """Return host -> its openings, as role `host` takes them; none where the firewall is not wanted.

    The hosts' addresses must be numbers already (``clusterkit.ops.addresses``).
    """
    wanted = cluster.tls and cluster.firewall
    return {
        name: [opening.to_ansible() for opening in openings(cluster, host)] if wanted else []
        for name, host in cluster.hosts.items()
    }


def names(cluster: Cluster) -> dict[str, list[dict[str, str]]]:
    """Return host -> the lines of its block in /etc/hosts, each an ``address`` and a ``name``.

    A worker is in no other host's block, so adding one changes nobody else's file.
    """
    if not cluster.tls:
        return {name: [] for name in cluster.hosts}
    return {name: list(_lines(cluster, host)) for name, host in cluster.hosts.items()}


def _lines(cluster: Cluster, host: Host) -> Iterator[dict[str, str]]:
    named = {name for group in NAMED_GROUPS for name in cluster.group(group)} | {host.name}
    for name in cluster.hosts:
        if name in named:
            yield {"address": cluster.hosts[name].address, "name": cluster.internal_name(name)}
    for group in NAMED_GROUPS:
        for address in _rotated(host, [cluster.hosts[name].address for name in cluster.group(group)]):
            yield {"address": address, "name": cluster.internal_name(group)}


def _rotated(host: Host, addresses: list[str]) -> list[str]:
    """Return ``addresses`` as ``host`` shall try them: its own first, the others beginning at another each.

    It begins where the host's own address says, not its place in the inventory, so that the order
    stays when hosts are added. Addresses that differ in the last digits only are sorted once more by
    glibc's getaddrinfo: those that share more leading bits with the host's own come first (RFC 3484,
    rule 9).
    """
    if host.address in addresses:
        start = addresses.index(host.address)
    else:
        start = int(ipaddress.ip_address(host.address)) % len(addresses)
    return addresses[start:] + addresses[:start]


_DOCUMENT: Final = """\
# Ports

All TCP. On hosts a firewall (nftables) lets new connections to these ports in from where the last column
says and from the host itself, and from nowhere else; it leaves all other ports alone. `firewall: false`
turns it off. A private cluster (`service_backend: supervisor`) listens on loopback, without a firewall;
its ports are `port_base`, 24000 unless set, plus the number given.

Client networks are those of the setting `client_networks`; the control machine is the one that runs
`make`, at the address from which each host sees it come.

Generated from what the firewall is made of: `make reference`.

| name | on hosts | private | who listens | on the hosts of | open to |
| --- | --- | --- | --- | --- | --- |
"""
_WORDS: Final[dict[Source, str]] = {"clients": "client networks", "control": "control machine"}


def document() -> str:
    """Return the ports' reference, as Markdown."""
    return _DOCUMENT + "".join(f"| {' | '.join(row)} |\n" for row in _rows())


def _rows() -> Iterator[tuple[str, ...]]:
    for name, port in PORTS.items():
        private = "" if port.needs else f"+ {PORT_OFFSETS[name]}"
        sources = ", ".join(_WORDS.get(source, source) for source in port.sources)
        yield (
            f"`{name}`",
            str(STANDARD_PORTS[name]),
            private,
            port.service,
            port.group,
            sources or "nobody: loopback",
        )
