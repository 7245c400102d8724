"""A cluster's own table of nftables rules on a host."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# linux/netlink.h, linux/netfilter/nfnetlink.h and nf_tables.h
_NETLINK_NETFILTER = 12
_NLMSG_ERROR = 2
_NLM_F_REQUEST = 1
_GET_GENERATION = (10 << 8) | 16
_HEADER = struct.Struct("=IHHII")


def table(cluster: str) -> str:
    """Return the name of the cluster's table."""
    return f"clusterkit_{cluster}"


def networks(sources: Iterable[str]) -> list[Network]:
    """Return the address ranges in order, without those that lie in another: nft refuses overlaps."""
    # The address of a link has its interface after a %.
    wanted = {ipaddress.ip_network(source.partition("%")[0]) for source in sources}
    alone = [
        one
        for one in wanted
        if not any(
            one != other and one.version == other.version and one.subnet_of(other)  # type: ignore[arg-type]
            for other in wanted
        )
    ]
    return sorted(alone, key=lambda one: (one.version, one))


def ruleset(cluster: str, openings: Iterable[Mapping[str, Any]], control_address: str = "") -> str:
    """Return the file for nft that replaces the cluster's table in one step and touches no other.

    Each of `openings` has a `port`, the `sources` that may connect to it, and whether `control_address`
    may too (`control`).
    """
    name = table(cluster)
    openings = list(openings)
    rules = [rule for opening in openings for rule in _rules(opening, control_address)]
    ports = ", ".join(str(port) for port in sorted({opening["port"] for opening in openings}))
    lines = [
        "# Written by the role `host`; changes are lost at the next run.",
        # Deleting a table that is not there is an error, making one that is there is none.
        f"table inet {name}",
        f"delete table inet {name}",
        f"table inet {name} {{",
        "\tchain input {",
        "\t\ttype filter hook input priority filter; policy accept;",
        '\t\tiif "lo" accept',
        # New connections are judged, so answers to the host's own, whatever port they come to, pass.
        "\t\ttcp flags & (fin | syn | rst | ack) != syn accept",
        *(f"\t\t{rule}" for rule in rules),
        f"\t\ttcp dport {{ {ports} }} counter drop",
        "\t}",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _rules(opening: Mapping[str, Any], control_address: str) -> Iterable[str]:
    control = [control_address] if opening["control"] and control_address else []
    allowed = networks([*opening["sources"], *control])
    action = f'tcp dport {opening["port"]} accept comment "{opening["name"]}"'
    for version, family in ((4, "ip"), (6, "ip6")):
        sources = ", ".join(_short(one) for one in allowed if one.version == version)
        if sources:
            yield f"{family} saddr {{ {sources} }} {action}"


def _short(network: Network) -> str:
    return str(network.network_address if network.num_addresses == 1 else network)


def kernel_problem() -> str:
    """Return why nf_tables cannot be used here, or an empty text; asks the kernel as root.

    Without the program nft: it is asked before any package is installed.
    """
    request = _HEADER.pack(_HEADER.size + 4, _GET_GENERATION, _NLM_F_REQUEST, 1, 0) + bytes(4)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as connection:
            connection.settimeout(5)
            connection.send(request)
            answer = connection.recv(4096)
    except OSError as error:
        return f"the kernel has no netfilter: {error.strerror or error}"
    if _HEADER.unpack_from(answer)[1] != _NLMSG_ERROR:
        return ""
    (number,) = struct.unpack_from("=i", answer, _HEADER.size)
    return f"the kernel's nf_tables cannot be used: {os.strerror(-number)}"
