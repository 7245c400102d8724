"""Which Flowers a cluster has: on hosts one to look at and one to act with, behind a proxy with TLS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from clusterkit.ops.model import Cluster
    from clusterkit.ops.secrets import Secrets

#: Where the proxy shows the Flower that may change things.
ADMIN_PREFIX: Final = "admin"
_LOOPBACK: Final = "127.0.0.1"


def to_ansible(cluster: Cluster, secrets: Secrets) -> dict[str, Any]:
    """Return what the roles flower and proxy take: where to listen, the instances, what the proxy shows."""
    instances = _instances(cluster, secrets)
    return {
        "broker_api": _broker_api(cluster, secrets),
        "address": _LOOPBACK if cluster.tls else cluster.bind_address,
        "brokers": [
            f"{cluster.listen_address(host)}:{cluster.ports.management}"
            for host in (cluster.group("brokers") if cluster.tls else ())
        ],
        "instances": instances,
        "backends": [
            {key: instance[key] for key in ("port", "url_prefix", "read_only")} for instance in instances
        ],
    }


def services(cluster: Cluster) -> list[str]:
    """Return the names of the services."""
    return ["flower", "flower-admin"] if cluster.tls else ["flower"]


def _instances(cluster: Cluster, secrets: Secrets) -> list[dict[str, Any]]:
    admin = {"users": {"admin": secrets.flower["admin"]}, "read_only": False}
    if not cluster.tls:
        return [{"name": "flower", "port": cluster.ports.flower, "url_prefix": "", **admin}]
    return [
        {
            "name": "flower",
            "port": cluster.ports.flower_viewer,
            "url_prefix": "",
            # One login for both: to a browser they are one place.
            "users": dict(secrets.flower),
            "read_only": True,
        },
        {
            "name": "flower-admin",
            "port": cluster.ports.flower_admin,
            "url_prefix": ADMIN_PREFIX,
            **admin,
        },
    ]


def _broker_api(cluster: Cluster, secrets: Secrets) -> str:
    # Flower gives up on a connection after a second, so on hosts the proxy asks whichever broker answers.
    login = f"flower:{secrets.broker['flower']}"
    if cluster.tls:
        return f"http://{login}@{_LOOPBACK}:{cluster.ports.flower}/api/"
    return f"http://{login}@{cluster.bind_address}:{cluster.ports.management}/api/"
