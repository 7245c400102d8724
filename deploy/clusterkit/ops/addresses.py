"""Where a cluster's hosts are, as numbers, and by which names their certificates vouch for them."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING

from clusterkit.ops.errors import PreflightError
from clusterkit.ops.hostgroups import ADDRESS_VARIABLE
from clusterkit.ops.pki import Identity

if TYPE_CHECKING:
    from clusterkit.ops.model import Cluster, Host


def resolved(cluster: Cluster) -> Cluster:
    """Return ``cluster`` with an IP address for each host: services listen on it, firewalls let it in.

    Raises:
        PreflightError: a name cannot be resolved here, or two hosts have one address.
    """
    if not cluster.tls:
        return cluster
    problems: list[str] = []
    hosts = {name: _resolve(host, problems) for name, host in cluster.hosts.items()}
    problems += _shared(hosts)
    if problems:
        raise PreflightError(
            "the hosts' addresses have problems:",
            problems,
            next_step=f"set {ADDRESS_VARIABLE} of these hosts in {cluster.directory / 'hosts.yml'}",
        )
    return cluster.model_copy(update={"hosts": hosts})


def _resolve(host: Host, problems: list[str]) -> Host:
    try:
        found = socket.getaddrinfo(host.address, None, type=socket.SOCK_STREAM)
    except OSError as error:
        problems.append(f"{host.name}: {host.address}: {error.strerror}")
        return host
    return host.model_copy(update={"address": found[0][4][0]})


def _shared(hosts: dict[str, Host]) -> list[str]:
    first: dict[str, str] = {}
    return [
        f"{host.name}: {host.address} is the address of {first[host.address]} too"
        for host in hosts.values()
        if first.setdefault(host.address, host.name) != host.name
    ]


def identities(cluster: Cluster) -> dict[str, Identity]:
    """Return, per host, what its certificate is for: its own names, its groups' and its address."""
    return {
        name: Identity(
            names=(
                cluster.internal_name(name),
                *((name,) if _is_name(name) else ()),
                *(cluster.internal_name(group) for group in host.groups),
                *((host.address,) if _is_name(host.address) else ()),
            ),
            addresses=() if _is_name(host.address) else (host.address,),
        )
        for name, host in cluster.hosts.items()
    }


def _is_name(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return True
    return False
