"""Which host of a lab does what, where it is on the network, and the inventory that says so.

groups_of("h4", 7)            # ("workers", "schedulers")
address(free_subnet(taken), "h1")  # 198.18.0.11
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from clusterkit.ops.errors import PreflightError
from clusterkit.ops.model import GROUPS, Group

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Hosts of a lab, unless said otherwise.
DEFAULT_HOSTS: Final = 7
#: What the addresses of a lab's network have room for, and more than one machine carries.
MOST_HOSTS: Final = 99
#: Labs' networks are cut from this half of 198.18.0.0/15, which is reserved for benchmarks (RFC 2544): no
#: network that a machine is really connected to has these addresses.
LAB_NETWORKS: Final = ipaddress.IPv4Network("198.18.0.0/16")
#: The host hN has the lab network's address 10 + N; the machine itself has .1.
_FIRST_ADDRESS: Final = 10
#: From this size on three hosts do nothing but keep data, and the last of the first seven watches.
_FULL: Final = 7
_MAJORITY: Final = 3
_SMALLEST_WITH_MAJORITY: Final = 3

#: How every hosts.yml begins that a lab may write over.
GENERATED: Final = "# Written by `make lab-up`"
_HOSTS_FILE: Final = """\
{generated}, anew each time: a change made here is lost. `make lab-down LAB={lab}` removes it.
all:
  vars:
    ansible_user: admin
    ansible_python_interpreter: /usr/bin/python3
    ansible_ssh_private_key_file: "{{{{ inventory_dir }}}}/../../../.cluster/{lab}/lab/key"
    ansible_ssh_common_args: >-
      -o IdentitiesOnly=yes -o StrictHostKeyChecking=yes
      -o 'UserKnownHostsFile="{{{{ inventory_dir }}}}/../../../.cluster/{lab}/lab/known_hosts"'
  hosts:
{hosts}
  children:
{groups}
"""

_SETTINGS_FILE: Final = """\
# The cluster on the lab `{lab}`. Written by the first `make lab-up` and yours to change from then on, until
# `make lab-down LAB={lab}` removes it. Every key: docs/reference/inventory.md.
celery_app: tasks.app:app
app_source: .
service_backend: systemd
# `make drill` may kill, stop and cut off what runs here.
drills: true

queues:
  default: {{}}
  cpu: {{}}
  io: {{}}

worker_nodes:
  - {{name: cpu, pool: prefork, queues: [cpu, default], concurrency: auto}}
  - {{name: io, pool: gevent, queues: [io, default], concurrency: 100}}
"""


def host_names(count: int) -> list[str]:
    """Return the names of a lab's ``count`` hosts."""
    return [f"h{number}" for number in range(1, count + 1)]


def layout(count: int) -> dict[Group, list[str]]:
    """Return the hosts of each group in a lab of ``count`` hosts.

    From seven hosts on every further one is a worker, so that adding it moves nothing.
    """
    names = host_names(count)
    majority = names[: _MAJORITY if count >= _SMALLEST_WITH_MAJORITY else 1]
    watching = names[min(count, _FULL) - 1]
    workers = _workers(names, majority, watching)
    # Two schedulers, so that one can take over; the second is not on the first worker's host.
    second = watching if watching != workers[0] else names[max(count - 2, 0)]
    schedulers = sorted({workers[0], second}, key=names.index)
    return {
        "brokers": majority,
        "results": majority,
        "workers": workers,
        "schedulers": schedulers,
        "monitors": [watching],
    }


def _workers(names: list[str], majority: list[str], watching: str) -> list[str]:
    others = [name for name in names if name not in majority]
    if len(names) >= _FULL:
        others.remove(watching)
    return others or names


def groups_of(host: str, count: int) -> list[Group]:
    """Return the groups of ``host`` in a lab of ``count`` hosts."""
    groups = layout(count)
    return [group for group in GROUPS if host in groups[group]]


def moved(before: int, now: int) -> list[str]:
    """Return the hosts that belong to other groups in a lab of ``now`` hosts than in one of ``before``."""
    both = host_names(min(before, now))
    return [host for host in both if groups_of(host, before) != groups_of(host, now)]


def number(host: str) -> int:
    """Return 4 for `h4`."""
    return int(host.removeprefix("h"))


def address(network: ipaddress.IPv4Network, host: str) -> str:
    """Return the IP address that ``host`` always has in its lab's ``network``."""
    return str(network[_FIRST_ADDRESS + number(host)])


def free_networks(taken: Iterable[ipaddress.IPv4Network]) -> list[ipaddress.IPv4Network]:
    """Return the networks a lab may have: of 256 addresses each, none overlapping one of ``taken``.

    Raises:
        PreflightError: none is left.
    """
    others = list(taken)
    free = [net for net in LAB_NETWORKS.subnets(new_prefix=24) if not any(map(net.overlaps, others))]
    if not free:
        using = ", ".join(str(net) for net in others if net.overlaps(LAB_NETWORKS))
        raise PreflightError(
            f"no network is left for a lab: {LAB_NETWORKS} is taken by {using}",
            next_step="take down a lab (make lab-down LAB=...), or what else has these addresses",
        )
    return free


def routed_networks(route_table: str) -> list[ipaddress.IPv4Network]:
    """Return the networks this machine has routes to; ``route_table`` is what /proc/net/route says."""
    found = []
    for line in route_table.splitlines()[1:]:
        columns = line.split()
        network, mask = (int.from_bytes(bytes.fromhex(columns[at])[::-1], "big") for at in (1, 7))
        if mask:  # the default route leads everywhere
            found.append(ipaddress.IPv4Network((network, mask.bit_count())))
    return found


def nameservers(resolv_conf: str) -> list[str]:
    """Return the name servers of a resolv.conf that a lab reaches as well: none on this machine itself."""
    servers = []
    for line in resolv_conf.splitlines():
        match line.split():
            case ["nameserver", server, *_] if _is_elsewhere(server):
                servers.append(server)
    return servers


def _is_elsewhere(server: str) -> bool:
    try:
        return not ipaddress.IPv4Address(server).is_loopback
    except ValueError:  # IPv6, which a lab's network has not
        return False


def hosts_file(lab: str, addresses: Mapping[str, str]) -> str:
    """Return the inventory's hosts.yml; ``addresses`` has every host, in order."""
    groups = layout(len(addresses))
    return _HOSTS_FILE.format(
        generated=GENERATED,
        lab=lab,
        hosts="\n".join(f"    {host}: {{ansible_host: {ip}}}" for host, ip in addresses.items()),
        groups="\n".join(
            f"    {group}: {{hosts: {{{', '.join(f'{host}: {{}}' for host in groups[group])}}}}}"
            for group in GROUPS
        ),
    )


def settings_file(lab: str) -> str:
    """Return the inventory's group_vars/all.yml, as a new lab gets it."""
    return _SETTINGS_FILE.format(lab=lab)
